"""The embedded emoji set: what is in it, and that its split by identity leaks nothing."""

from importlib import resources

import numpy as np
import pytest

from jepakit.data.sets.emoji import emoji, held_out_identities

FOLDER = resources.files("jepakit.data.sets") / "emoji32"


def test_shapes_and_counts() -> None:
    e = emoji()
    n = len(e.images)
    assert 6200 <= n <= 6600
    assert e.images.shape == (n, 32, 32, 3) and e.images.dtype == np.uint8
    assert e.styles == ("noto", "noto-v1", "twemoji", "fluent-emoji-flat")
    assert len(e.groups) == 9
    assert (np.bincount(e.style) > 1000).all()
    assert emoji() is e


@pytest.mark.parametrize("kind, names", [("group", "groups"), ("identity", "identities"), ("style", "styles")])
def test_labels_index_their_names(kind: str, names: str) -> None:
    label, known = getattr(emoji(), kind), getattr(emoji(), names)
    assert label.shape == (len(emoji().images),) and label.dtype == np.int64
    assert set(label.tolist()) == set(range(len(known)))  # in range, and no name unused
    assert len(set(known)) == len(known)


def test_an_identity_has_one_group() -> None:
    e = emoji()
    assert len(np.unique(np.stack([e.identity, e.group]), axis=1).T) == len(e.identities)


def test_known_emoji_is_what_it_says() -> None:
    e = emoji()
    heart = e.images[e.identity == e.identities.index("red-heart")]
    assert len(heart) == 4  # one per style
    red, green, blue = heart[:, 16, 16].astype(int).T
    assert (red > 180).all() and (red > green + 50).all() and (red > blue + 50).all()
    assert (heart[:, 31, 0] == 255).all()  # the corner is background


def test_images_are_neither_blank_nor_repeated() -> None:
    flat = emoji().images.reshape(len(emoji().images), -1)
    assert (flat.std(1) > 0).all()
    assert len({row.tobytes() for row in flat}) == len(flat)  # so none is on both sides of a split either


def test_split_is_by_identity() -> None:
    e = emoji()
    test = held_out_identities(e.identity)
    assert test.shape == e.identity.shape and test.dtype == np.bool_
    assert not set(e.identity[test]) & set(e.identity[~test])
    assert 0.17 <= test.mean() <= 0.23
    assert set(e.group[test]) == set(range(9)) and set(e.style[test]) == set(range(4))


def test_split_depends_on_the_identity_alone() -> None:
    identity = np.arange(10_000)
    order = np.random.default_rng(0).permutation(identity)
    assert (held_out_identities(identity)[order] == held_out_identities(identity[order])).all()
    assert np.flatnonzero(held_out_identities(identity))[:5].tolist() == [3, 10, 18, 21, 33]  # published results rest on it
    assert (held_out_identities(identity, 0.1) <= held_out_identities(identity, 0.3)).all()  # a larger share only adds
    assert held_out_identities(identity, 0.3).mean() == pytest.approx(0.3, abs=0.02)
    assert not held_out_identities(identity, 0.0).any() and held_out_identities(identity, 1.0).all()


def test_files_are_small_and_licensed() -> None:
    sizes = {file.name: len(file.read_bytes()) for file in FOLDER.iterdir()}
    assert set(sizes) == {"emoji32.webp", "labels.json", "LICENSES.md"}
    assert sum(sizes.values()) <= 3_000_000
    text = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    for needed in (*emoji().styles, "Apache-2.0", "CC-BY-4.0", "MIT License", "Twitter, Inc", "Microsoft Corporation"):
        assert needed in text
