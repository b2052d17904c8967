"""A run in progress as a page: what is served, to whom, and that it stands many clients and a run that is gone."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jepakit.cli import main
from jepakit.core.errors import UserError
from jepakit.reporting import live, page
from run_files import healthy, log_rows, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return log_rows(make_run(tmp_path / "run", evaluated=False), [healthy(i) for i in range(1, 6)])


@pytest.fixture
def address(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(live, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "TIMES_TO_MAKE", 0)
    told: list[tuple[str, object]] = []
    ready = threading.Event()

    def started(*words: object) -> None:
        told.append(words)  # type: ignore[arg-type]
        ready.set()

    thread = threading.Thread(
        target=live.serve, args=([run],), kwargs={"on_start": lambda *words: (told.append(words), ready.set())}
    )
    thread.start()
    assert ready.wait(60)
    yield told[0][0]
    told[0][1]()  # type: ignore[operator]
    thread.join(20)
    assert not thread.is_alive()


def ask(address: str, path: str = "/", **headers: str) -> tuple[int, str, str]:
    """Status, text and tag."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers.get("ETag") or ""


def test_rows_show_as_they_come_and_a_client_that_has_the_page_gets_none(address: str, run: Path) -> None:
    status, text, tag = ask(address)
    assert status == 200 and "Trained 5 of 100,000 steps" in text and "connect-src 'self'" in text
    assert ask(address, If_None_Match=tag)[:2] == (304, "")
    with run.joinpath("metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(healthy(77)) + '\n{"step": 78, "lo')  # the run is killed in a row
    status, text, newer = ask(address, If_None_Match=tag)
    assert status == 200 and newer != tag and "Trained 77 of 100,000 steps" in text


def test_nothing_but_the_page_is_served_and_to_this_machine_alone(address: str) -> None:
    paths = ("/config.yaml", "/metrics.jsonl", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/..")
    assert {ask(address, path)[0] for path in paths} == {404}
    assert ask(address, Host="evil.example:80")[0] == 403  # a name of elsewhere that was pointed here
    assert urlsplit(address).hostname == "127.0.0.1"
    assert ask(address, Host="localhost:1")[0] == 200 == ask(address, "/?again=1")[0]


def test_fifty_clients_and_a_run_that_is_gone_neither_break_nor_grow_it(
    address: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(live, "page_of", lambda *words, **named: (made.append(1), page.page_of(*words, **named))[1])
    before = threading.active_count()
    with ThreadPoolExecutor(50) as clients:
        found = list(clients.map(lambda _: ask(address), range(150)))
    assert {status for status, _, _ in found} == {200} and len({tag for _, _, tag in found}) == 1
    assert not made  # nothing changed: all got the page that was there
    shutil.rmtree(run)
    with ThreadPoolExecutor(50) as clients:
        after = list(clients.map(lambda _: ask(address), range(100)))
    assert {(status, tag) for status, _, tag in after} == {(200, found[0][2])}  # the last that could be made
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(20)
    assert threading.active_count() <= before


def test_ctrl_c_ends_it_and_mistakes_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live.ThreadingHTTPServer, "serve_forever", interrupted)
    main(["report", "--live", str(run)])  # returns: no exit code, no traceback
    assert capsys.readouterr().out.startswith("live at http://127.0.0.1:")
    for words, said in (
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["--out", "x.html"], "--live writes no file"),
    ):
        with pytest.raises(SystemExit):
            main(["report", "--live", str(run), *words])
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no config\.yaml"):
        live.serve([tmp_path / "nowhere"])
