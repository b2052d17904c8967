"""The pictures of a run as files: what is there of any run and images, and what is said of the rest."""

import base64
import csv
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepakit.artifacts import checkpoint
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.pictures import make_pictures, run_pictures
from jepakit.pictures.picture_files import save_atlas
from jepakit.reporting import figure_files, report
from jepakit.reporting.page import page_of
from jepakit.reporting.picture_figures import picture_figures
from jepakit.reporting.reading import read
from jepakit.training.train import pretrain
from test_diffusion import quick
from test_resume import TINY

EVIL = "<b onload=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """EC-IJEPA, two steps, on two classes, one of a hostile name; one file is broken."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        image = draw.integers(0, 120, (20, 20, 3), dtype=np.uint8) + 100 * (i % 2)
        folder = root / "photos" / ("a", EVIL)[i % 2]
        folder.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:02}.png")
    (root / "photos" / "a" / "00.png").write_bytes(b"broken")
    words = [*TINY, "optim.steps=2", "run.precision=fp32", "run.probe_images=0", "images.max_bad=0.3"]
    return pretrain(root / "photos", root / "run", method="ec_ijepa", set=words)


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return json.loads((folder / "about.json").read_text()), {name: arrays[name] for name in arrays.files}


def test_all_of_a_run_is_there_and_of_one_shape(run: Run) -> None:
    about, arrays = contents(make_pictures(run))
    assert about["missing"] == [] and about["step"] == 2 and about["encoder"] == "target encoder"
    (r, c), n, heads = about["grid"], about["gallery"]["count"], about["attention"]["heads"]
    assert arrays["attention_received"].shape == arrays["attention_conditioning"].shape == (n, heads, r, c)
    assert arrays["pca_colours"].shape == (n, r, c, 3) and arrays["tokens"].shape[:2] == (n, r * c)
    m = about["map"]["count"]
    assert m == 23 and len(about["map"]["titles"]) == m and about["map"]["of"] == 24  # the broken one is left out
    assert {*about["map"]["labels"]} == {"a", EVIL} and about["gallery"]["titles"][0] != "a/00.png"
    for name, width in {"map_pca": 2, "map_tsne": 2, "map_nearest": 6, "map_cosines": 6}.items():
        assert arrays[name].shape == (m, width), name
    predictions = about["predictions"]
    assert predictions["images"] == 23 and len(predictions["titles"]) == predictions["shown"] == 6 and predictions["caption"]
    assert predictions["count"] == 6 * len(predictions["panels"]) and 0 <= predictions["numbers"]["found"] <= 1
    asked = arrays["predicted_blocks"].any(1)
    assert np.isfinite(arrays["predicted_cosines"]).tolist() == asked.tolist() and not (asked & arrays["predicted_context"]).any()
    for atlas in (about["gallery"], about["map"], predictions):
        height, width = np.array(atlas["tile"]) * [-(-atlas["count"] // atlas["columns"]), atlas["columns"]]
        assert Image.open(run.path / "pictures" / atlas["file"]).size == (width, height)
    assert not [*run.path.glob(".tmp-pictures*")]


def test_the_page_shows_them_and_nothing_of_the_data_is_markup(run: Run, tmp_path: Path) -> None:
    page = report(run, tmp_path / "page.html").read_text()
    about, arrays = contents(make_pictures(run))
    for section in ("masks", "sees", "embeddings", "predictions"):
        assert f'<section id="{section}">' in page
    assert EVIL not in page and page.count('class="covered"') == 1
    alike, points = (json.loads(re.findall(rf'id="{name}-0">(.*?)</script>', page)[0]) for name in ("alike", "map"))
    tokens = np.frombuffer(base64.b64decode(alike["tokens"]), np.int8).reshape(-1, alike["width"])
    np.testing.assert_array_equal(tokens, arrays["tokens"].reshape(tokens.shape))  # what a click compares
    assert points["colours"]["labels"] == about["map"]["labels"] and points["titles"] == about["map"]["titles"]
    drawn = np.frombuffer(base64.b64decode(points["points"]["tsne"]), "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(drawn, arrays["map_tsne"])
    assert page.count('class="pixels"') >= 8 * (2 + about["attention"]["heads"]) and about["predictions"]["caption"][:40] in page
    shutil.copytree(run.path, tmp_path / "bare", ignore=shutil.ignore_patterns("pictures"), symlinks=True)
    bare = report(tmp_path / "bare", tmp_path / "bare.html").read_text()
    assert "Not made yet" in bare and '<section id="embeddings">' not in bare
    broken = shutil.copytree(run.path, tmp_path / "broken", symlinks=True)
    (broken / "pictures" / "arrays.npz").write_bytes(b"broken")
    assert "Not made yet" in report(broken, tmp_path / "broken.html").read_text()


def test_pictures_are_kept_until_the_checkpoint_or_the_data_change(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "run", symlinks=True)
    folder = make_pictures(copy)
    (folder / "mark").touch()
    assert (make_pictures(copy) / "mark").exists()
    shutil.rmtree(copy / "checkpoints" / "step-00000002")
    assert not (make_pictures(copy) / "mark").exists()
    assert contents(folder)[0]["step"] == 0
    few = tmp_path / "few"
    shutil.copytree(Path(run.config.data or "") / "a", few)
    assert contents(make_pictures(copy, few))[0]["images"] == 12
    assert Run.new(copy, overwrite=True)  # the folder is one of the run's own


def test_what_cannot_be_had_is_said(run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(run.path, tmp_path / "run", symlinks=True)
    about, arrays = contents(make_pictures(copy, tmp_path / "gone"))
    assert {"context_coverage", "target_coverage"} <= arrays.keys() and "tokens" not in arrays
    assert len(about["missing"]) == 1 and "gone" in about["missing"][0]
    page = report(copy, tmp_path / "page.html").read_text()
    assert "Missing: pictures of images" in page and 'class="covered"' in page
    shutil.rmtree(copy / "checkpoints")
    about, arrays = contents(make_pictures(copy))
    assert "context_coverage" in arrays and "no checkpoint" in about["missing"][0]
    broken = shutil.copytree(run.path, tmp_path / "nan", symlinks=True)
    for step in checkpoint.steps(broken / "checkpoints"):
        found = checkpoint.load_checkpoint(broken / "checkpoints" / checkpoint.step_name(step))
        found.tensors["model"]["encoder.norm.bias"][0] = torch.nan
        checkpoint.save(broken / "checkpoints", step, found, keep=9)
        shutil.rmtree(broken / "pictures", ignore_errors=True)
        about, _ = contents(make_pictures(broken))  # the newest that is finite, and then none
        if step:
            assert about["step"] == 0 and about["missing"] == []
    assert "no checkpoint" in about["missing"][0] and "attention" not in about
    with pytest.raises(UserError, match="did you mean 'diffusion'"):
        make_pictures(run, decoder="difusion")
    with pytest.raises(UserError, match="not a run"):
        make_pictures(tmp_path)


def test_a_diffusion_decoder_is_trained_where_it_is_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    copy = shutil.copytree(run.path, tmp_path / "run", symlinks=True)
    make_pictures(copy)
    about, _ = contents(make_pictures(copy, decoder="diffusion", decoder_steps=2))
    assert about["samples"]["steps"] == 2 and about["samples"]["count"] == 6 * 5 and about["missing"] == []
    (copy / "pictures" / "mark").touch()
    assert (make_pictures(copy) / "mark").exists()  # what is there is more than what is asked for
    page = report(copy, tmp_path / "page.html").read_text()
    assert ">Samples</h3>" in page and "2 steps" in page


@pytest.fixture(scope="module")
def noisy(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, whose predictor is told positions with noise, with their pictures."""
    copy = shutil.copytree(run.path, tmp_path_factory.mktemp("noisy") / "run", symlinks=True)
    shutil.rmtree(copy / "pictures", ignore_errors=True)
    config = (copy / "config.yaml").read_text()
    assert config.count("stop: 0.0") == 1
    (copy / "config.yaml").write_text(config.replace("stop: 0.0", "stop: 0.25"))
    found = checkpoint.load_checkpoint(copy / "checkpoints" / checkpoint.step_name(2))
    found.state["config"]["predictor"]["stop"] = 0.25
    checkpoint.save(copy / "checkpoints", 2, found, keep=9)
    make_pictures(copy)
    return copy


def test_predictions_are_painted_for_each_draw_of_noise_where_there_is_noise(run: Run, noisy: Path, tmp_path: Path) -> None:
    about, _ = contents(noisy / "pictures")
    assert about["missing"] == [] and about["noise"]["panels"] == ["image", *(f"noise {k}" for k in range(1, 5))]
    assert about["noise"]["count"] == 6 * 5 and about["predictions"]["numbers"]["noise_spread"] > 0
    page = report(noisy, tmp_path / "page.html").read_text()
    assert ">With other draws of the noise</h3>" in page and "deviation 0.25" in page and "a prediction changes by" in page
    assert "noise" not in contents(make_pictures(run))[0]
    assert "draws of the noise" not in report(run, tmp_path / "bare.html").read_text()


@pytest.mark.parametrize("lost", ["noise_spread", "noise", "noise_spread samples"])
def test_noise_that_pictures_lack_is_made_once_and_not_at_the_cost_of_samples(
    noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Pictures of before there were any; of so few images that nothing can paint them; with samples, which take hours."""
    copy, made = shutil.copytree(noisy, tmp_path / "run", symlinks=True), list[str]()
    about, _ = contents(copy / "pictures")
    del about["noise"]
    if "noise_spread" in lost:
        del about["predictions"]["numbers"]["noise_spread"]
    if "samples" in lost:
        about["samples"] = {"file": "samples.png"}
    (copy / "pictures" / "about.json").write_text(json.dumps(about))
    monkeypatch.setattr(run_pictures, "_make", lambda *given: made.append("anew"))
    make_pictures(copy)
    assert made == (["anew"] if lost == "noise_spread" else [])


def test_each_picture_is_a_file_with_its_numbers_as_rows(noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_files, "DOTS_PER_INCH", 40)  # sooner drawn
    about, arrays = contents(noisy / "pictures")
    (noisy / "metrics.jsonl").unlink()  # curves are another test's
    figure_files.save_figures([read(noisy, 0, [noisy])], tmp_path / "figures")
    tables = {path.stem: [*csv.DictReader(path.open())] for path in (tmp_path / "figures").glob("*.csv")}
    parts = {"coverage", "colours", "attention", "similarity", "map", "predictions", "predictions-by-noise"}
    assert parts <= tables.keys()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"{stem}.{kind}" for stem in tables for kind in ("png", "svg", "csv")}
    n, (r, c) = about["gallery"]["count"], about["grid"]
    last = tables["attention"][-1]
    assert len(tables["attention"]) == n * r * c and (last["image"], last["row"], last["column"]) == (
        str(n - 1),
        str(r - 1),
        str(c - 1),
    )
    assert float(last["head 1"]) == arrays["attention_received"][-1, 1, -1, -1]
    assert float(last["to positions, head 0"]) == arrays["attention_conditioning"][-1, 0, -1, -1]
    assert [int(tables["colours"][c + 1][name]) for name in ("red", "green", "blue")] == arrays["pca_colours"][0, 1, 1].tolist()
    own = [
        row for row in tables["similarity"] if row["image"] == "0" and (row["row"], row["column"]) == (str(r // 2), str(c // 2))
    ]
    assert float(own[0]["cosine"]) == pytest.approx(1)  # of the patch with itself
    assert [row["label"] for row in tables["map"]] == about["map"]["labels"]
    assert [float(row["t-SNE 2"]) for row in tables["map"]] == arrays["map_tsne"][:, 1].tolist()
    shares = [float(row["share"]) for row in tables["coverage"] if row["law"] == "this run's law" and row["of"] == "target"]
    assert shares == arrays["target_coverage"].ravel().tolist()
    cosines = [float(row["cosine"] or "nan") for row in tables["predictions"]]
    np.testing.assert_array_equal(cosines, arrays["predicted_cosines"].ravel())


def claiming(side: int) -> bytes:
    """A PNG that claims so many pixels a side, and has none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


JUNK: tuple[Any, ...] = (None, "x", -1, [], {}, [[3]], {"file": "x"})


def test_pictures_that_are_damaged_are_left_out_and_said(noisy: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(noisy, tmp_path / "run", symlinks=True)
    about, folder = json.loads((copy / "pictures/about.json").read_text()), copy / "pictures"
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"\x00" * 99, b"[" * 100_000, claiming(60_000)):
            file.write_bytes(damaged)
            page = page_of([copy], live=True)
            assert "is left out" in page or "do not fit each other" in page, (file, damaged[:20])
        file.write_bytes(content)
    for i, part in enumerate(about):
        others = {part: JUNK[i % len(JUNK)]}
        for key in about[part] if isinstance(about[part], dict) else ():
            others[f"{part} {key}"] = {**about[part], key: JUNK[(i + len(key)) % len(JUNK)]}
        for name, other in others.items():
            (folder / "about.json").write_text(json.dumps({**about, name.partition(" ")[0]: other}))
            page_of([copy], live=True)
    (folder / "about.json").write_text(json.dumps(about))
    arrays = dict(np.load(folder / "arrays.npz"))
    for i, (name, each) in enumerate(arrays.items()):
        np.savez(folder / "arrays.npz", **{**arrays, name: (each[:1], each[..., None], each.astype(str))[i % 3]})
        page_of([copy], live=True)
    np.savez(folder / "arrays.npz", **{**arrays, "map_tsne": arrays["map_tsne"][:1]})
    assert {"attention", "map"} & {each.title for each in picture_figures(read(copy, 0, [copy]))} == {"attention"}
    (folder / "arrays.npz").write_bytes(b"PK")
    assert contents(make_pictures(copy))[1].keys() == arrays.keys()  # made anew
    (folder / "about.json").write_text("[" * 100_000)
    assert contents(make_pictures(copy))[0].keys() == about.keys()


def test_images_of_16_bits_and_13_bands(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "bands.npz", images=draw.integers(0, 9000, (12, 20, 20, 13), dtype=np.uint16))
    words = [*TINY, "images.channels=13", "optim.steps=1", "run.precision=fp32", "run.probe_images=0"]
    run = pretrain(tmp_path / "bands.npz", tmp_path / "run", method="ijepa", set=words)
    about, arrays = contents(make_pictures(run))
    assert about["missing"] == [] and "attention_conditioning" not in arrays
    gallery = np.asarray(Image.open(run.path / "pictures" / about["gallery"]["file"]))
    assert gallery.ndim == 3 and gallery.max() > 100  # the mean of all bands, stretched


def test_an_atlas_holds_pictures_where_it_says(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (7, 6, 9, 3), np.uint8)
    about = save_atlas(tmp_path, "some", pictures)
    sheet = np.asarray(Image.open(tmp_path / about["file"]))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, about["columns"])
        np.testing.assert_array_equal(sheet[6 * row : 6 * row + 6, 9 * column : 9 * column + 9], picture)
