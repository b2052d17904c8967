"""EC-IJEPA's conditioning tokens: how many, of what, that they matter, and that nothing of theirs gets out."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jepakit.model.conditioning import PositionConditioning
from jepakit.model.jepa import JEPA, conditioned
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.vit import sincos

PLAIN = PositionConditioning()
GRID = (4, 5)
CONTEXT = [[0, 1, 2, 6, 7], [4, 9, 19], [3, 8, 9, 13, 14, 18]]
TARGETS = [[[10, 11, 15, 16], [5, 6]], [[0, 1, 2, 5, 6, 7], [12, 13], [17, 18]], [[0, 1, 5, 6]]]


def build(conditioning: dict[str, Any] | None, seed: int = 0) -> JEPA:
    method = {
        "encoder": {"width": 24, "depth": 2, "heads": 3, "patch_size": 4},
        "predictor": {"width": 12, "depth": 1},
        "conditioning": conditioning,
    }
    model = JEPA(Method.model_validate(method), GRID).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2 * noise + p)
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def windows_of(tokens: Tensor) -> list[dict[int, float]]:
    """With one-hot positions a token shows which patches it averages, with what weights."""
    return [{int(i): float(row[i]) for i in row.nonzero()[:, 0]} for row in tokens]


def even(*patches: int) -> dict[int, float]:
    return {p: pytest.approx(1 / len(patches)) for p in patches}


# --- how many ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(14, 14), (16, 16)])
def test_four_targets_give_eight_tokens_whether_their_size_is_even_or_odd(grid: tuple[int, int]) -> None:
    positions = torch.from_numpy(sincos(32, grid))
    masks = MultiBlock().sample(grid, np.arange(300), seed=0)
    assert {0, 1} == set(masks.target_lengths % 2)
    tokens, counts = PLAIN.for_encoder(masks, positions, grid)
    assert (counts == 8).all() and tokens.shape == (300 * 8, 32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(4, 18), columns=st.integers(4, 18), targets=st.integers(1, 5))
def test_counts_and_means_are_those_of_avg_pool1d(seed: int, rows: int, columns: int, targets: int) -> None:
    grid = (rows, columns)
    positions = torch.from_numpy(sincos(16, grid))
    masks = MultiBlock(targets=targets, min_keep=1).sample(grid, np.arange(3), seed=seed)
    contexts = np.split(masks.context, np.cumsum(masks.context_lengths)[:-1])
    blocks = np.split(masks.targets, np.cumsum(masks.target_lengths)[:-1])

    def pool(window: np.ndarray, k: int) -> Tensor:
        k = max(1, min(k, len(window)))
        return F.avg_pool1d(positions[torch.from_numpy(window)].T[None], k, k)[0].T

    for_encoder, for_target, counts = [], [], []
    for draw, context in enumerate(contexts):
        own = [b for b, d in zip(blocks, masks.draw_of_block, strict=True) if d == draw]
        k = max(1, len(own[0]) // 2)
        for_encoder.append(torch.cat([pool(b, k) for b in own]))
        for_target.append(pool(context, k))
        if len(context) >= k:
            assert len(for_target[-1]) == (len(context) - k) // k + 1
        counts.append((len(for_encoder[-1]), len(for_target[-1])))
    for got, expected, column in (
        (PLAIN.for_encoder(masks, positions, grid), for_encoder, 0),
        (PLAIN.for_target_encoder(masks, positions, grid), for_target, 1),
    ):
        assert got[1].tolist() == [c[column] for c in counts]
        torch.testing.assert_close(got[0], torch.cat(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "ceil", "count"), [((14, 14), False, 9), ((16, 16), False, 16), ((14, 14), True, 16), ((16, 16), True, 16)]
)
def test_inference_has_9_tokens_on_14x14_and_16_on_16x16(grid: tuple[int, int], ceil: bool, count: int) -> None:
    positions = torch.from_numpy(sincos(32, grid))
    assert PositionConditioning(infer_ceil=ceil).for_inference(positions, grid).shape == (count, 32)


def test_inference_tokens_are_means_over_squares_of_the_grid() -> None:
    windows = windows_of(PLAIN.for_inference(torch.eye(5 * 9, dtype=torch.float64), (5, 9)))
    square = [row * 9 + column for row in range(4) for column in range(4)]
    assert windows == [even(*square), even(*(p + 4 for p in square))]
    overhanging = PositionConditioning(infer_ceil=True).for_inference(torch.eye(5 * 9, dtype=torch.float64), (5, 9))
    assert len(overhanging) == 6
    assert windows_of(overhanging)[2] == even(8, 17, 26, 35)  # of the cells that exist only
    assert windows_of(overhanging)[5] == even(44)


def test_inference_kernel_and_stride_are_free_and_a_small_grid_is_one_square() -> None:
    law = PositionConditioning(infer_kernel=2, infer_stride=1)
    assert windows_of(law.for_inference(torch.eye(6, dtype=torch.float64), (2, 3))) == [even(0, 1, 3, 4), even(1, 2, 4, 5)]
    assert windows_of(PLAIN.for_inference(torch.eye(6, dtype=torch.float64), (2, 3))) == [even(*range(6))]


# --- options, worked by hand -------------------------------------------------------------------------------------

ODD = Masks.from_indices([[20, 21, 22, 23, 24]], [[[0, 1, 2], [2, 3, 8]]])  # on a grid of 5 x 5
EYE = torch.eye(25, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [even(0), even(1), even(2), even(2), even(3), even(8)]),  # m // 2 = 1
        ({"kernel": 2}, [even(0, 1), even(2, 3)]),
        ({"kernel": 2, "tail": "partial"}, [even(0, 1), even(2), even(2, 3), even(8)]),
        ({"kernel": 2, "pool_scope": "concat"}, [even(0, 1), {2: pytest.approx(1.0)}, even(3, 8)]),
        ({"kernel": 2, "pool_scope": "union"}, [even(0, 1), even(2, 3)]),
        ({"kernel": 2, "pool_scope": "union", "tail": "partial"}, [even(0, 1), even(2, 3), even(8)]),
        ({"kernel": 4, "pool_scope": "union"}, [even(0, 1, 2, 3)]),
        ({"kernel": 100}, [even(0, 1, 2), even(2, 3, 8)]),
        ({"kernel": 100, "pool_scope": "union"}, [even(0, 1, 2, 3, 8)]),
    ],
    ids=str,
)
def test_options_of_pooling_targets(options: dict[str, Any], expected: list[dict[int, float]]) -> None:
    tokens, counts = PositionConditioning(**options).for_encoder(ODD, EYE, (5, 5))
    assert windows_of(tokens) == expected
    assert counts.tolist() == [len(expected)]


def test_context_windows_are_bands_from_top_to_bottom_of_half_a_targets_size() -> None:
    masks = Masks.from_indices([[0, 1, 5, 6, 10, 11, 15], [9, 14, 19]], [[[2, 3, 7, 8]], [[0, 1, 2, 5, 6, 7, 10, 11]]])
    tokens, counts = PLAIN.for_target_encoder(masks, EYE, (5, 5))
    assert windows_of(tokens) == [even(0, 1), even(5, 6), even(10, 11), even(9, 14, 19)]  # the last: shorter than 4
    assert counts.tolist() == [3, 1]
    partial, _ = PositionConditioning(tail="partial").for_target_encoder(masks, EYE, (5, 5))
    assert windows_of(partial)[3] == even(15)


def test_column_order_pools_left_and_right_halves() -> None:
    masks = Masks.from_indices([[20]], [[[0, 1, 5, 6, 10, 11]]])
    by_row, _ = PLAIN.for_encoder(masks, EYE, (5, 5))
    by_column, _ = PositionConditioning(order="column").for_encoder(masks, EYE, (5, 5))
    assert windows_of(by_row) == [even(0, 1, 5), even(6, 10, 11)]
    assert windows_of(by_column) == [even(0, 5, 10), even(1, 6, 11)]


def test_renormed_tokens_have_a_positions_norm_and_direction() -> None:
    positions = torch.from_numpy(sincos(32, (14, 14)))
    masks = MultiBlock().sample((14, 14), np.arange(5), seed=0)
    raw, _ = PLAIN.for_encoder(masks, positions, (14, 14))
    scaled, _ = PositionConditioning(renorm=True).for_encoder(masks, positions, (14, 14))
    torch.testing.assert_close(scaled.norm(dim=1), positions.norm(dim=1)[:1].expand(len(scaled)))
    torch.testing.assert_close(F.cosine_similarity(raw, scaled), torch.ones(len(raw), dtype=torch.float64))
    assert raw.norm(dim=1).max() < 0.999 * positions.norm(dim=1)[0]


def test_each_draws_kernel_is_half_of_its_own_targets() -> None:
    masks = Masks.from_indices([[20], [21]], [[[0, 1, 2, 3]], [[5, 6, 7, 8, 9, 10]]])
    tokens, counts = PLAIN.for_encoder(masks, EYE, (5, 5))
    assert windows_of(tokens) == [even(0, 1), even(2, 3), even(5, 6, 7), even(8, 9, 10)]
    assert counts.tolist() == [2, 2]


# --- what they do ------------------------------------------------------------------------------------------------


def test_conditioning_has_no_parameters() -> None:
    shapes = [{name: p.shape for name, p in build(c).named_parameters()} for c in (None, {})]
    assert shapes[0] == shapes[1]


def test_each_encoder_is_conditioned_by_its_own_switch() -> None:
    masks = Masks.from_indices(CONTEXT, TARGETS)
    out = {(e, t): build({"encoder": e, "target_encoder": t})(images(), masks) for e in (False, True) for t in (False, True)}
    plain = build(None)(images(), masks)
    assert torch.equal(out[False, False].loss, plain.loss)
    for e, t in out:
        assert torch.equal(out[e, t].context, out[e, not t].context)
        assert torch.equal(out[e, t].targets, out[not e, t].targets)
        assert bool((out[e, t].context - plain.context).abs().max() > 1e-3) == e
        assert bool((out[e, t].targets - plain.targets).abs().max() > 1e-3) == t


def test_the_encoder_learns_where_the_targets_are_and_the_target_encoder_where_the_context_is() -> None:
    model = build({})
    before = model(images(1), Masks.from_indices([[0, 1, 2, 6]], [[[10, 11, 15, 16]]]))
    moved = model(images(1), Masks.from_indices([[0, 1, 2, 6]], [[[13, 14, 18, 19]]]))
    assert (before.context - moved.context).abs().max() > 1e-3
    other = model(images(1), Masks.from_indices([[0, 1, 2, 7]], [[[10, 11, 15, 16]]]))
    assert (before.targets - other.targets).abs().max() > 1e-3
    still = build(None)(images(1), Masks.from_indices([[0, 1, 2, 6]], [[[10, 11, 15, 16]]]))
    unmoved = build(None)(images(1), Masks.from_indices([[0, 1, 2, 6]], [[[13, 14, 18, 19]]]))
    torch.testing.assert_close(still.context, unmoved.context, rtol=0, atol=1e-12)


def test_permuting_patches_with_their_positions_changes_nothing() -> None:
    """The encoder knows patches by their positions: with the windows given, the order of the patch tokens is nothing."""
    encoder = build({}).encoder
    tokens = torch.randn(9, 24, dtype=torch.float64)
    extra, order = torch.randn(4, 24, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2, 7, 5, 8, 6])  # 5 and 4 patches
    lengths, counts = np.array([5, 4]), np.array([3, 1])
    straight = conditioned(encoder, tokens, lengths, extra, counts)
    torch.testing.assert_close(conditioned(encoder, tokens[order], lengths, extra, counts), straight[order], rtol=0, atol=1e-12)
    shuffled = conditioned(encoder, tokens, lengths, extra[[2, 0, 1, 3]], counts)
    torch.testing.assert_close(shuffled, straight, rtol=0, atol=1e-12)
    assert (conditioned(encoder, tokens, lengths, -extra, counts) - straight).abs().max() > 1e-3


REVERSED = Masks.from_indices([c[::-1] for c in CONTEXT], [[b[::-1] for b in blocks] for blocks in TARGETS])


@pytest.mark.parametrize("options", [None, {"order": "column"}, {"kernel": 100}], ids=str)
def test_the_order_in_which_masks_list_their_patches_does_not_change_the_loss(options: dict[str, Any] | None) -> None:
    model = build(options)
    straight = model(images(), Masks.from_indices(CONTEXT, TARGETS)).loss
    torch.testing.assert_close(model(images(), REVERSED).loss, straight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"pool_scope": "union"}], ids=str)
def test_raster_order_is_raster_order_however_masks_list_their_patches(options: dict[str, Any]) -> None:
    model = build(options)
    straight = model(images(), Masks.from_indices(CONTEXT, TARGETS)).loss
    torch.testing.assert_close(model(images(), REVERSED).loss, straight, rtol=1e-12, atol=0)


def test_outputs_at_conditioning_tokens_reach_nothing() -> None:
    model, masks = build({}), Masks.from_indices(CONTEXT, TARGETS)
    before = model(images(), masks)
    assert before.context.shape == (sum(map(len, CONTEXT)), 24)
    assert before.targets.shape == before.predictions.shape == (len(masks.targets), 24)

    def spoil(where: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            own = masks.context_lengths if output.requires_grad else np.full(3, 20)
            total = inputs[1].lengths
            assert (total > own).all()
            padded = inputs[1].padded_length  # rows of each, some of them empty
            starts = np.arange(len(total)) * padded if padded else np.cumsum(total) - total
            first, last = (starts + own, starts + (padded or total)) if where == "conditioning" else (starts, starts + 1)
            noise = torch.zeros_like(output)
            for a, b in zip(first, last, strict=True):
                noise[a:b] = 1e3
            return output + noise

        return hook

    for where, untouched in (("conditioning", True), ("patches", False)):
        handles = [e.register_forward_hook(spoil(where)) for e in (model.encoder, model.target_encoder)]
        after = model(images(), masks)
        for handle in handles:
            handle.remove()
        for name in ("loss", "context", "predictions", "features"):
            assert torch.equal(getattr(before, name), getattr(after, name)) == untouched, name
        if untouched:
            assert torch.equal(before.targets, after.targets)


# --- what they cost ----------------------------------------------------------------------------------------------


def step_flops(size: str, patch: int, conditioning: dict[str, Any] | None, compat: str | None, batch: int) -> int:
    """Multiply-adds (times two) of forward and backward of one batch, counted where nothing is computed."""
    grid = (224 // patch, 224 // patch)
    parts = {"encoder": {"size": size, "patch_size": patch}, "predictor": {"depth": 12}, "conditioning": conditioning}
    method = Method.model_validate(parts | {"masking": {"kind": "multi_block", "compat": compat}})
    with torch.device("meta"):
        model = JEPA(method, grid).to("meta")
    masks = method.masking.sample(grid, np.arange(batch), seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(batch, 3, 224, 224, device="meta"), masks).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("size", "patch", "compat", "batch", "expected"),
    [
        ("large", 16, None, 64, 0.053),
        ("huge", 14, None, 64, 0.045),
        ("large", 16, "released", 128, 0.063),
        ("huge", 14, "released", 128, 0.052),
    ],
)
def test_a_step_costs_3_to_6_percent_more_flops(size: str, patch: int, compat: str | None, batch: int, expected: float) -> None:
    plain, told = (step_flops(size, patch, c, compat, batch) for c in (None, {}))
    assert told / plain - 1 == pytest.approx(expected, abs=0.005)
    assert 0.032 < told / plain - 1 < 0.067  # 6.4 % for L/16 trimmed is the mean over steps; one step's block size may give 6.6 %


def test_empty_rows_of_nearly_equal_sequences_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = Masks.from_indices(CONTEXT, TARGETS)
    found = []
    for most in (0.0, 10.0):  # no rows left empty; as many as it takes
        monkeypatch.setattr("jepakit.model.layout.MOST_PADDED", most)
        model = build({})
        out = model(images(), masks)
        out.loss.backward()
        found.append((out, {name: p.grad for name, p in model.trained_parameters()}))
    (ragged, gradients), (roomy, others) = found
    for name in ("loss", "predictions", "targets", "context", "features"):
        torch.testing.assert_close(getattr(roomy, name), getattr(ragged, name), rtol=1e-10, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
