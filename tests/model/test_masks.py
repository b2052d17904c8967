"""Masks: the released collator draw for draw, the corrected law against exact probabilities, and what holds for all."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from jepakit.core import rng
from jepakit.core.errors import UserError
from jepakit.model.masking.masks import Masking, MultiBlock, Quadrants, RandomPatches, SingleBlock
from jepakit.model.masking.masks_released import block_sizes, released_grids
from jepakit.model.masking.packed_masks import Masks
from oracle import DRAWS, ORACLE

GRID = (14, 14)
COLLATOR: dict[str, Any] = ORACLE["collator_draws"]
GRIDS = {"paper_224_16": (14, 14), "paper_224_14": (16, 16)}
RELEASED = MultiBlock(compat="released")
Part = tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]


def parts(masks: Masks) -> list[Part]:
    """(image, context, blocks) of each draw."""
    contexts = np.split(masks.context, np.cumsum(masks.context_lengths)[:-1])
    blocks = np.split(masks.targets, np.cumsum(masks.target_lengths)[:-1])
    return [
        (
            int(image),
            tuple(contexts[draw].tolist()),
            tuple(tuple(b.tolist()) for b, owner in zip(blocks, masks.draw_of_block, strict=True) if owner == draw),
        )
        for draw, image in enumerate(masks.image_of_draw)
    ]


def context_grids(masks: Masks, patches: int) -> np.ndarray:
    grids = np.zeros((len(masks.context_lengths), patches), bool)
    grids[np.repeat(np.arange(len(grids)), masks.context_lengths), masks.context] = True
    return grids


def target_grids(masks: Masks, patches: int) -> np.ndarray:
    grids = np.zeros((len(masks.target_lengths), patches), bool)
    grids[np.repeat(np.arange(len(grids)), masks.target_lengths), masks.targets] = True
    return grids


def sides(block: tuple[int, ...], columns: int) -> tuple[int, int]:
    """Rows and columns of a block, which must be a full rectangle in raster order."""
    rows, cols = np.divmod(np.array(block), columns)
    full = [r * columns + c for r in range(rows.min(), rows.max() + 1) for c in range(cols.min(), cols.max() + 1)]
    assert list(block) == full
    return int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1


def covered(length: int, extent: int) -> np.ndarray:
    """Probability that each cell of a line lies under an interval whose first cell is uniform over all that fit."""
    tops = np.arange(extent - length + 1)
    return ((tops[:, None] <= np.arange(extent)) & (np.arange(extent) < tops[:, None] + length)).mean(0)


def cover(size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    return np.outer(covered(size[0], grid[0]), covered(size[1], grid[1])).ravel()


def paper_sizes(scale: tuple[float, float], aspect: tuple[float, float], n: int = 1500) -> dict[tuple[int, int], float]:
    """Probability of each (rows, columns) at 14x14 for independent uniform scale and aspect, by quadrature."""
    mid = (np.arange(n) + 0.5) / n
    area = 196 * (scale[0] + mid * (scale[1] - scale[0]))[:, None]
    ratio = (aspect[0] + mid * (aspect[1] - aspect[0]))[None]
    pairs = np.stack([np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))], -1).reshape(-1, 2).astype(int)
    sizes, count = np.unique(pairs, axis=0, return_counts=True)
    return {(int(h), int(w)): float(c / n**2) for (h, w), c in zip(sizes, count, strict=True)}


@pytest.fixture(scope="module")
def corrected() -> Masks:
    return MultiBlock().sample(GRID, np.arange(20_000), seed=1)


@pytest.fixture(scope="module")
def corrected_sizes(corrected: Masks) -> np.ndarray:
    """(images, 4, 2): rows and columns of each target block."""
    grids = target_grids(corrected, 196).reshape(-1, 4, 14, 14)
    return np.stack([grids.any(3).sum(2), grids.any(2).sum(2)], -1)


# --- the released collator ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_released_block_sizes_equal_the_collators_for_64_seeds(name: str) -> None:
    expected = COLLATOR[name]["block_sizes_seed0to63_predh_predw_ench_encw"]
    ours = [[*target, *context] for target, context in (block_sizes(RELEASED, GRIDS[name], s) for s in range(64))]
    assert ours == expected


@pytest.mark.parametrize("name", GRIDS)
def test_released_masks_equal_the_collators_draw_for_draw(name: str) -> None:
    import torch

    case = COLLATOR[name]
    generator = torch.Generator().manual_seed(case["torch_manual_seed"])  # its state runs on from batch to batch
    for step in range(len(case["batches"])):
        context, targets = released_grids(RELEASED, GRIDS[name], case["batch_size"], step, generator)
        own_context = [np.nonzero(image[0])[0].tolist() for image in context]
        own_targets = [[np.nonzero(block)[0].tolist() for block in image] for image in targets]
        assert own_context == DRAWS[f"{name}.b{step}.enc"][0].tolist()
        assert own_targets == DRAWS[f"{name}.b{step}.pred"].transpose(1, 0, 2).tolist()


def test_released_context_has_81_8_patches_before_trimming() -> None:
    alone = [RELEASED.sample(GRID, np.arange(1), seed=0, step=step).context_lengths[0] for step in range(5000)]
    assert np.mean(alone) == pytest.approx(81.8, abs=0.5)


def test_released_context_has_53_patches_in_batches_of_64_and_never_the_last_row_or_column() -> None:
    lengths, seen = [], np.zeros(196, bool)
    for step in range(250):
        masks = RELEASED.sample(GRID, np.arange(64), seed=0, step=step)
        assert len(set(masks.context_lengths)) == 1
        lengths.append(masks.context_lengths[0])
        seen[masks.context] = seen[masks.targets] = True
    assert np.mean(lengths) == pytest.approx(53.1, abs=1)
    seen = seen.reshape(GRID)
    assert not seen[-1].any() and not seen[:, -1].any() and seen[:-1, :-1].all()


def test_released_trimming_throws_away_the_bottom_rows() -> None:
    at_64 = np.concatenate([RELEASED.sample(GRID, np.arange(64), seed=0, step=s).context for s in range(60)])
    alone = np.concatenate([RELEASED.sample(GRID, np.arange(1), seed=0, step=s).context for s in range(2000)])
    share_64, share_1 = ((x // 14 >= 11).mean() for x in (at_64, alone))
    assert share_1 > 0.2 and share_64 < 0.06


# --- the corrected law -------------------------------------------------------------------------------------------


def test_corrected_block_sizes_follow_independent_scale_and_aspect(corrected_sizes: np.ndarray) -> None:
    law = paper_sizes((0.15, 0.2), (0.75, 1.5))
    drawn, count = np.unique(corrected_sizes[:, 0], axis=0, return_counts=True)
    observed = {(int(h), int(w)): int(c) for (h, w), c in zip(drawn, count, strict=True)}
    assert set(observed) <= set(law)
    names = [name for name, p in law.items() if p > 1e-3]
    expected = np.array([law[name] for name in names])
    seen = np.array([observed.get(name, 0) for name in names])
    assert stats.chisquare(seen, expected / expected.sum() * seen.sum()).pvalue > 1e-4


def test_corrected_blocks_of_an_image_share_a_size_and_images_differ(corrected_sizes: np.ndarray) -> None:
    assert (corrected_sizes == corrected_sizes[:, :1]).all()
    assert len(np.unique(corrected_sizes[:64, 0], axis=0)) > 4


def test_corrected_targets_cover_each_patch_exactly_as_often_as_geometry_says(corrected: Masks) -> None:
    law = paper_sizes((0.15, 0.2), (0.75, 1.5))
    expected = sum(p * cover(size, GRID) for size, p in law.items())
    blocks = target_grids(corrected, 196)
    # blocks of an image are independent but for their common size, so images are the sample
    per_image = blocks.reshape(-1, 4, 196).mean(1)
    z = (per_image.mean(0) - expected) / (per_image.std(0) / len(per_image) ** 0.5)
    assert (per_image.mean(0) > 0).all()
    assert np.abs(z).max() < 4.8


def test_corrected_contexts_cover_each_patch_exactly_as_often_as_geometry_says(corrected: Masks) -> None:
    law = paper_sizes((0.15, 0.2), (0.75, 1.5))
    side = np.rint(14 * np.sqrt(0.85 + 0.15 * (np.arange(100_000) + 0.5) / 100_000)).astype(int)
    inside = sum((side == s).mean() * cover((s, s), GRID) for s in np.unique(side))
    free = sum(p * (1 - cover(size, GRID)) ** 4 for size, p in law.items())
    grids = context_grids(corrected, 196)
    # a context is redrawn where fewer than 10 patches remain: too rare to see here
    z = (grids.mean(0) - inside * free) / (grids.std(0) / len(grids) ** 0.5)
    assert (grids.mean(0) > 0).all()
    assert np.abs(z).max() < 4.8


@pytest.mark.parametrize("axis", [0, 1])
def test_corrected_coverage_is_symmetric_under_flips(corrected: Masks, axis: int) -> None:
    for grids in (
        target_grids(corrected, 196).reshape(-1, 4, 196).mean(1),
        context_grids(corrected, 196).astype(float),
    ):
        field = grids.reshape(-1, *GRID)
        difference = field - np.flip(field, 1 + axis)
        z = difference.mean(0) / np.maximum(difference.std(0) / len(field) ** 0.5, 1e-12)
        assert np.abs(z).max() < 4.8


def test_corrected_context_may_cover_the_whole_grid_where_the_released_one_never_does() -> None:
    masks = MultiBlock(context_scale=(1.0, 1.0), targets=1, target_scale=(0.15, 0.15)).sample(GRID, np.arange(50), seed=0)
    for _, context, (block,) in parts(masks):
        assert sorted(context + block) == list(range(196))


def test_on_a_long_grid_too_the_default_context_covers_nearly_everything() -> None:
    masks = MultiBlock(allow_overlap=True).sample((6, 18), np.arange(500), seed=0)
    assert masks.context_lengths.min() >= 0.75 * 108
    assert context_grids(masks, 108).mean(0).min() > 0.3


def test_aspect_is_rows_over_columns() -> None:
    masks = MultiBlock(target_aspect=(2.0, 2.0), target_scale=(0.16, 0.16)).sample(GRID, np.arange(5), seed=0)
    assert {sides(block, 14) for _, _, blocks in parts(masks) for block in blocks} == {(8, 4)}


def test_min_keep_is_respected_and_changes_only_the_images_that_failed_it() -> None:
    free, ids = MultiBlock(min_keep=1), np.arange(2000)
    before, after = parts(free.sample(GRID, ids, seed=3)), parts(MultiBlock(min_keep=80).sample(GRID, ids, seed=3))
    assert min(len(context) for _, context, _ in after) >= 80
    short = [len(context) < 80 for _, context, _ in before]
    assert 0.1 < np.mean(short) < 0.9
    for failed, b, a in zip(short, before, after, strict=True):
        assert (a != b) == failed


def test_allowed_overlap_leaves_the_targets_in_the_context() -> None:
    masks = MultiBlock(allow_overlap=True, context_scale=(1.0, 1.0)).sample(GRID, np.arange(20), seed=0)
    assert (masks.context_lengths == 196).all()


# --- laws for every grid -----------------------------------------------------------------------------------------

SIDES = st.integers(4, 20)
LAWS = st.sampled_from(
    [
        MultiBlock(min_keep=1),
        MultiBlock(min_keep=1, allow_overlap=True),
        MultiBlock(min_keep=1, draws=2, contexts=2, targets=3),
        MultiBlock(min_keep=2, targets=2, target_scale=(0.05, 0.3), context_scale=(0.5, 0.9), context_aspect=(0.5, 2)),
        MultiBlock(min_keep=1, compat="released"),
        Quadrants(),
        SingleBlock(),
        RandomPatches(),
    ]
)


@settings(max_examples=80, deadline=None)
@given(law=LAWS, rows=SIDES, columns=SIDES, seed=st.integers(0, 2**63 - 1), step=st.integers(0, 1000))
def test_on_any_grid_masks_are_disjoint_sorted_in_bounds_and_blocks_rectangles(
    law: Masking, rows: int, columns: int, seed: int, step: int
) -> None:
    ids = np.array([0, 7, 10**12])
    grid = (rows, columns)
    released = isinstance(law, MultiBlock) and law.compat is not None
    if released:  # it relaxes disjointness, and may find no solution on a small grid
        try:
            masks = law.sample(grid, ids, seed=seed, step=step)
        except UserError:
            assume(False)
    else:
        law.check(grid)
        masks = law.sample(grid, ids, seed=seed, epoch=2, step=step)
    masks.require_on_grid(rows * columns)
    assert masks.image_of_draw.tolist() == sorted(masks.image_of_draw) and set(masks.image_of_draw) == {0, 1, 2}
    overlap_allowed = released or (isinstance(law, MultiBlock) and law.allow_overlap)
    for _, context, blocks in parts(masks):
        assert len(context) >= law.min_keep
        for patches in (context, *blocks):
            assert len(patches) and list(patches) == sorted(set(patches)) and patches[0] >= 0
        if not overlap_allowed:
            assert set(context).isdisjoint(p for block in blocks for p in block)
        if not isinstance(law, RandomPatches):
            for block in blocks:
                sides(block, columns)


@settings(max_examples=40, deadline=None)
@given(law=LAWS, rows=SIDES, columns=SIDES, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**4))
def test_masks_are_a_function_of_seed_epoch_and_id_whatever_the_batch(
    law: Masking, rows: int, columns: int, seed: int, epoch: int
) -> None:
    assume(not (isinstance(law, MultiBlock) and law.compat))
    grid, few, many = (rows, columns), [3, 5, 9], [9, 1, 5, 100, 3]
    alone = parts(law.sample(grid, np.array(few), seed=seed, epoch=epoch))
    assert alone == parts(law.sample(grid, np.array(few), seed=seed, epoch=epoch))
    among = parts(law.sample(grid, np.array(many), seed=seed, epoch=epoch))
    for i, identity in enumerate(few):
        j = many.index(identity)
        assert [p[1:] for p in alone if p[0] == i] == [p[1:] for p in among if p[0] == j]


def test_redrawn_masks_too_do_not_depend_on_the_batch() -> None:
    law, ids = MultiBlock(min_keep=85), np.arange(200)  # more than half of the first tries keep fewer
    whole, second = (parts(law.sample(GRID, x, seed=0)) for x in (ids, ids[100:]))
    assert [p[1:] for p in whole[100:]] == [p[1:] for p in second]
    assert len({p[1:] for p in whole}) > 195


@pytest.mark.parametrize("law", [MultiBlock(), SingleBlock(), RandomPatches()], ids=lambda x: x.kind)
def test_other_seeds_epochs_ids_and_draws_give_other_masks(law: Masking) -> None:
    law = law.model_copy(update={"draws": 2})
    ids = np.arange(100)

    def sample(**how: int) -> list[Part]:
        return parts(law.sample(GRID, ids, **{"seed": 0, "epoch": 0, **how}))

    base = sample()
    for other in (sample(seed=1), sample(epoch=1), sample(seed=1 << 40)):
        assert sum(a == b for a, b in zip(base, other, strict=True)) < 5
    assert len({p[1:] for p in base}) > 75  # 100 images, two draws of each; single blocks have few places
    assert sum(a[1:] == b[1:] for a, b in zip(base[::2], base[1::2], strict=True)) < 5


def test_released_masks_depend_on_the_step() -> None:
    first, again, other = (parts(RELEASED.sample(GRID, np.arange(4), seed=0, step=s)) for s in (3, 3, 4))
    assert first == again and first != other


def test_three_draws_and_two_contexts_stand_image_by_image() -> None:
    law = MultiBlock(draws=3, contexts=2)
    masks = law.sample(GRID, np.array([11, 12]), seed=0)
    assert masks.image_of_draw.tolist() == [0] * 6 + [1] * 6
    assert masks.draw_of_block.tolist() == np.repeat(np.arange(12), 4).tolist()
    assert len(masks.context_lengths) == 12 and len(masks.target_lengths) == 48
    drawn = parts(masks)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):  # contexts of one draw share its targets
        assert first[2] == second[2]
    assert len({blocks for _, _, blocks in drawn}) == 6
    assert sum(a[1] != b[1] for a, b in zip(drawn[::2], drawn[1::2], strict=True)) >= 2


# --- the ablations' laws -----------------------------------------------------------------------------------------


@given(rows=SIDES, columns=SIDES)
@settings(max_examples=30, deadline=None)
def test_quadrants_partition_the_grid_along_its_middle(rows: int, columns: int) -> None:
    halves = [{rows // 2, rows - rows // 2}, {columns // 2, columns - columns // 2}]
    for _, context, blocks in parts(Quadrants().sample((rows, columns), np.arange(8), seed=0)):
        assert len(blocks) == 3
        assert sorted(sum(blocks, context)) == list(range(rows * columns))
        for quarter in (context, *blocks):
            h, w = sides(quarter, columns)
            assert h in halves[0] and w in halves[1]


def test_every_quadrant_is_the_context_equally_often() -> None:
    masks = Quadrants().sample((4, 4), np.arange(20_000), seed=0)
    first = masks.context[:: masks.context_lengths[0]]
    corners, count = np.unique(first, return_counts=True)
    assert corners.tolist() == [0, 2, 8, 10]
    assert stats.chisquare(count).pvalue > 1e-4


def test_single_block_covers_its_scale_and_the_context_is_the_rest() -> None:
    masks = SingleBlock().sample(GRID, np.arange(3000), seed=0)
    for _, context, (block,) in parts(masks):
        assert sorted(context + block) == list(range(196))
    assert masks.target_lengths.mean() == pytest.approx(0.6 * 196, rel=0.02)
    shapes = {sides(block, 14) for _, _, (block,) in parts(masks)}
    assert (9, 13) in shapes and (13, 9) in shapes  # aspect .75 .. 1.5: sqrt(.6 * 196 * 1.5) = 13.3


def test_random_patches_are_exactly_that_many_and_every_set_alike() -> None:
    masks = RandomPatches().sample((4, 5), np.arange(20_000), seed=0)
    assert (masks.target_lengths == 12).all() and (masks.context_lengths == 8).all()
    together = target_grids(masks, 20).astype(float)
    pairs = together.T @ together / len(together)
    expected = np.where(np.eye(20) > 0, 12 / 20, 12 * 11 / (20 * 19))
    z = (pairs - expected) / np.sqrt(expected * (1 - expected) / len(together))
    assert np.abs(z).max() < 4.8


# --- refusals ----------------------------------------------------------------------------------------------------


def suggested(message: str) -> dict[str, int]:
    """The settings masking.NAME=NUMBER that a refusal says to set."""
    return {name: int(value) for name, value in re.findall(r"set masking\.(\w+)=(\d+)", message)}


@pytest.mark.parametrize(
    ("law", "grid"),
    [
        (MultiBlock(min_keep=190), (14, 14)),
        (MultiBlock(min_keep=14), (4, 4)),
        (MultiBlock(min_keep=120, contexts=3), (14, 14)),
        (SingleBlock(min_keep=100), (14, 14)),
        (RandomPatches(min_keep=79), (14, 14)),
        (Quadrants(min_keep=50), (14, 14)),
    ],
    ids=str,
)
def test_an_impossible_request_is_refused_with_a_setting_that_passes(law: Masking, grid: tuple[int, int]) -> None:
    with pytest.raises(UserError) as refusal:
        law.check(grid)
    assert str(law.min_keep) in str(refusal.value)
    settings_that_pass = suggested(str(refusal.value))
    assert settings_that_pass["min_keep"] < law.min_keep
    law = law.model_copy(update=settings_that_pass)
    law.check(grid)
    masks = law.sample(grid, np.arange(500), seed=0)
    assert masks.context_lengths.min() >= law.min_keep


@pytest.mark.parametrize("grid", [(8, 8), (9, 7)])
def test_a_released_law_too_large_for_the_grid_is_refused_with_a_setting_that_passes_at_step_0(
    grid: tuple[int, int],
) -> None:
    law = MultiBlock(compat="released", min_keep=30)
    with pytest.raises(UserError) as refusal:
        law.check(grid)
    law.model_copy(update=suggested(str(refusal.value))).check(grid)


@pytest.mark.parametrize(("grid", "min_keep"), [((8, 8), 10), ((7, 7), 8)])
def test_a_released_law_that_passes_the_check_serves_every_step(grid: tuple[int, int], min_keep: int) -> None:
    law = MultiBlock(compat="released", min_keep=min_keep)
    try:
        law.check(grid)
    except UserError:
        return  # refused before the run: that is what should happen
    for step in range(50):
        law.sample(grid, np.arange(2), seed=0, step=step)


NO_ROOM = [RandomPatches(target_ratio=0.99), SingleBlock(target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))]


@pytest.mark.parametrize("law", NO_ROOM, ids=str)
def test_a_request_that_no_min_keep_serves_names_another_setting(law: Masking) -> None:
    with pytest.raises(UserError) as refusal:
        law.check((4, 4))
    assert suggested(str(refusal.value)).get("min_keep", 0) != law.min_keep


@pytest.mark.parametrize("scale", [(0.9, 0.6), (0.5, 5.0)])
def test_contradictory_ranges_of_a_single_block_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="target_scale"):
        SingleBlock(target_scale=scale)


def test_grids_below_4x4_are_refused_and_4x4_is_served() -> None:
    with pytest.raises(UserError, match="4x4"):
        MultiBlock(min_keep=1).check((3, 8))
    MultiBlock(min_keep=1).check((4, 4))


def test_contradictory_ranges_are_refused() -> None:
    for wrong in ({"target_scale": (0.3, 0.2)}, {"context_scale": (0.9, 1.1)}, {"compat": "released", "draws": 2}):
        with pytest.raises(ValueError, match=r"comes first|largest is 1|draws=1"):
            MultiBlock.model_validate(wrong)


# --- masks of your own -------------------------------------------------------------------------------------------


def test_own_masks_are_ragged_and_keep_their_order() -> None:
    masks = Masks.from_indices([[5, 1, 3], [2]], [[[9, 8]], [[0], [7, 6, 4], [11]]])
    assert parts(masks) == [(0, (5, 1, 3), ((9, 8),)), (1, (2,), ((0,), (7, 6, 4), (11,)))]
    assert masks.context_lengths.tolist() == [3, 1] and masks.target_lengths.tolist() == [2, 1, 3, 1]
    assert masks.draw_of_block.tolist() == [0, 1, 1, 1] and masks.image_of_draw.tolist() == [0, 1]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 63), min_size=1, max_size=5),
            st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=4), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_own_masks_come_back_as_given(images: list[tuple[list[int], list[list[int]]]]) -> None:
    masks = Masks.from_indices([c for c, _ in images], [t for _, t in images])
    given_parts = [(i, tuple(c), tuple(tuple(b) for b in t)) for i, (c, t) in enumerate(images)]
    assert parts(masks) == given_parts


@pytest.mark.parametrize(
    ("context", "targets", "message"),
    [
        ([[1]], [[[2]], [[3]]], "2"),
        ([[1], []], [[[2]], [[3]]], "image 1"),
        ([[1], [2]], [[], [[3]]], "image 0"),
        ([[1]], [[[2], []]], "image 0"),
        ([[-1]], [[[2]]], "negative"),
        ([[1]], [[[2, -3]]], "negative"),
    ],
)
def test_own_masks_that_make_no_sense_are_refused(context: list, targets: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Masks.from_indices(context, targets)


def test_an_index_outside_the_grid_is_refused_with_its_number() -> None:
    masks = Masks.from_indices([[0, 15]], [[[3]]])
    masks.require_on_grid(16)
    with pytest.raises(UserError, match="15"):
        masks.require_on_grid(15)


# --- randomness as a function ------------------------------------------------------------------------------------


def test_uniforms_are_uniform_within_and_across_keys() -> None:
    u = rng.uniform(rng.keys(0, "masks", 0, np.arange(2000)), 50)
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-4  # neighbouring ids
    pairs = np.histogram2d(u[:, :-1].ravel(), u[:, 1:].ravel(), bins=16)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    across = np.histogram2d(u[:-1].ravel(), u[1:].ravel(), bins=16)[0]
    assert stats.chisquare(across.ravel()).pvalue > 1e-4


def test_uniforms_of_neighbouring_epochs_and_seeds_are_independent() -> None:
    ids = np.arange(20_000)
    base = rng.uniform(rng.keys(0, "masks", 0, ids), 1)[:, 0]
    for other in (rng.keys(0, "masks", 1, ids), rng.keys(1, "masks", 0, ids), rng.keys(0, "views", 0, ids)):
        table = np.histogram2d(base, rng.uniform(other, 1)[:, 0], bins=10)[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_keys_do_not_collide_over_epochs_ids_and_draws() -> None:
    epoch, identity, draw = (x.ravel() for x in np.meshgrid(np.arange(20), np.arange(2000), np.arange(3)))
    assert len(np.unique(rng.keys(0, "masks", epoch, identity, draw))) == len(epoch)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    ids=st.lists(st.integers(0, 2**62), min_size=1, max_size=6),
    epoch=st.integers(0, 10**6),
)
def test_keys_and_numbers_do_not_depend_on_the_batch(seed: int, ids: list[int], epoch: int) -> None:
    together = rng.uniform(rng.keys(seed, "masks", epoch, np.array(ids)), 4)
    for i, identity in enumerate(ids):
        alone = rng.uniform(rng.keys(seed, "masks", epoch, np.array([identity])), 7)
        assert (alone[0, :4] == together[i]).all()


def test_a_permutation_is_one_and_every_place_is_equally_likely() -> None:
    drawn = np.stack([rng.permutation(0, "order", epoch, 8) for epoch in range(4000)])
    assert (np.sort(drawn, 1) == np.arange(8)).all()
    for place in range(8):
        assert stats.chisquare(np.bincount(drawn[:, place])).pvalue > 1e-5
    assert (rng.permutation(0, "order", 3, 8) == drawn[3]).all()
