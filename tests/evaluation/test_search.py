"""Nearest images: what brute force finds, ties included, from files of any size; and the page that shows them."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

import jepakit
from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError
from jepakit.evaluation.embeddings import embedding, index
from jepakit.evaluation.embeddings.embedder import Embedder
from jepakit.evaluation.embeddings.embedding import embed, embed_source
from jepakit.evaluation.embeddings.files import BLOCK_ROWS, ArrayEmbeddings
from jepakit.evaluation.embeddings.index import Index
from jepakit.evaluation.embeddings.search import search
from jepakit.training.train import pretrain
from test_embed import Generated, encoder, vectors_in
from test_resume import TINY


def brute_force(vectors: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """Every cosine in float64, each by its own sum; sorted, of equals the lower row first."""
    x, q = (np.asarray(v, np.float64) for v in (vectors, queries))
    x, q = (v / np.maximum(np.sqrt((v * v).sum(1, keepdims=True)), 1e-300) for v in (x, q))
    cosines = np.stack([(x * one).sum(1) for one in q])
    order = np.stack([np.lexsort((np.arange(len(x)), -row)) for row in cosines])[:, :k]
    return np.take_along_axis(cosines, order, 1), order


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 25), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_the_nearest_are_those_of_brute_force(n: int, m: int, k: int, block: int, seed: int, few: bool) -> None:
    """few: coordinates of three values, so that many rows are equal, or equally far; some rows are 0."""
    draw = np.random.default_rng(seed)
    x, q = ((draw.integers(-1, 2, (rows, 4)) if few else draw.standard_normal((rows, 4))).astype(np.float32) for rows in (n, m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jepakit.evaluation.embeddings.files.BLOCK_ROWS", block)
        patch.setattr(index, "_QUERIES", 4)
        patch.setattr(index, "_PAIRS", 7)
        found = Index((x, [f"{i}.png" for i in range(n)])).search(q, k)
    scores, rows = brute_force(x, q, k)
    assert found.scores.shape == (m, min(k, n)) and found.paths == [[f"{i}.png" for i in row] for row in found.indices]
    np.testing.assert_allclose(found.scores, scores, atol=1e-12)
    if few:  # cosines of equal value may differ by rounding: equal rows are what must be in order
        for mine in found.indices.tolist():
            for row in mine:
                same = np.flatnonzero((x == x[row]).all(1))
                taken = [r for r in mine if r in same]
                assert taken == same[: len(taken)].tolist()
    else:
        assert np.array_equal(found.indices, rows)


def test_equal_rows_are_equally_near_wherever_they_lie_and_the_lower_comes_first() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3 * BLOCK_ROWS + 5, 33)).astype(np.float32)
    same = np.sort(draw.choice(len(x), 40, replace=False))
    x[same] = x[same[0]] * draw.choice([1.0, 2.0, 4.0], (40, 1)).astype(np.float32)  # cosine has no length
    found = Index((x, [""] * len(x))).search(x[same[0]], 25)
    assert found.indices[0].tolist() == same[:25].tolist() and len(set(found.scores[0])) == 1
    assert found.scores[0, 0] == pytest.approx(1, abs=1e-12)


def test_what_float32_cannot_tell_apart_is_in_the_right_order() -> None:
    """Cosines that differ by 1e-9: products in single precision would order them by chance."""
    angles = np.linspace(0, 1e-3, 500)
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    order = np.random.default_rng(0).permutation(500)
    found = Index((x[order], [str(i) for i in order])).search(np.array([1.0, 0.0]), 40)
    assert found.paths[0] == [str(i) for i in range(40)]


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_a_cosine_is_of_directions_whatever_the_lengths(scale: float) -> None:
    """Neither float32 nor the square of such numbers holds them."""
    draw = np.random.default_rng(0)
    x, q = draw.standard_normal((9, 5)), draw.standard_normal((4, 5))
    scores, rows = brute_force(x, q, 3)
    found = Index((x * scale, [*"abcdefghi"])).search(q * scale, 3)
    assert found.indices.tolist() == rows.tolist()
    np.testing.assert_allclose(found.scores, scores, atol=1e-12)


@pytest.mark.parametrize("ending", ["parquet", "npz"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_file_gives_what_its_vectors_give(ending: str, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PART_ROWS", 128)
    e = Embedder(encoder(), precision=precision)
    out = embed_source(e, Generated(400, 50), tmp_path / f"a.{ending}", encoder="", data="")
    vectors = vectors_in(out)
    found = Index(out).search(vectors[::7], 9)
    scores, rows = brute_force(vectors, vectors[::7], 9)
    assert np.array_equal(found.indices, rows) and np.array_equal(found.scores, scores)
    kept = [i for i in range(400) if i % 50 != 49]
    assert found.paths == [[str(kept[row]) for row in each] for each in rows]
    one = Index(out).search(torch.from_numpy(vectors[7].copy()), 9)
    assert len(Index(out)) == 392 and np.array_equal(one.indices[0], rows[1])
    own = search(out, row=3, k=9)[0]
    assert 3 not in own.rows and own.rows == [row for row in brute_force(vectors, vectors[3:4], 10)[1][0] if row != 3]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, Path]:
    """A run, its images, and their vectors."""
    root, draw = tmp_path_factory.mktemp("collection"), np.random.default_rng(0)
    for name, c in (("green", 1), ("red & <b>", 0)):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(0, 120, (20, 28, 3))
            pixels[..., c] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"photos/{name}/{i:02}.png")
    run = pretrain(str(root / "photos"), root / "run", "small", "ijepa", set=[*TINY, "optim.steps=2", "run.precision=fp32"])
    return run, root / "photos", embed(run, root / "photos", root / "a.parquet")


def test_an_image_finds_itself_by_path_by_pil_and_in_a_folder(collection: tuple[Run, Path, Path]) -> None:
    _, photos, file = collection
    name = "green/05.png"
    by_file, *others = search(file, photos / name, k=3)
    assert not others and by_file.paths[0] == name and by_file.scores[0] == pytest.approx(1, abs=1e-6)
    assert by_file.labels[0] == "green" and len(by_file.rows) == 3
    index = jepakit.Index(file)
    image = Image.open(photos / name)
    for query in (image, str(photos / name), [photos / name], [image]):
        found = index.search(query, 3)
        assert found.indices[0].tolist() == by_file.rows and found.paths[0] == by_file.paths
    turned, content = image.transpose(Image.Transpose.ROTATE_90), io.BytesIO()
    turned.getexif()[0x0112] = 6  # what shows it upright again
    turned.save(content, "PNG", exif=turned.getexif())
    assert index.search(Image.open(content), 1).paths[0] == [name]
    all_of_them = search(file, photos, k=1)
    assert [result.paths[0] for result in all_of_them] == [result.query for result in all_of_them]


def test_the_encoder_must_be_the_one_that_made_the_file(collection: tuple[Run, Path, Path], tmp_path: Path) -> None:
    run, photos, file = collection
    moved = run.path.rename(run.path.with_name("moved"))
    try:
        with pytest.raises(UserError, match="if it lies elsewhere now, give --encoder"):
            search(file, photos / "green/00.png")
        assert search(file, photos / "green/00.png", encoder=moved)[0].paths[0] == "green/00.png"
        assert search(file, row=0)[0].paths  # wants no encoder
    finally:
        moved.rename(run.path)
    other = pretrain(str(photos), tmp_path / "other", "small", "ijepa", set=[*TINY, "optim.steps=2", "seed=7"])
    with pytest.raises(UserError, match="has other weights than the encoder that made"):
        search(file, photos / "green/00.png", encoder=other)
    with pytest.raises(UserError, match="has other weights"):
        Index(file, jepakit.load(other.path))


def test_mistakes_of_a_search_are_one_sentence(collection: tuple[Run, Path, Path], tmp_path: Path) -> None:
    run, photos, file = collection
    (tmp_path / "broken.png").write_bytes(b"no image")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    tokens = embed(run, photos, tmp_path / "tokens.npz", pool="none")
    for call, said in (
        (lambda: search(file), "what to look for"),
        (lambda: search(file, photos, row=1), "what to look for"),
        (lambda: search(file, row=24), "has the rows 0 to 23"),
        (lambda: search(file, tmp_path / "broken.png"), "cannot be read: none of JPEG"),
        (lambda: search(tmp_path / "none.parquet", row=1), "no file"),
        (lambda: search(tmp_path / "other.npz", row=1), "no file of embeddings"),
        (lambda: search(tokens, row=1), "embed with --pool mean"),
        (lambda: Index(file).search(np.zeros((1, 3), np.float32)), "vectors of 16 numbers, the query has 3"),
        (lambda: Index(file).search(np.full(16, np.nan)), "not finite"),
        (lambda: Index((np.zeros((2, 3)), ["a"])), "n paths"),
        (lambda: Index((np.zeros((2, 3)), None)), "vectors, paths"),  # type: ignore[arg-type]
        (lambda: Index(([[1, 2], [3]], ["a", "b"])), "different lengths"),
        (lambda: Index(file).search([[1.0, 2.0], [3.0]]), "different lengths"),
        (lambda: search(file, ""), "what to look for"),
        (lambda: Index((np.ones((2, 3)), ["a", "b"])).search("a.png"), "give encoder="),
        (lambda: Index(file).search(photos / "green/00.png", 0), "k=0"),
        (lambda: Index(file).search([3 + 1j]), "a path or a PIL image"),
    ):
        with pytest.raises(UserError, match=said):
            call()


class Addresses(HTMLParser):
    """Whatever a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_the_command_prints_a_table_and_a_page_that_needs_nothing_else(
    collection: tuple[Run, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, photos, file = collection
    page = tmp_path / "new" / "page.html"
    cli.main(["search", str(file), str(photos / "red & <b>/03.png"), "-k", "4", "--html", str(page)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photos / "red & <b>/03.png") and lines[1].split()[0] == "1.0000" and "red & <b>/03.png" in lines[1]
    assert len([line for line in lines if line.startswith("  ")]) == 4
    text = page.read_text()
    read = Addresses(text)
    assert len([a for a in read.found if a.startswith("data:image/jpeg;base64,")]) == 5
    assert all(address.startswith("data:") for address in read.found)  # nothing is fetched
    assert not re.search(r"https?://|url\(|@import|<script", text) and not {"script", "b>", "iframe"} & {*read.tags}
    assert "red &amp; &lt;b&gt;/03.png" in text and "prefers-color-scheme: dark" in text
    cli.main(["search", str(file), "--row", "0", "-k", "2", "--html", str(page)])
    assert page.read_text().count("data:image/jpeg") == 3
    before = file.read_bytes()
    with pytest.raises(SystemExit):  # a slip of the tongue costs no file
        cli.main(["search", str(file), "--row", "0", "--html", str(file)])
    assert "ends with .html" in capsys.readouterr().err and file.read_bytes() == before


def test_a_page_without_the_images_says_so(
    collection: tuple[Run, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, photos, file = collection
    away = photos.rename(photos.with_name("away"))
    try:
        cli.main(["search", str(file), str(away / "green/00.png"), "-k", "2", "--html", str(tmp_path / "a.html")])
    finally:
        away.rename(photos)
    assert "without the images of the file" in caplog.text
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") == 1  # the query


def test_memory_of_a_search_does_not_grow_with_the_file() -> None:
    import tracemalloc

    peaks = []
    for n in (2, 8):
        x = np.random.default_rng(0).standard_normal((n * BLOCK_ROWS, 32)).astype(np.float32)
        rows = ArrayEmbeddings({"vector": x, "path": np.array([""] * len(x))}, {})
        tracemalloc.start()
        index.nearest_rows(rows, x[:300], 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
