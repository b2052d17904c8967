"""The foreground of a crop: Otsu's threshold, contrast, mask files, and the loader's masks by them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.foreground import above_otsu, of_contrast, of_mask, read_mask
from jepakit.data.formats.folder import FolderSource
from jepakit.data.loader import Batch, Loader
from jepakit.data.sources import ArraySource, Source
from jepakit.model.images import ImageSettings, turned
from jepakit.model.masking.masks import MultiBlock

GRID = (4, 4)
LAW = MultiBlock(min_keep=1, prior="contrast", bias=1)
WHOLE = ImageSettings(size=32, crop_scale=(1, 1), crop_aspect=(1, 1), symmetry="mirror", max_bad=0.5)


def spotted(count: int, side: int = 32) -> np.ndarray:
    """Images of one colour each with noise in one patch of the grid: (n, H, W, 3)."""
    draw = np.random.default_rng(0)
    images = np.broadcast_to(draw.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8), (count, side, side, 3)).copy()
    for image in images:
        row, column = draw.integers(0, 4, 2) * (side // 4)
        image[row : row + side // 4, column : column + side // 4] = draw.integers(0, 256, (side // 4, side // 4, 3))
    return images


def made(source: Source, images: ImageSettings = WHOLE, law: MultiBlock = LAW, **more: Any) -> Loader:
    return Loader(source, images, law, GRID, 8, 0, **more)


def target_grids(batch: Batch) -> np.ndarray:
    """(B, M, N) of a batch in one part."""
    (masks,) = batch.masks
    grids = np.zeros((len(masks.target_lengths), 16), bool)
    grids[np.repeat(np.arange(len(grids)), masks.target_lengths), masks.targets] = True
    return grids.reshape(masks.images, -1, 16)


def alike(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(x, n), getattr(y, n)) for x, y in zip(a.masks, b.masks, strict=True) for n in vars(x))


# ---- patches


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=20).filter(lambda x: len(set(x)) > 1))
def test_otsus_threshold_parts_values_with_the_most_variance_between(values: list[int]) -> None:
    def between(threshold: float) -> float:
        low, high = ([v for v in values if (v > threshold) == up] for up in (False, True))
        return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2

    found = above_otsu(np.array(values, np.float64))
    least, most = (
        min(v for v, up in zip(values, found, strict=True) if up),
        max(v for v, up in zip(values, found, strict=True) if not up),
    )
    assert least > most
    best = max(between(t) for t in sorted(set(values))[:-1])
    assert between(most) == pytest.approx(best, rel=1e-12)


def test_contrast_is_the_deviation_within_a_patch_of_each_channel() -> None:
    draw = np.random.default_rng(1)
    strength = draw.random((4, 4)) * 60
    image = 128 + draw.standard_normal((3, 32, 32)) * np.kron(strength, np.ones((8, 8)))
    image += np.kron(draw.random((3, 4, 4)) * 1000, np.ones((8, 8)))  # its own brightness and colour are no contrast
    deviations = np.array(
        [
            np.sqrt(np.mean([image[c, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].var() for c in range(3)]))
            for i in range(4)
            for j in range(4)
        ]
    )
    assert np.array_equal(of_contrast(torch.from_numpy(image), GRID), above_otsu(deviations))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_image_without_contrast_is_all_foreground(dtype: torch.dtype) -> None:
    flat = torch.full((3, 24, 32), 77).to(dtype) * (1 if dtype == torch.uint8 else 0.1234567)
    coloured = flat.clone()
    coloured[1, 6:12, 8:16] = 3  # a patch of another colour
    assert of_contrast(flat, GRID).all() and of_contrast(coloured, GRID).all()
    coloured[1, 7, 9] = 9
    assert np.flatnonzero(of_contrast(coloured, GRID)).tolist() == [5]


def test_a_patch_is_of_the_mask_where_half_of_it_is() -> None:
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[0:8, 0:4, 1] = 1  # half of patch 0
    mask[0:8, 8:11, 0] = 255  # less than half of patch 1
    mask[24:32, 24:32] = 7
    assert np.flatnonzero(of_mask(mask, GRID)).tolist() == [0, 15]


# ---- the loader's masks


@pytest.mark.parametrize("symmetry", ["mirror", "d4"])
@pytest.mark.parametrize("crop", ["same", "own"])
@pytest.mark.parametrize("more", [{}, {"crop_scale": (0.5, 1.0), "crop_aspect": (0.75, 1.33)}], ids=["whole", "crops"])
def test_targets_lie_on_the_foreground_of_the_view_that_they_are_taken_from(
    crop: str, symmetry: str, more: dict[str, Any]
) -> None:
    images = ImageSettings.model_validate({**WHOLE.model_dump(), **more, "target_crop": crop, "symmetry": symmetry})
    loader = made(ArraySource("spots", spotted(40), None), images)
    mirrored = 0
    for step in range(5):
        batch = loader.batch(step)
        view = turned(batch.views[-1], batch.turns[-1])
        foreground = np.stack([of_contrast(image, GRID) for image in view])
        assert (target_grids(batch) & foreground[:, None]).any(-1).all()
        assert batch.turns[-1] is not None
        mirrored += int(batch.turns[-1].any(1).sum())
        if not more:  # one patch alone is foreground, and few of two crops have it in one place
            assert foreground.sum() == 8
    assert 5 < mirrored < 35 or (symmetry == "d4" and 25 < mirrored < 40)


def test_masks_are_the_same_for_any_threads_processes_parts_and_order_of_steps() -> None:
    source, law = ArraySource("spots", spotted(40), None), LAW.model_copy(update={"draws": 2, "bias": 0.7})
    images = WHOLE.model_copy(update={"crop_scale": (0.3, 1.0)})
    alone = [made(source, images, law, threads=1).batch(step) for step in range(7)]
    many = made(source, images, law, threads=4)
    assert all(alike(alone[step], many.batch(step)) for step in (6, 2, 0, 5))
    parts = made(source, images, law, micro_batches=2).batch(3).masks
    shared = [made(source, images, law, process=p, processes=4).batch(3).masks[0] for p in range(4)]
    for name in ("context", "targets", "context_lengths", "target_lengths"):
        whole = getattr(alone[3].masks[0], name)
        for pieces in (parts, shared):
            assert np.array_equal(np.concatenate([getattr(m, name) for m in pieces]), whole)
    both = [made(source, images, law, micro_batches=2, process=p, processes=2).batch(3).masks for p in range(2)]
    joined = [both[p][i] for i in range(2) for p in range(2)]
    assert np.array_equal(np.concatenate([m.targets for m in joined]), alone[3].masks[0].targets)
    assert not np.array_equal(alone[0].masks[0].targets, alone[5].masks[0].targets)


def test_without_bias_masks_are_those_without_a_prior() -> None:
    source = ArraySource("spots", spotted(40), None)
    law = MultiBlock(min_keep=1, prior="contrast", bias=0)
    assert alike(made(source, law=law).batch(2), made(source, law=MultiBlock(min_keep=1)).batch(2))
    assert not alike(made(source).batch(2), made(source, law=MultiBlock(min_keep=1)).batch(2))


# ---- mask files


def saved(folder: Path, count: int = 16) -> tuple[Path, Path]:
    """Images of noise, whose contrast tells nothing, and masks of one patch each, another for each image."""
    photos, masks, draw = folder / "photos", folder / "masks", np.random.default_rng(0)
    for path in (photos / "a", photos / "b", masks / "a", masks / "b"):
        path.mkdir(parents=True)
    for i in range(count):
        name = f"{'ab'[i % 2]}/{i:02}"
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(photos / f"{name}.jpg")
        mask = np.zeros((32, 32), np.uint8)
        row, column = divmod(i % 16, 4)
        mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1 + i
        Image.fromarray(mask).save(masks / f"{name}.png")
    return photos, masks


def marked(loader: Loader, reading: np.ndarray, batch: Batch) -> np.ndarray:
    """The one patch of each row's mask, as `saved` made it, turned as the view is: (B, N)."""
    grids = np.zeros((len(reading), 4, 4), bool)
    for grid, index in zip(grids, reading, strict=True):
        number = int(Path(loader.source.title(int(index))).stem)
        grid[divmod(number % 16, 4)] = True
    assert batch.turns[-1] is not None
    which = batch.turns[-1][:, 0].numpy()
    grids[which] = grids[which][..., ::-1]
    return grids.reshape(-1, 16)


def law_of(masks: Path) -> MultiBlock:
    return MultiBlock(min_keep=1, prior="file", prior_folder=str(masks), bias=1)


def test_targets_lie_on_the_mask_of_each_image(tmp_path: Path) -> None:
    photos, masks = saved(tmp_path)
    loader = made(FolderSource(photos), law=law_of(masks))
    for step in range(4):
        batch, ids = loader.batch(step), loader.ids(step)
        assert (target_grids(batch) & marked(loader, ids, batch)[:, None]).any(-1).all()
    assert not loader.bad


def test_an_image_in_a_bad_ones_place_brings_its_own_mask(tmp_path: Path) -> None:
    photos, masks = saved(tmp_path)
    (photos / "a" / "04.jpg").write_bytes(b"broken")
    (masks / "b" / "07.png").unlink()
    Image.fromarray(np.ones((16, 32), np.uint8)).save(masks / "b" / "11.png")
    loader = made(FolderSource(photos), law=law_of(masks))
    bad = {i: loader.source.title(i) for i in range(16) if loader.source.title(i)[2:4] in ("04", "07", "11")}
    for step in range(2):
        batch, ids = loader.batch(step), loader.ids(step)
        reading = np.array([next((i + k) % 16 for k in range(16) if (i + k) % 16 not in bad) for i in ids.tolist()])
        assert (target_grids(batch) & marked(loader, reading, batch)[:, None]).any(-1).all()
    assert {loader.source.title(i)[2:4]: reason for i, reason in loader.bad.items()}.keys() == {"04", "07", "11"}
    reasons = {loader.source.title(i)[2:4]: reason for i, reason in loader.bad.items()}
    assert "no mask" in reasons["07"] and "b/07.*" in reasons["07"]
    assert "32x16" in reasons["11"] and "32x32" in reasons["11"]
    loader.look_again()  # a mask that lacks is not there again because the image can be read
    assert len(loader.bad) == 3


def test_two_masks_of_one_image_and_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    _, masks = saved(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(masks / "a" / "00.bmp")
    with pytest.raises(BadImageError, match="2 masks"):
        read_mask(masks, "a/00.jpg", (32, 32), 10**6)
    with pytest.raises(BadImageError, match="no mask"):
        read_mask(masks / "a", "../b/01.jpg", (32, 32), 10**6)
    assert read_mask(masks, "b/01.jpg", (32, 32), 10**6)[..., 0].sum() == 64 * 2


def test_a_folder_without_masks_is_said_at_once(tmp_path: Path) -> None:
    photos, _ = saved(tmp_path)
    with pytest.raises(UserError, match=r"none of eight images has a mask.*masking\.prior_folder"):
        made(FolderSource(photos), law=law_of(tmp_path / "elsewhere"))
