"""The verb `embed`: rows are the features that evaluation makes, in the order of the source, whatever moment a kill comes at."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.artifacts.load import build_jepa
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError, Pixels
from jepakit.data.opening import open_source
from jepakit.data.sources import ArraySource, Labels
from jepakit.evaluation.embeddings import embedding
from jepakit.evaluation.embeddings.embedder import Embedder, encoder_digest
from jepakit.evaluation.embeddings.embedding import embed, embed_source
from jepakit.evaluation.embeddings.files import open_embeddings
from jepakit.evaluation.embeddings.search import pictures_of, search
from jepakit.evaluation.features import extract
from jepakit.model.encoder import Encoder
from jepakit.training.train import pretrain
from test_resume import TINY

SIDE, PATCH, WIDTH, DEPTH, TOKENS = 16, 4, 16, 3, 16
BROKEN = ("red/007.png", "green/149.png")  # the second is the last of all in its part's range


def encoder(seed: int = 0) -> Encoder:
    shape = {"encoder": {"patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "heads": 2}, "predictor": {"width": 8, "depth": 1}}
    more = {"images": {"size": SIDE}, "masking": {"min_keep": 2}, "seed": seed}
    config = settings("small", "ec_ijepa", {**shape, **more})
    return Encoder(build_jepa(config).encoder, config.images, config.conditioning).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images of two classes, not square, two of them broken."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, c in (("green", 1), ("red", 0)):
        (root / name).mkdir()
        for i in range(150):
            pixels = draw.integers(0, 120, (20, 26, 3))
            pixels[..., c] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{name}/{i:03}.png")
    for name in BROKEN:
        (root / name).write_bytes(b"no image")
    return root


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART_ROWS", 128)


def vectors_in(path: Path) -> np.ndarray[Any, Any]:
    """By pyarrow or NumPy alone, as any reader has them."""
    if path.suffix == ".npz":
        return np.load(path, allow_pickle=False)["vector"]
    column = pq.read_table(path).column("vector").combine_chunks()
    return np.asarray(column.values.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


# ---- the rows


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_rows_are_the_features_of_evaluation_to_the_bit(
    precision: str, ending: str, photos: Path, tmp_path: Path, small_parts: None
) -> None:
    e, kind = encoder(), {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    expected, places = extract(open_source(photos), {"e": e}, last4=True, tokens=True, precision=kind)
    stored = torch.float16 if precision == "fp16" else torch.float32
    for layer, pool, features in (
        ("last", "mean", expected["e"].last.to(stored)),
        ("last4", "mean", expected["e"].last4.to(stored)),  # type: ignore[union-attr]
        ("last", "none", expected["e"].tokens),
    ):
        out = embed(e, photos, tmp_path / f"{layer}{pool}{ending}", layer=layer, pool=pool, precision=precision)
        assert features is not None
        found = vectors_in(out)
        assert found.dtype == features.numpy().dtype and np.array_equal(found.reshape(features.shape), features.numpy())
        assert len(found) == 298 and np.array_equal(open_embeddings(out).rows("index", np.arange(298)), places)
        assert {path.name for path in tmp_path.iterdir()} >= {out.name, f"{out.name}.bad.csv"}
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".parts") or path.name.startswith(".tmp")]


def test_a_row_is_the_image_cropped_resized_normalised_and_averaged_by_hand(photos: Path, tmp_path: Path) -> None:
    e = encoder()
    found = vectors_in(embed(e, photos, tmp_path / "a.parquet", precision="fp32"))
    pixels = np.asarray(Image.open(photos / "green/004.png"))[:, 3:23]  # 20 x 26: the middle 20 columns
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True).double() / 255
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (e.images.mean, e.images.std))
    tokens = e(((small - mean) / std).float())[0]
    assert tokens.shape == (TOKENS, WIDTH)
    np.testing.assert_allclose(found[4], tokens.double().mean(0), atol=1e-5)


def test_labels_split_group_and_the_images_that_are_not_there(photos: Path, tmp_path: Path, small_parts: None) -> None:
    table = pq.read_table(embed(encoder(), photos, tmp_path / "a.parquet")).to_pydict()
    names = [f"{c}/{i:03}.png" for c in ("green", "red") for i in range(150)]
    kept = [name for name in names if name not in BROKEN]
    assert table["path"] == kept and table["index"] == [names.index(name) for name in kept]
    assert table["label"] == [name.partition("/")[0] for name in kept]
    source = open_source(photos)
    assert source.labels is not None
    assert table["split"] == ["test" if source.labels.test[names.index(name)] else "train" for name in kept]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.parquet.bad.csv").read_text())))
    assert sorted((row["path"], int(row["index"])) for row in rows) == sorted((name, names.index(name)) for name in BROKEN)
    assert all("none of JPEG" in row["reason"] for row in rows)

    draw = np.random.default_rng(0)
    labels = Labels("x", ("a", "b"), np.array([0, 1, -1, 1]), np.array([False, True, False, False]), np.array([5, 5, 6, 7]))
    four = ArraySource("four", draw.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8), labels)
    for ending in ("parquet", "npz"):
        embed_source(Embedder(encoder()), four, tmp_path / f"four.{ending}", encoder="", data="four")
    found = pq.read_table(tmp_path / "four.parquet").to_pydict()
    assert found["label"] == ["a", "b", None, "b"] and found["group"] == [5, 5, 6, 7]
    assert found["split"] == ["train", "test", None, "train"]
    arrays = np.load(tmp_path / "four.npz", allow_pickle=False)
    assert arrays["label"].tolist() == ["a", "b", "", "b"] and arrays["split"].tolist() == ["train", "test", "", "train"]
    assert np.array_equal(arrays["vector"], vectors_in(tmp_path / "four.parquet"))
    assert not (tmp_path / "four.npz.bad.csv").exists()
    no_labels = ArraySource("four", four.images, None)
    embed_source(Embedder(encoder()), no_labels, tmp_path / "none.parquet", encoder="", data="four")
    assert pq.read_schema(tmp_path / "none.parquet").names == ["index", "path", "vector"]


def test_a_table_fills_labels_splits_and_groups_and_may_list_the_images(photos: Path, tmp_path: Path) -> None:
    """Images in another order than the folder's, some without a group, a label, or known labels; numbers, and several at once."""
    names = [f"{c}/{i:03}.png" for i in range(10, 30) for c in ("red", "green")]
    rows = [
        f"{name},{'' if i == 3 else i / 4},{i % 2},{'' if i % 3 == 0 else i % 4 // 2},{'' if i == 5 else f'p{i // 4}'},"
        f"{'test' if i % 5 == 0 else 'train'}"
        for i, name in enumerate(names)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["file,age,a,b,patient,part", *rows]))
    how: dict[str, Any] = {"table": tmp_path / "t.csv", "splits": "part", "listed": True}
    e = encoder()
    found = pq.read_table(out := embed(e, photos, tmp_path / "age.parquet", labels="age", **how)).to_pydict()
    assert found["path"] == names and found["index"] == [*range(40)]
    assert found["label"] == [None if i == 3 else i / 4 for i in range(40)]
    assert found["group"] == [None if i == 5 else f"p{i // 4}" for i in range(40)]
    assert found["split"] == [None if i == 3 else "test" if i % 5 == 0 else "train" for i in range(40)]
    assert embed(e, photos, out, labels="age", **how) == out
    with pytest.raises(UserError, match="embeddings of other labels, groups or splits"):
        embed(e, photos, out, labels="age", groups="part", **how)
    embed(e, photos, tmp_path / "ab.npz", labels="a,b", **how)
    arrays = np.load(tmp_path / "ab.npz", allow_pickle=False)
    assert arrays["label.a"].tolist() == [i % 2 for i in range(40)]
    expected = [np.nan if i % 3 == 0 else i % 4 // 2 for i in range(40)]
    assert np.array_equal(arrays["label.b"], expected, equal_nan=True) and "label" not in arrays.files
    assert arrays["group"].tolist() == ["" if i == 5 else f"p{i // 4}" for i in range(40)]
    (hit,) = search(out, row=0, k=39, encoder=e)
    assert hit.labels.count(None) == 1 and hit.labels[hit.rows.index(6)] == "1.5"
    (hit,) = search(tmp_path / "ab.npz", row=0, k=39, encoder=e)
    said = dict(zip(hit.rows, hit.labels, strict=True))
    assert (said[7], said[5], said[3], said[2]) == ("a|b", "a", "a", "b")
    (sheet,) = pictures_of(out, search(out, row=0, k=2, encoder=e))
    assert all(jpeg is not None for jpeg, _, _ in sheet)  # found by their names, as the folder has another order


def test_images_that_python_holds_are_those_of_their_files(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.glob("green/0*.png"))
    images = [Image.open(file) for file in files]
    out = embed(encoder(), (images, ["a", "b"] * (len(images) // 2)), tmp_path / "a.parquet")
    assert np.array_equal(vectors_in(out), vectors_in(embed(encoder(), files, tmp_path / "b.npz")))
    assert pq.read_table(out).to_pydict()["label"][:3] == ["a", "b", "a"]
    assert embed(encoder(), (images, ["a", "b"] * (len(images) // 2)), out) == out
    with pytest.raises(UserError, match="other images"):
        embed(encoder(), (images[::-1], ["a", "b"] * (len(images) // 2)), out)


def test_the_schema_says_what_it_is_of(photos: Path, tmp_path: Path, small_parts: None) -> None:
    e = encoder()
    schema = pq.read_schema(embed(e, photos, tmp_path / "a.parquet", pool="none"))
    assert schema.field("vector").type == pa.list_(pa.float16(), TOKENS * WIDTH)
    about = json.loads(schema.metadata[b"jepakit"])
    assert about["shape"] == [TOKENS, WIDTH] and about["weights"] == encoder_digest(e) and about["jepakit"] == jepakit.__version__
    assert about["layer"] == "last" and about["pool"] == "none" and about["data"] == str(photos.resolve())
    assert about["images"]["mean"] == list(e.images.mean) and about["view"] == "centre crop" and about["which"] == e.which
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 3


def test_a_layer_is_what_leaves_that_block_through_the_last_norm(photos: Path, tmp_path: Path) -> None:
    e = encoder()
    source = open_source(photos)
    from jepakit.evaluation.features import evaluation_view

    image = evaluation_view(source, 0, e.images)[None]
    for layer in range(1, DEPTH + 1):
        found = vectors_in(embed(e, photos, tmp_path / f"{layer}.parquet", layer=layer, precision="fp32"))[0]
        np.testing.assert_allclose(found, e.layers(e.normalise(image), DEPTH)[layer - 1][0].mean(0), atol=1e-5)
    assert np.array_equal(vectors_in(tmp_path / "3.parquet"), vectors_in(embed(e, photos, tmp_path / "l.npz", precision="fp32")))


# ---- kills


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[5:]
from jepakit.evaluation.embeddings import embedding
from test_embed import encoder
embedding.PART_ROWS, place, before, count = 128, int(sys.argv[3]), sys.argv[4] == "before", 0
real = Path.replace
def replace(self, target):
    global count
    count += 1
    if count == place and before: os.kill(os.getpid(), signal.SIGKILL)
    done = real(self, target)
    if count == place: os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.replace = replace
embedding.embed(encoder(), sys.argv[1], sys.argv[2])
"""
# renames, in their order: what is made; three parts; the images that could not be read; the file
MOMENTS = {
    "the first part is written": (2, "before"),
    "two parts are there": (3, "after"),
    "all parts are there": (5, "before"),
    "the file is written, and has no name yet": (6, "before"),
    "the file is there, and its parts too": (6, "after"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_file_is_the_one_without(moment: str, photos: Path, tmp_path: Path, small_parts: None) -> None:
    place, when = MOMENTS[moment]
    whole, out = embed(encoder(), photos, tmp_path / "whole.parquet"), tmp_path / "killed.parquet"
    command = [sys.executable, "-c", CHILD, str(photos), str(out), str(place), when, *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "killed.parquet.parts").is_dir() and out.exists() == ("its parts too" in moment)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed.parquet.parts").glob("0*.npz")}
    assert len(parts) == {2: 0, 3: 2}.get(place, 3)
    made: list[int] = []
    real = embedding.embedded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "embedded", lambda e, s, batches: made.extend(map(len, batches)) or real(e, s, batches))
        embed(encoder(), photos, out)
    assert sum(made) == max(0, 300 - 128 * len(parts))  # nothing is made twice
    assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)
    assert vectors_in(out).tobytes() == vectors_in(whole).tobytes()
    assert (tmp_path / "killed.parquet.bad.csv").read_bytes() == (tmp_path / "whole.parquet.bad.csv").read_bytes()
    assert {path.name.removeprefix("killed") for path in tmp_path.glob("killed*")} == {".parquet", ".parquet.bad.csv"}


def test_a_file_that_is_there_is_not_made_again_and_another_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = embed(encoder(), photos, tmp_path / "a.parquet")
    before = out.stat().st_mtime_ns
    assert embed(encoder(), photos, out).stat().st_mtime_ns == before
    for other, said in (
        (lambda: embed(encoder(1), photos, out), "of another encoder"),
        (lambda: embed(encoder(), photos / "red", out), "of other labels|of another number of images"),
        (lambda: embed(encoder(), photos, out, layer="last4"), "of another layer, last, not last4"),
        (lambda: embed(encoder(), photos, out, pool="none"), "of another pooling"),
    ):
        with pytest.raises(UserError, match=said):
            other()
        assert out.stat().st_mtime_ns == before and not (tmp_path / "a.parquet.parts").exists()
    embed(encoder(1), photos, out, overwrite=True)
    assert np.abs(vectors_in(out) - vectors_in(embed(encoder(), photos, tmp_path / "b.parquet"))).max() > 1e-3


@pytest.mark.parametrize("change", ["encoder", "source", "renamed image", "layer"])
def test_a_resume_with_something_else_is_refused(
    change: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    e = encoder()

    def stopped(*of: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "join", stopped)
        embed(e, photos, tmp_path / "a.parquet")
    parts = sorted(path.name for path in (tmp_path / "a.parquet.parts").iterdir())
    source, labels = open_source(photos), open_source(photos).labels
    if change == "renamed image":
        source.title = lambda index: f"other {index}"  # type: ignore[method-assign]
    if change == "source":
        source = ArraySource("a", np.random.default_rng(0).integers(0, 256, (300, SIDE, SIDE, 3), dtype=np.uint8), labels)
    embedder = Embedder(encoder(1) if change == "encoder" else e, layer="2" if change == "layer" else "last")
    with pytest.raises(UserError, match="say the same again, give another --out, or --overwrite"):
        embed_source(embedder, source, tmp_path / "a.parquet", encoder="", data="")
    assert sorted(path.name for path in (tmp_path / "a.parquet.parts").iterdir()) == parts


def test_the_digest_is_of_all_that_a_vector_depends_on() -> None:
    e = encoder()
    assert encoder_digest(e) == encoder_digest(encoder()) != encoder_digest(encoder(1))
    images = e.images.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    others = [Encoder(e.vit, images, e.training_conditioning), Encoder(e.vit, e.images, None)]
    flipped = Encoder(e.vit, e.images.model_copy(update={"symmetry": "mirror"}), e.training_conditioning)  # not seen at inference
    assert encoder_digest(flipped) == encoder_digest(e)
    assert len({encoder_digest(each) for each in (e, *others)}) == 3


# ---- of any size


class Generated(ArraySource):
    """n images that are drawn when they are read."""

    def __init__(self, n: int, broken: int = 10**9) -> None:
        self.name, self.labels, self.n, self.broken = "generated", None, n, broken

    def __len__(self) -> int:
        return self.n

    def raw(self, index: int) -> Pixels:
        if index % self.broken == self.broken - 1:
            raise BadImageError("drawn broken")
        return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_memory_does_not_grow_with_the_collection(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tensors and Arrow hold besides Python is in the resident set, which benchmarks/embed.py measures."""
    import tracemalloc

    monkeypatch.setattr(embedding, "PART_ROWS", 256)
    peaks = []
    for n in (768, 3072):
        tracemalloc.start()
        embed_source(Embedder(encoder(), pool="none"), Generated(n, 100), tmp_path / f"{n}.{ending}", encoder="", data="")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(vectors_in(tmp_path / f"{n}.{ending}")) == n - n // 100
    assert peaks[1] < 1.25 * peaks[0] and peaks[1] < 3072 * TOKENS * WIDTH * 2  # less than the vectors alone


def test_npz_is_read_by_numpy_and_mapped_by_us(photos: Path, tmp_path: Path, small_parts: None) -> None:
    out = embed(encoder(), photos, tmp_path / "a.npz", pool="none")
    arrays = np.load(out, allow_pickle=False)
    assert arrays["vector"].shape == (298, TOKENS, WIDTH) and arrays["path"][0] == "green/000.png"
    assert json.loads(str(arrays["metadata"]))["shape"] == [TOKENS, WIDTH]
    assert all(member.compress_type == zipfile.ZIP_STORED for member in zipfile.ZipFile(out).infolist())
    ours = open_embeddings(out)
    assert np.array_equal(np.concatenate([block for _, block in ours.blocks()]), arrays["vector"].reshape(298, -1))
    assert ours.rows("label", np.array([297, 0])).tolist() == ["red", "green"]


# ---- mistakes, and the command


def test_mistakes_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.parquet").write_bytes(b"PAR1")
    bad = ArraySource("b", np.zeros((2, SIDE, SIDE, 3), np.uint8), None)
    bad.raw = lambda index: (_ for _ in ()).throw(BadImageError("gone"))  # type: ignore[assignment, method-assign]
    for call, said in (
        (lambda: embed(encoder(), photos, tmp_path / "a.csv"), r"ends with \.parquet or \.npz"),
        (lambda: embed(encoder(), photos, tmp_path / "a.npz", layer="4"), "a block from 1 to 3"),
        (lambda: embed(encoder(), photos, tmp_path / "a.npz", layer="first"), "choose last, last4"),
        (lambda: embed(encoder(), photos, tmp_path / "a.npz", pool="max"), "choose mean or none"),
        (lambda: embed(encoder(), photos, tmp_path / "a.npz", precision="fp8"), "choose fp32 or fp16 or bf16"),
        (lambda: embed(encoder(), None, tmp_path / "a.npz"), "give --data SRC"),
        (lambda: embed(tmp_path, photos, tmp_path / "a.npz"), "no"),
        (lambda: embed(encoder(), photos, tmp_path / "foreign.parquet"), "no file of embeddings"),
        (lambda: embed_source(Embedder(encoder()), bad, tmp_path / "c.npz", encoder="", data=""), "no image could be read"),
    ):
        with pytest.raises(UserError, match=said):
            call()
    assert [path.name for path in tmp_path.glob("*.parts")] == []


def test_an_address_is_held_without_its_password(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(photos)
    monkeypatch.setattr("jepakit.data.opening.open_source", lambda *_, **__: source)
    out = embed(encoder(), "https://me:secret@host/a.tar?X-Signature=secret", tmp_path / "a.npz")
    assert open_embeddings(out).about["data"] == "https://host/a.tar" and b"secret" not in out.read_bytes()


def test_a_folder_of_the_users_is_not_taken_for_parts(tmp_path: Path) -> None:
    mine = tmp_path / "a.npz.parts/notes.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds notes\.txt, which jepakit embed did not write"):
            embed_source(Embedder(encoder()), Generated(3), tmp_path / "a.npz", encoder="", data="", overwrite=overwrite)
    assert mine.read_text() == "precious" and not (tmp_path / "a.npz").exists()
    mine.rename(mine.with_name("embedding.json"))  # no JSON
    with pytest.raises(UserError, match="broken: begin again with --overwrite"):
        embed_source(Embedder(encoder()), Generated(3), tmp_path / "a.npz", encoder="", data="")
    embed_source(Embedder(encoder()), Generated(3), tmp_path / "a.npz", encoder="", data="", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_a_full_disk_leaves_no_half_of_a_file_and_the_same_call_goes_on(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(parts: Any, rows: int, draft: Path, about: Any) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    out = tmp_path / f"a.{ending}"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*No space left"):
        patch.setattr(f"jepakit.evaluation.embeddings.parts._write_{ending}", full)
        embed_source(Embedder(encoder()), Generated(3), out, encoder="", data="")
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}.parts"]
    embed_source(Embedder(encoder()), Generated(3), out, encoder="", data="")
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]


def test_features_that_are_not_finite_stop_it_with_the_image_named(tmp_path: Path) -> None:
    e = encoder()
    e.vit.norm.weight.data[:] = 1e6  # tokens are stored as half floats
    with pytest.raises(UserError, match=r"the features of 0 are not finite"):
        embed_source(Embedder(e, pool="none"), Generated(3), tmp_path / "a.npz", encoder="", data="")


def test_a_name_that_is_no_text_is_written_with_escapes(tmp_path: Path) -> None:
    source = Generated(2)
    source.title = lambda index: os.fsdecode(b"caf\xe9.png")  # type: ignore[method-assign]
    for ending in ("parquet", "npz"):
        embed_source(Embedder(encoder()), source, tmp_path / f"a.{ending}", encoder="", data="")
        assert open_embeddings(tmp_path / f"a.{ending}").rows("path", np.arange(2)).tolist() == [r"caf\udce9.png"] * 2


def test_the_command_takes_a_run_and_its_own_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(str(photos), tmp_path / "run", "small", "ijepa", set=[*TINY, "optim.steps=2", "run.precision=fp32"])
    out = tmp_path / "vectors.parquet"
    cli.main(["embed", str(run.path), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    about = open_embeddings(out).about
    assert about["encoder"] == str(run.path.resolve()) and about["data"] == str(photos) and about["precision"] == "fp32"
    features, _ = extract(open_source(photos), {"loaded": jepakit.load(run.path)})
    assert np.array_equal(vectors_in(out), features["loaded"].last.numpy())
    assert about["weights"] == encoder_digest(jepakit.load(run.path))
    (tmp_path / "t.csv").write_text("file,dx\ngreen/001.png,x\nred/002.png,y\n")
    words = ["embed", str(run.path), "--out", str(tmp_path / "t.parquet"), "--table", str(tmp_path / "t.csv"), "--labels", "dx"]
    cli.main(words)
    labels = dict(zip(*pq.read_table(tmp_path / "t.parquet").select(["path", "label"]).to_pydict().values(), strict=True))
    assert {path: label for path, label in labels.items() if label} == {"green/001.png": "x", "red/002.png": "y"}
    cli.main(["embed", f"{run.path}@2", "--data", str(photos), "--out", str(tmp_path / "step.npz")])
    assert open_embeddings(tmp_path / "step.npz").about["encoder"] == f"{run.path.resolve()}@2"
    assert np.array_equal(vectors_in(tmp_path / "step.npz"), vectors_in(out))
