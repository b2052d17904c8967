"""Pushing to a stand-in for the hub: what arrives is the export, once, and what is there is not replaced unasked."""

import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import jepakit
from exported import made_run, photos
from jepakit import cli
from jepakit.artifacts.run import Run

constants = pytest.importorskip("huggingface_hub.constants")
Push = Callable[..., tuple[int, str, str]]  # words -> exit code, stdout, stderr


class StandIn(BaseHTTPRequestHandler):
    """The few answers of the hub that a small upload needs; repositories are held in `repos` as {name: {path: bytes}}."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]

    def do_GET(self) -> None:
        name = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
        if name and name[1] in self.repos:
            return self.say(200, {"id": name[1], "sha": "0" * 40, "siblings": []})
        self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_stand_in":
            return self.say(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            self.repos.setdefault(name, {})
            self.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            return self.say(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.say(200, {"errors": [], "warnings": []})
        name = re.match(r"/api/models/([^/]+/[^/?]+)/(preupload|commit)/", self.path)
        assert name, self.path
        if name[2] == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.say(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[name[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.say(200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"http://{self.headers['Host']}/{name[1]}/commit/1"})

    def say(self, code: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        text = json.dumps(answer).encode()
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Any]:
    handler = type("OneHub", (StandIn,), {"repos": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("push")
    return made_run(photos(root / "photos"), root / "run", "ijepa")


@pytest.fixture
def push(hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Push:
    """The command, told of the stand-in."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")  # the environment is read at import
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)

    def pushed(*words: str, token: str = "hf_stand_in") -> tuple[int, str, str]:
        monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        try:
            cli.main(["push", *words])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return pushed


def test_what_is_pushed_is_the_export_and_is_private(hub: Any, push: Push, run: Run, tmp_path: Path) -> None:
    code, out, err = push(str(run.path), "me/encoder")
    assert code == 0, err
    assert "/me/encoder" in out
    handler = hub.RequestHandlerClass
    assert handler.private == {"me/encoder": True}
    here = tmp_path / "arrived"
    here.mkdir()
    for name, content in handler.repos["me/encoder"].items():
        (here / name).write_bytes(content)
    assert {p.name for p in here.iterdir()} >= {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert 'from_pretrained("me/encoder")' in (here / "README.md").read_text()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(jepakit.load(here)(x), jepakit.load(run)(x))


def test_a_card_that_was_filled_in_is_pushed_as_it_is_and_not_replaced_unasked(
    hub: Any, push: Push, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    jepakit.export(run, "hf", out)
    card = (out / "README.md").read_text().replace("license: unknown", "license: mit")
    (out / "README.md").write_text(card)
    assert push(str(out), "me/mine", "--public")[0] == 0
    held = hub.RequestHandlerClass.repos["me/mine"]
    assert held["README.md"].decode() == card and hub.RequestHandlerClass.private == {"me/mine": False}
    code, _, err = push(str(run.path), "me/mine")
    assert code == 2 and "--overwrite" in err and held["README.md"].decode() == card
    assert push(str(run.path), "me/mine", "--overwrite")[0] == 0
    assert "license: unknown" in held["README.md"].decode()


def test_a_hub_that_refuses_and_a_name_that_is_none_end_in_a_sentence(hub: Any, push: Push, run: Run) -> None:
    for words, token in ((("me/encoder",), "hf_wrong"), (("encoder",), "hf_stand_in")):
        code, _, err = push(str(run.path), *words, token=token)
        assert code == 2 and err.strip().splitlines()[-1].startswith("error: "), err
        assert "Traceback" not in err
    assert not hub.RequestHandlerClass.repos
