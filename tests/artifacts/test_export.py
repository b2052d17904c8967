"""Exports: the same function elsewhere, whole or not at all, and what cannot be held is said, not dropped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import jepakit
from exported import made_run, photos
from jepakit import cli
from jepakit.artifacts.export import exporting
from jepakit.artifacts.export.card import _training as training_lines
from jepakit.artifacts.export.exported_encoder import at_size, dense_of
from jepakit.artifacts.export.verify import real_images
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder

SETTINGS = {
    "ijepa": ("ijepa",),
    "ec_ijepa": ("ec_ijepa", "conditioning.infer_kernel=2", "conditioning.infer_stride=2"),
    "learnt": ("ijepa", "encoder.learned_positions=true"),
    "unconditioned": ("ec_ijepa", "conditioning.inference=false"),
    "wide": ("ec_ijepa", "images.size=[16,24]", "conditioning.renorm=true", "conditioning.infer_ceil=true"),
    "gray": ("ijepa", "images.channels=1"),
}
SIZES = [(16, 16), (24, 32)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("secret place") / "photos")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    return {name: made_run(data, root / name, *settings) for name, settings in SETTINGS.items()}


def trials(encoder: Encoder, data: Path, size: tuple[int, int]) -> list[Tensor]:
    """Normalised images of that size: one and three random ones, and real ones."""
    encoder = at_size(encoder, size)
    shape = encoder.vit.channels, *size
    random = [torch.randn(n, *shape, generator=torch.Generator().manual_seed(n)) for n in (1, 3)]
    return [*random, encoder.normalise(real_images(encoder, str(data)))]


def require_equal(ours: Encoder, theirs: Any, images: list[Tensor], atol: float = 1e-5) -> None:
    """The run's own packed forward, which exports do not share, is the judge."""
    for given in images:
        with torch.no_grad():
            torch.testing.assert_close(theirs(given), ours(given), rtol=0, atol=atol)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_dense_forward_is_the_encoders(name: str, size: tuple[int, int], runs: dict[str, Run], data: Path) -> None:
    encoder = jepakit.load(runs[name])
    require_equal(encoder, dense_of(at_size(encoder, size)), trials(encoder, data, size))


def test_conditioning_tokens_are_those_of_the_paper_and_change_what_comes_out(runs: dict[str, Run]) -> None:
    """Mean positions of 2x2 squares, by loops; without them the function is another."""
    encoder = jepakit.load(runs["ec_ijepa"])
    dense, positions = dense_of(encoder), encoder.vit.positions.view(4, 4, -1)
    for i in range(2):
        for j in range(2):
            square = positions[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1))
            torch.testing.assert_close(dense.conditioning_tokens[2 * i + j], square)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    without = Encoder(encoder.vit, encoder.images).eval()
    with torch.no_grad():
        assert (without(x) - dense(x)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["ijepa", "learnt", "unconditioned", "gray"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_hf_runs_the_same_in_transformers_and_comes_back_bit_for_bit(
    name: str, size: tuple[int, int], runs: dict[str, Run], data: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    made = jepakit.export(runs[name], "hf", tmp_path / "out", images_size=size)
    encoder, images = jepakit.load(runs[name]), trials(jepakit.load(runs[name]), data, size)
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "IJepaModel"
    require_equal(encoder, lambda x: model(x).last_hidden_state, images)
    require_equal(encoder, jepakit.load(tmp_path / "out"), images, atol=0)
    assert {check.by for check in made.checks} == {"jepakit", "transformers"} and made.largest < 1e-5 and not made.unchecked


def test_hf_prepares_images_as_evaluation_does(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    """Within two of 255 levels: transformers resizes by Pillow."""
    from transformers import AutoImageProcessor

    jepakit.export(runs["ijepa"], "hf", tmp_path / "out")
    encoder = jepakit.load(runs["ijepa"])
    prepare, std = AutoImageProcessor.from_pretrained(tmp_path / "out"), torch.tensor(encoder.images.std)[:, None, None]
    theirs = prepare(Image.open(data / "class0/0.png"), return_tensors="pt")["pixel_values"][0]
    ours = encoder.normalise(real_images(encoder, str(data)))[0]
    assert ((theirs - ours) * std * 255).abs().max() < 2.01


ELSEWHERE = """
import sys, torch
sys.modules["jepakit"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
given = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save([model(x).last_hidden_state for x in given], sys.argv[3])
"""


@pytest.mark.parametrize(("name", "size"), [("ec_ijepa", (24, 32)), ("wide", (16, 24))], ids=str)
def test_hf_with_code_of_its_own_runs_where_jepakit_is_not(
    name: str, size: tuple[int, int], runs: dict[str, Run], data: Path, tmp_path: Path
) -> None:
    out, given = tmp_path / "out", tmp_path / "given"
    jepakit.export(runs[name], "hf", out, images_size=size, custom_code=True)
    encoder, images = jepakit.load(runs[name]), trials(jepakit.load(runs[name]), data, size)
    torch.save(images, given)
    words = [sys.executable, "-c", ELSEWHERE, str(out), str(given), str(tmp_path / "got")]
    subprocess.run(words, check=True, env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"})
    for x, got in zip(images, torch.load(tmp_path / "got", weights_only=True), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(got, encoder(x), rtol=0, atol=1e-5)
    require_equal(encoder, jepakit.load(out), images, atol=0)


@pytest.mark.parametrize("name", ["ijepa", "ec_ijepa", "wide"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torch_export_runs_the_same(name: str, size: tuple[int, int], runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    jepakit.export(runs[name], "torch", tmp_path / "out", images_size=size)
    encoder = jepakit.load(runs[name])
    run = torch.export.load(tmp_path / "out/model.pt2").module()
    images = trials(encoder, data, size)
    assert str(Path(jepakit.__file__).parent).encode() not in (tmp_path / "out/model.pt2").read_bytes()  # nor other places
    require_equal(encoder, lambda x: run(x)[0], images)
    for given in images:
        torch.testing.assert_close(run(given)[1], encoder.embed(given), rtol=0, atol=1e-5)


def test_torch_export_takes_bytes_where_asked(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    jepakit.export(runs["ec_ijepa"], "torch", tmp_path / "out", preprocess=True)
    about = {"jepakit.json": ""}
    run = torch.export.load(tmp_path / "out/model.pt2", extra_files=about).module()
    encoder = jepakit.load(runs["ec_ijepa"])
    said = json.loads(about["jepakit.json"])
    assert said["normalises"] and tuple(said["images"]["mean"]) == encoder.images.mean
    images = real_images(encoder, str(data))
    assert images.dtype == torch.uint8
    torch.testing.assert_close(run(images)[1], encoder.embed(encoder.normalise(images)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "preprocess"), [("ijepa", (16, 16), False), ("ec_ijepa", (24, 32), True), ("wide", (16, 24), False)], ids=str
)
def test_onnx_runs_the_same_in_onnxruntime(
    name: str, size: tuple[int, int], preprocess: bool, runs: dict[str, Run], data: Path, tmp_path: Path
) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    jepakit.export(runs[name], "onnx", tmp_path / "out", images_size=size, preprocess=preprocess)
    path = tmp_path / "out/model.onnx"
    onnx.checker.check_model(str(path))
    assert str(Path(jepakit.__file__).parent).encode() not in path.read_bytes()
    opset = {each.domain: each.version for each in onnx.load(str(path)).opset_import}[""]
    assert f"opset {opset};" in (tmp_path / "out/README.md").read_text()
    encoder = at_size(jepakit.load(runs[name]), size)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for given in [real_images(encoder, str(data))] if preprocess else trials(encoder, data, size):
        tokens, vectors = session.run(["patch_tokens", "embedding"], {"images": given.numpy()})
        shown = encoder.normalise(given) if preprocess else given
        np.testing.assert_allclose(tokens, encoder(shown), rtol=0, atol=1e-5)
        np.testing.assert_allclose(vectors, encoder.embed(shown), rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_what_a_format_cannot_hold_is_not_dropped(format: str, runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"conditioning tokens.*--custom-code.*--format onnx or --format torch"):
        jepakit.export(runs["ec_ijepa"], format, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "dtype", "unit"), [("fp16", torch.float16, 2**-11), ("bf16", torch.bfloat16, 2**-8)])
def test_half_precision_is_the_weights_rounded(
    precision: str, dtype: torch.dtype, unit: float, runs: dict[str, Run], tmp_path: Path
) -> None:
    """On disk each weight is the nearest number of that type; transformers opens it as what it is."""
    from transformers import AutoModel

    jepakit.export(runs["ijepa"], "hf", tmp_path / "out", precision=precision)
    stored = load_file(tmp_path / "out/model.safetensors")
    vit = jepakit.load(runs["ijepa"]).vit
    fc1 = stored["encoder.layer.0.intermediate.dense.weight"]
    assert {value.dtype for value in stored.values()} == {dtype} and torch.equal(fc1, vit.blocks[0].mlp.fc1.weight.to(dtype))
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == dtype
    made = jepakit.export(runs["ec_ijepa"], "torch", tmp_path / "graph", precision=precision)
    assert 1e-6 < made.largest < 64 * unit  # of a few dozen roundings


def test_a_step_and_the_other_encoder_are_exported_as_named(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["ijepa"]
    jepakit.export(f"{run.path}@2", "hf", tmp_path / "step")
    jepakit.export(run, "hf", tmp_path / "other", which="encoder")
    x = torch.randn(1, 3, 16, 16)
    require_equal(jepakit.load(run), jepakit.load(tmp_path / "step"), [x], atol=0)
    require_equal(jepakit.load(run, "encoder"), jepakit.load(tmp_path / "other"), [x], atol=0)
    assert (jepakit.load(run)(x) - jepakit.load(tmp_path / "other")(x)).abs().max() > 1e-2


def test_an_export_that_differs_is_not_made(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bias of one block is lost on the way: the check sees it, and what was there stays."""
    jepakit.export(runs["ijepa"], "torch", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    honest = exporting.WRITERS["torch"]

    def broken(encoder: Encoder, *rest: Any) -> Any:
        encoder.vit.blocks[1].attn.proj.bias.zero_()
        return honest(encoder, *rest)

    monkeypatch.setitem(exporting.WRITERS, "torch", broken)
    for place, overwrite in (("out", True), ("new", False)):
        with pytest.raises(UserError, match="differs from the run by"):
            jepakit.export(runs["ijepa"], "torch", tmp_path / place, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_is_there_is_not_replaced_unasked_and_only_an_export_is_at_all(runs: dict[str, Run], tmp_path: Path) -> None:
    out, thesis = tmp_path / "out", tmp_path / "thesis"
    jepakit.export(runs["ijepa"], "hf", out)
    with pytest.raises(UserError, match="--overwrite"):
        jepakit.export(runs["ijepa"], "torch", out)
    jepakit.export(runs["ijepa"], "torch", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"README.md", "export.json", "model.pt2"}
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("precious")
    for place in (thesis, thesis / "thesis.txt", runs["ijepa"].path):
        with pytest.raises(UserError, match=r"no export|is there"):
            jepakit.export(runs["ijepa"], "hf", place, overwrite=True)
    assert (thesis / "thesis.txt").read_text() == "precious" and {p.name for p in tmp_path.iterdir()} == {"out", "thesis"}


@pytest.mark.parametrize("format", ["hf", "timm", "torch"])
def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(format: str, runs: dict[str, Run], tmp_path: Path) -> None:
    """In a process of its own, as libraries written in C++ may end it; files of more than 3,000 bytes cannot be written."""
    code = (
        "import resource, signal, sys, jepakit\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n"
        "    jepakit.export(*sys.argv[1:])\n"
        "except jepakit.UserError as error:\n"
        "    print('said:', error)\n"
    )
    words = [sys.executable, "-c", code, str(runs["ijepa"].path), format, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "cannot be written: " in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_take_its_place_leaves_the_old_one(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = jepakit.export(runs["ijepa"], "timm", tmp_path / "out").path
    before, rename = (place / "config.json").read_bytes(), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if target == place and "old" not in self.name:
            raise OSError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="Permission denied"):
        patch.setattr(Path, "rename", refused)
        jepakit.export(runs["gray"], "timm", place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (place / "config.json").read_bytes() == before
    (tmp_path / "link").symlink_to("out")
    jepakit.export(runs["gray"], "timm", tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and (place / "config.json").read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


@pytest.mark.parametrize(("out", "size"), [("out", (16, 16, 16)), ("o\0ut", 16), ("file/out", 16)])
def test_mistakes_from_python_are_users_errors(out: str, size: Any, runs: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"height and width|null character|cannot be written: Not a directory"):
        jepakit.export(runs["ijepa"], "timm", tmp_path / out, images_size=size)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_card_tells_no_password(runs: dict[str, Run]) -> None:
    config = runs["ijepa"].config
    for address, kept in (
        ("https://me:secret@host/a.tar?X-Signature=secret", "https://host/a.tar"),
        ("hf://datasets/owner/name", "hf://datasets/owner/name"),
    ):
        told = training_lines(config.model_copy(update={"data": address}))
        assert "secret" not in told and f"images: {kept}" in told


def test_the_card_says_what_the_run_is_and_not_where_it_lay(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    rows = [{"name": "target encoder", "accuracy": 0.5, "low": 0.25, "high": 0.75}, {"name": "raw pixels", "accuracy": 0.125}]
    (runs["ijepa"].path / "evaluation").mkdir()
    (runs["ijepa"].path / "evaluation/knn.json").write_text(json.dumps({"task": "knn", "rows": rows}))
    jepakit.export(runs["ijepa"], "hf", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "| **target encoder** | 50.0 (25.0-75.0) |" in text and "| raw pixels | 12.5 |" in text
    for words in ("license: unknown", "2301.08243", "AutoModel.from_pretrained", "images: photos", "2 steps", "target encoder"):
        assert words in text, words
    for path in (tmp_path / "out").iterdir():
        assert str(data.parent).encode() not in path.read_bytes() and str(runs["ijepa"].path).encode() not in path.read_bytes()


def test_the_card_says_what_it_does_not_hold(runs: dict[str, Run], tmp_path: Path) -> None:
    """A processor that cannot cut such images, and results at another size than the export's."""
    (runs["unconditioned"].path / "evaluation").mkdir()
    rows = [{"name": "target encoder", "accuracy": 0.5}]
    (runs["unconditioned"].path / "evaluation/knn.json").write_text(json.dumps({"rows": rows}))
    texts = []
    for number, size in enumerate([None, (16, 24)]):
        jepakit.export(runs["unconditioned"], "hf", tmp_path / str(number), images_size=size)
        texts.append((tmp_path / str(number) / "README.md").read_text())
    uncut, elsewhere = "The processor above does not do all of that", "measured at 16x16 pixels"
    assert uncut not in texts[0] and elsewhere not in texts[0]
    assert uncut in texts[1] and "give arrays of 16x24 pixels" in texts[1] and elsewhere in texts[1]


def test_results_are_those_of_what_is_exported(runs: dict[str, Run], tmp_path: Path) -> None:
    """A step's are in a folder of their own, and weights that only lie in a run are not of it."""
    run = runs["gray"]
    checkpoint = (run.checkpoints / "latest").resolve()
    assert exporting.of_run(run)[1] == exporting.of_run(run.path / "model")[1] == run.path / "evaluation"
    for place in (f"{run.path}@2", checkpoint, run.checkpoints / "latest"):
        assert exporting.of_run(place)[1] == run.path / "evaluation/step-00000002"
    jepakit.export(run, "hf", run.path / "copy")
    assert exporting.of_run(run.path / "copy") == (None, None)
    assert exporting.of_run(tmp_path / "nothing") == (None, None)


def test_images_that_are_gone_are_said_to_be(data: Path, tmp_path: Path) -> None:
    run = made_run(photos(tmp_path / "gone"), tmp_path / "run", "ijepa")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    made = jepakit.export(run, "torch", tmp_path / "out")
    assert "gone" in made.unchecked and made.checks
    assert "not checked on the run's images" in (tmp_path / "out/README.md").read_text()
    for path in (tmp_path / "out").iterdir():  # where images lay is not for others to read
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--format hff", "hf, timm, onnx, torch; did you mean 'hf'"),
        ("--format hf --precision int8", "fp32, fp16, bf16"),
        ("--format hf --preprocess", "for onnx and torch"),
        ("--format timm --custom-code", "for hf"),
        ("--format torch --images-size 18", "multiples of 4"),
        ("--format torch --images-size big", "height,width"),
        ("--format torch --which teacher", "target_encoder"),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: str, said: str, runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", str(runs["ijepa"].path), "--out", str(tmp_path / "out"), *words.split()])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and said in error and error.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_and_how_far(runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"export {runs['ec_ijepa'].path} --format torch --images-size 16,24 --out {tmp_path / 'out'}"
    cli.main(words.split())
    said = capsys.readouterr().out
    assert str(tmp_path / "out") in said and "largest difference" in said
    assert torch.export.load(tmp_path / "out/model.pt2").module()(torch.zeros(5, 3, 16, 24))[0].shape == (5, 24, 16)
