"""Target blocks by their mean weight: exact probabilities, and what a prior leaves as it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jepakit.config.config import overrides, resolve
from jepakit.core.errors import UserError
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.weighted_places import place_weights, weighted_firsts
from test_masks import GRID, context_grids, parts, sides, target_grids

SMALL_GRID = (5, 6)
BLOCK = {"targets": 1, "target_scale": (0.2, 0.2), "target_aspect": (1.5, 1.5), "min_keep": 1}  # 3 rows, 2 columns
PATCHES = np.random.default_rng(4).random(30) < 0.4


def probabilities(foreground: np.ndarray, bias: float, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """P(place) in loops: mean over the block of 1 on the foreground and 1 - bias elsewhere, over the sum for all places."""
    shown = foreground.reshape(grid)
    p = np.zeros((grid[0] - size[0] + 1, grid[1] - size[1] + 1))
    for top in range(p.shape[0]):
        for left in range(p.shape[1]):
            inside = [shown[top + i, left + j] for i in range(size[0]) for j in range(size[1])]
            p[top, left] = sum(1.0 if patch else 1 - bias for patch in inside) / len(inside)
    return p / p.sum()


@pytest.mark.parametrize("bias", [0.3, 0.8, 1.0])
def test_places_are_drawn_by_their_mean_weight(bias: float) -> None:
    law, ids = MultiBlock(**BLOCK, prior="contrast", bias=bias), np.arange(20_000)
    masks = law.sample(SMALL_GRID, ids, seed=0, foreground=np.tile(PATCHES, (len(ids), 1)))
    grids = target_grids(masks, 30)
    first = grids.argmax(-1)
    assert (grids.sum(-1) == 6).all() and (grids & np.roll(grids, -7, -1))[np.arange(len(ids)), first].all()  # 3 x 2 at `first`
    p = probabilities(PATCHES, bias, (3, 2), SMALL_GRID)
    counts = np.bincount(first, minlength=30).reshape(SMALL_GRID)
    assert not counts[3:].any() and not counts[:, 5].any() and not counts[:3, :5][p == 0].any()
    assert stats.chisquare(counts[:3, :5][p > 0], 20_000 * p[p > 0]).pvalue > 0.001
    even = np.full(p.shape, 1 / p.size)
    assert stats.chisquare(counts[:3, :5].ravel(), 20_000 * even.ravel()).pvalue < 1e-6  # the test tells laws apart


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    bias=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    share=st.floats(0.05, 0.95),
)
def test_the_map_of_uniform_numbers_to_places_has_those_probabilities(
    rows: int, columns: int, bias: float, seed: int, share: float
) -> None:
    draw, grid, fine = np.random.default_rng(seed), (rows, columns), 200
    height, width = int(draw.integers(1, rows + 1)), int(draw.integers(1, columns + 1))
    foreground = draw.random(rows * columns) < share
    if not foreground.any():
        foreground[:] = True
    u = (np.arange(fine) + 0.5) / fine
    places = np.stack(np.meshgrid(u, u, indexing="ij"), -1).reshape(1, -1, 2)
    weights = place_weights(foreground[None], bias)
    top, left = weighted_firsts(grid, (np.array([height]), np.array([width])), places, weights)
    p = probabilities(foreground, bias, (height, width), grid)
    found = np.zeros_like(p)
    np.add.at(found, (top[0], left[0]), 1 / fine**2)
    assert np.abs(found - p).max() <= 2.5 / fine  # each of the two numbers is known to half a step at either end


@pytest.mark.parametrize("bias", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shown", [False, True])
def test_where_no_patch_differs_masks_are_those_without_a_prior(bias: float, shown: bool) -> None:
    law, ids = MultiBlock(draws=2, contexts=2), np.arange(300)
    prior = MultiBlock(draws=2, contexts=2, prior="contrast", bias=bias)
    alike = np.full((len(ids), 196), shown)
    assert parts(prior.sample(GRID, ids, seed=1, foreground=alike)) == parts(law.sample(GRID, ids, seed=1))


def test_no_bias_is_todays_law_and_asks_for_no_foreground() -> None:
    law, ids = MultiBlock(prior="contrast", bias=0), np.arange(200)
    some = np.random.default_rng(0).random((len(ids), 196)) < 0.3
    assert law.foreground is None and MultiBlock().foreground is None
    assert MultiBlock(prior="contrast", bias=0.1).foreground == "contrast"
    assert parts(law.sample(GRID, ids, seed=1, foreground=some)) == parts(MultiBlock().sample(GRID, ids, seed=1))


def test_sizes_and_contexts_are_those_without_a_prior() -> None:
    ids, some = np.arange(400), np.random.default_rng(0).random((400, 196)) < 0.2
    free = MultiBlock(allow_overlap=True).sample(GRID, ids, seed=1)
    biased = MultiBlock(allow_overlap=True, prior="contrast", bias=1).sample(GRID, ids, seed=1, foreground=some)
    assert np.array_equal(context_grids(free, 196), context_grids(biased, 196))
    shapes = [[sides(block, 14) for _, _, blocks in parts(masks) for block in blocks] for masks in (free, biased)]
    assert shapes[0] == shapes[1]
    assert not np.array_equal(target_grids(free, 196), target_grids(biased, 196))
    apart = MultiBlock(prior="contrast", bias=1).sample(GRID, ids, seed=1, foreground=some)
    covered = target_grids(apart, 196).reshape(400, 4, 196).any(1)
    assert not (context_grids(apart, 196) & covered).any()


def test_at_full_bias_no_block_lies_on_background_alone() -> None:
    draw, ids = np.random.default_rng(0), np.arange(1000)
    one = np.zeros((1000, 196), bool)
    one[ids, draw.integers(0, 196, 1000)] = True  # a single patch, so that every block must hold it
    masks = MultiBlock(prior="contrast", bias=1, min_keep=1).sample(GRID, ids, seed=0, foreground=one)
    assert (target_grids(masks, 196).reshape(1000, 4, 196) & one[:, None]).any(-1).all()


def test_masks_are_of_an_images_own_foreground_whatever_the_batch_and_the_retries() -> None:
    law, ids = MultiBlock(min_keep=85, prior="contrast", bias=0.9, draws=2), np.arange(200)
    some = np.random.default_rng(0).random((200, 14, 14)) < np.linspace(0, 1, 14)  # denser to the right
    some = some.reshape(200, 196)
    whole = parts(law.sample(GRID, ids, seed=0, foreground=some))
    second = parts(law.sample(GRID, ids[100:], seed=0, foreground=some[100:]))
    assert [p[1:] for p in whole[200:]] == [p[1:] for p in second]
    first_try = parts(law.model_copy(update={"min_keep": 1}).sample(GRID, ids, seed=0, foreground=some))
    assert sum(a != b for a, b in zip(whole, first_try, strict=True)) > 20  # there were retries
    columns = np.concatenate([np.array(b) % 14 for _, _, blocks in whole for b in blocks])
    retried = [a for a, b in zip(whole, first_try, strict=True) if a != b]
    of_retried = np.concatenate([np.array(b) % 14 for _, _, blocks in retried for b in blocks])
    assert columns.mean() > 6.7 and of_retried.mean() > 6.7  # unbiased: 6.5


def test_settings_that_do_not_go_together_are_refused() -> None:
    for words, said in (
        (["masking.prior=file"], r"masking\.prior_folder=FOLDER go together"),
        (["masking.prior=contrast", "masking.prior_folder=x"], r"go together"),
        (["masking.prior_folder=x"], r"go together"),
        (["masking.prior=contrast", "masking.compat=released"], r"masking\.prior=none"),
        (["masking.bias=1.5"], r"masking\.bias"),
        (["masking.kind=quadrants", "masking.prior=contrast"], r"masking\.prior"),
    ):
        with pytest.raises(UserError, match=said):
            resolve(overrides(words))
