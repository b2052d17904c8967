"""The model: packing changes nothing, transformers' I-JEPA agrees, and every combination of parts trains."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jepakit.config.config import overrides, resolve
from jepakit.core.errors import UserError
from jepakit.model.attention import _explicit, attention
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout, interleave, scatter_rows, segment_mean, take
from jepakit.model.losses import LOSSES
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.predictor import PredictorConfig
from jepakit.model.targets import FeatureTargets, PixelTargets
from jepakit.model.vit import ViT, ViTConfig, patchify

GRID = (4, 5)
SMALL: dict[str, Any] = {
    "encoder": {"width": 24, "depth": 2, "heads": 3, "patch_size": 4},
    "predictor": {"width": 12, "depth": 2},
}
CONTEXT = [[0, 1, 2, 6], [19, 4], [3, 8, 9, 13, 14, 18, 7]]
TARGETS = [[[10, 11, 15, 16], [5]], [[0, 1, 2, 5, 6, 7], [12, 13], [17, 18, 19]], [[0, 5]]]
DRAW_PARTS = [{"conditioning": None}, {"conditioning": {}}]


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which features depend on everything; at the starting .02 a slip would hide in the rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2 * noise + p)
    return module


def build(grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64, **parts: Any) -> JEPA:
    torch.manual_seed(0)
    model = lively(JEPA(Method.model_validate(SMALL | parts), grid)).to(dtype)
    assert isinstance(model, JEPA)
    return model


def pictures(count: int, grid: tuple[int, int] = GRID, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, grid[0] * 4, grid[1] * 4, generator=generator, dtype=torch.float64).to(dtype)


# --- layout ------------------------------------------------------------------------------------------------------


def test_take_is_indexing_and_its_gradient_too() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([5, 0, 3])
    assert torch.equal(take(x, index), x[index])
    weight = torch.randn(3, 3, dtype=torch.float64)
    ours, plain = (torch.autograd.grad((rows * weight).sum(), x)[0] for rows in (take(x, index), x[index]))
    assert torch.equal(ours, plain)
    assert torch.autograd.gradcheck(lambda a: take(a, index), (x,))


def test_spread_is_the_transpose_of_take() -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([4, 1, 2])
    out = scatter_rows(x, index, 6)
    assert torch.equal(out[index], x) and not out[[0, 3, 5]].any()
    y = torch.randn(6, 2, dtype=torch.float64)
    assert torch.allclose((out * y).sum(), (x * take(y, index)).sum())
    assert torch.autograd.gradcheck(lambda a: scatter_rows(a, index, 6), (x,))


@settings(max_examples=40, deadline=None)
@given(
    a_lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    blocks=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=5),
)
def test_join_puts_each_sequence_of_a_before_its_b(a_lengths: list[int], blocks: list[tuple[int, int]]) -> None:
    owner = np.array([o % len(a_lengths) for o, _ in blocks])
    b_lengths = np.array([n for _, n in blocks])
    a = torch.randn(sum(a_lengths), 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(int(b_lengths.sum()), 2, dtype=torch.float64, requires_grad=True)
    sequences = interleave(np.array(a_lengths), b_lengths, torch.device("cpu"), owner)
    pieces = a.split(a_lengths)
    plain = torch.cat([torch.cat([pieces[o], rows]) for o, rows in zip(owner, b.split(b_lengths.tolist()), strict=True)])
    ours = sequences.join(a, b)
    assert torch.equal(ours, plain)
    assert torch.equal(ours[sequences.b_rows], b)
    weight = torch.randn_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), (a, b)),
        torch.autograd.grad((plain * weight).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_join_passes_gradcheck() -> None:
    a, b = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    sequences = interleave(np.array([2, 3]), np.array([1, 2, 1]), torch.device("cpu"), np.array([1, 0, 1]))
    assert torch.autograd.gradcheck(sequences.join, (a, b))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_pad_and_unpad_are_inverse_and_padding_is_zero(lengths: list[int]) -> None:
    x = torch.randn(sum(lengths), 2)
    layout = Layout(np.array(lengths))
    padded = layout.pad(x)
    assert torch.equal(layout.unpad(padded), x)
    for row, own in zip(padded, x.split(lengths), strict=True):
        assert torch.equal(row[: len(own)], own) and not row[len(own) :].any()
    means = torch.stack([own.mean(0) for own in x.split(lengths)])
    torch.testing.assert_close(segment_mean(x, np.array(lengths)), means)


# --- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[3, 7, 1, 5], [6, 6, 6]], ids=["ragged", "dense"])
def test_packed_explicit_and_dense_attention_agree(lengths: list[int]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8, requires_grad=True)
    layout = Layout(np.array(lengths))
    packed = attention(qkv, layout)
    q, k, v = layout.pad(qkv).permute(2, 0, 3, 1, 4).unbind(0)
    explicit = layout.unpad(_explicit(q, k, v, None if layout.dense else layout.valid).transpose(1, 2).flatten(2))
    alone = []
    for own in qkv.split(lengths):  # softmax(q k' / sqrt(d)) v, head by head
        heads = [(own[:, 0, h] @ own[:, 1, h].T / 8**0.5).softmax(-1) @ own[:, 2, h] for h in range(2)]
        alone.append(torch.cat(heads, 1))
    weight = torch.randn_like(packed)
    gradients = []
    for out in (packed, explicit, torch.cat(alone)):
        torch.testing.assert_close(out, torch.cat(alone), rtol=0, atol=1e-6)
        gradients.append(torch.autograd.grad((out * weight).sum(), qkv, retain_graph=True)[0])
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[-1], rtol=0, atol=3e-6)


@pytest.mark.parametrize("lengths", [[3, 7, 1, 5], [27, 3, 30], [45, 56]], ids=["short", "a register", "two registers"])
def test_bfloat16_attention_is_close_to_the_exact_one(lengths: list[int]) -> None:
    torch.manual_seed(0)
    qkv, layout = torch.randn(sum(lengths), 3, 2, 8).bfloat16().requires_grad_(), Layout(np.array(lengths))
    exact, weight = qkv.detach().float().requires_grad_(), torch.randn(sum(lengths), 16)
    rounded, expected = attention(qkv, layout).float(), attention(exact, layout)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.03)
    for y in (rounded, expected):
        (y * weight).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(qkv.grad.float(), exact.grad, rtol=0, atol=0.08)  # type: ignore[union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lengths", [[3, 7, 1, 5], [6, 6, 6]], ids=["ragged", "dense"])
def test_varlen_attention_on_a_gpu_equals_the_padded_one(lengths: list[int]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 64, device="cuda").bfloat16().requires_grad_()
    exact = qkv.detach().float().cpu().requires_grad_()
    fast, slow = attention(qkv, Layout(np.array(lengths), qkv.device)), attention(exact, Layout(np.array(lengths)))
    torch.testing.assert_close(fast.float().cpu(), slow, rtol=0, atol=0.03)
    weight = torch.randn_like(slow)
    ours = torch.autograd.grad((fast * weight.cuda().bfloat16()).sum(), qkv)[0]
    theirs = torch.autograd.grad((slow * weight).sum(), exact)[0]
    torch.testing.assert_close(ours.float().cpu(), theirs, rtol=0, atol=0.06)


# --- packing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", DRAW_PARTS, ids=["plain", "ec"])
def test_an_image_in_a_ragged_batch_equals_the_image_alone(parts: dict[str, Any]) -> None:
    model, images = build(**parts), pictures(3)
    out = model(images, Masks.from_indices(CONTEXT, TARGETS))
    context = out.context.split([len(c) for c in CONTEXT])
    counts = [sum(map(len, blocks)) for blocks in TARGETS]
    predictions, targets = out.predictions.split(counts), out.targets.split(counts)
    for i in range(3):
        alone = model(images[i : i + 1], Masks.from_indices(CONTEXT[i : i + 1], TARGETS[i : i + 1]))
        for ours, theirs in [
            (context[i], alone.context),
            (predictions[i], alone.predictions),
            (targets[i], alone.targets),
            (out.features[i : i + 1], alone.features),
        ]:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_predictor_sees_one_target_block_at_a_time() -> None:
    model, images = build(), pictures(1)
    together = model(images, Masks.from_indices([CONTEXT[0]], [[[10, 11], [15, 16, 17]]])).predictions
    for block, rows in zip([[10, 11], [15, 16, 17]], together.split([2, 3]), strict=True):
        alone = model(images, Masks.from_indices([CONTEXT[0]], [[block]])).predictions
        torch.testing.assert_close(rows, alone, rtol=0, atol=1e-10)
    joined = model(images, Masks.from_indices([CONTEXT[0]], [[[10, 11, 15, 16, 17]]])).predictions
    assert (joined - together).abs().max() > 1e-3


def test_packed_and_dense_sequences_agree_to_1e6_in_float32() -> None:
    encoder = build(dtype=torch.float32).encoder
    lengths = [4, 9, 1]
    tokens = torch.randn(14, 24, generator=torch.Generator().manual_seed(0))
    packed = encoder(tokens, Layout(np.array(lengths)))
    dense = torch.cat([encoder(own, Layout(np.array([len(own)]))) for own in tokens.split(lengths)])
    torch.testing.assert_close(packed, dense, rtol=0, atol=1e-6 * float(dense.detach().abs().max()))


@pytest.mark.parametrize("parts", DRAW_PARTS, ids=["plain", "ec"])
def test_the_context_encoder_sees_no_other_patch_and_the_target_encoder_sees_all(parts: dict[str, Any]) -> None:
    model, images, masks = build(**parts), pictures(3), Masks.from_indices(CONTEXT, TARGETS)
    before = model(images, masks)
    changed = images.clone()
    changed[0, :, 8:12, 16:20] += 1  # patch (2, 4) = 14 of image 0: neither context nor target
    after = model(changed, masks)
    assert torch.equal(before.context, after.context) and torch.equal(before.predictions, after.predictions)
    own = sum(map(len, TARGETS[0]))
    assert (before.targets - after.targets)[:own].abs().max() > 1e-3
    assert torch.equal(before.targets[own:], after.targets[own:])


# --- an outside judge --------------------------------------------------------------------------------------------


def test_the_encoder_equals_transformers_ijepa() -> None:
    from transformers import IJepaConfig, IJepaModel

    ours = lively(ViT(ViTConfig(width=48, depth=3, heads=4, patch_size=8), (5, 5)), 1)
    assert isinstance(ours, ViT)
    config = IJepaConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=40,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    judge = IJepaModel(config, add_pooling_layer=False).eval()
    state = {
        "embeddings.position_embeddings": ours.positions[None],
        "embeddings.patch_embeddings.projection.weight": ours.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": ours.patch_embed.proj.bias,
        "layernorm.weight": ours.norm.weight,
        "layernorm.bias": ours.norm.bias,
    }
    for i, block in enumerate(ours.blocks):
        named = {
            "layernorm_before": block.norm1,
            "attention.o_proj": block.attn.proj,
            "layernorm_after": block.norm2,
            "mlp.fc1": block.mlp.fc1,
            "mlp.fc2": block.mlp.fc2,
        }
        for kind in ("weight", "bias"):
            state |= {f"layers.{i}.{name}.{kind}": getattr(part, kind) for name, part in named.items()}
            thirds = getattr(block.attn.qkv, kind).chunk(3)
            state |= {f"layers.{i}.attention.{n}_proj.{kind}": x for n, x in zip("qkv", thirds, strict=True)}
    judge.load_state_dict(state)
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = judge(images).last_hidden_state
        tokens = ours.embed(patchify(images, 8), torch.arange(25).repeat(2))
        packed = ours(tokens, Layout(np.array([25, 25]))).view(2, 25, 48)
    assert theirs.std() > 0.5
    torch.testing.assert_close(packed, theirs, rtol=0, atol=1e-5)


def test_embedding_patches_is_the_strided_convolution() -> None:
    encoder = build().encoder
    images = pictures(2)
    whole = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(encoder.patch_embed(patchify(images, 4)), whole, rtol=0, atol=1e-12)


# --- several draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "passes"), [(DRAW_PARTS[0], 2), (DRAW_PARTS[1], 6)], ids=["plain", "ec"])
def test_several_draws_equal_single_ones_and_share_the_target_pass(parts: dict[str, Any], passes: int) -> None:
    model, images = build((6, 6), **parts), pictures(2, (6, 6))
    law = model.method.masking.model_copy(update={"draws": 3, "min_keep": 1})
    masks = law.sample((6, 6), np.arange(2), seed=0)
    rows: list[int] = []
    handle = model.target_encoder.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[1].lengths)))
    out = model(images, masks)
    handle.remove()
    assert rows == [passes]  # with EC the context is part of the input, so nothing can be shared
    contexts = np.split(masks.context, np.cumsum(masks.context_lengths)[:-1])
    blocks = np.split(masks.targets, np.cumsum(masks.target_lengths)[:-1])
    start_context = start = 0
    for draw, image in enumerate(masks.image_of_draw):
        own = [b.tolist() for b, d in zip(blocks, masks.draw_of_block, strict=True) if d == draw]
        alone = model(images[image : image + 1], Masks.from_indices([contexts[draw].tolist()], [own]))
        here = slice(start_context, start_context + len(alone.context))
        torch.testing.assert_close(out.context[here], alone.context, rtol=0, atol=1e-10)
        here = slice(start, start + len(alone.targets))
        torch.testing.assert_close(out.targets[here], alone.targets, rtol=0, atol=1e-10)
        torch.testing.assert_close(out.predictions[here], alone.predictions, rtol=0, atol=1e-10)
        start_context, start = start_context + len(alone.context), start + len(alone.targets)
    assert start == len(out.targets) and start_context == len(out.context)


# --- every combination -------------------------------------------------------------------------------------------

MASKINGS: list[dict[str, Any]] = [
    {"kind": "multi_block", "min_keep": 1},
    {"kind": "quadrants"},
    {"kind": "block"},
    {"kind": "random"},
]
TARGET_KINDS: list[dict[str, Any]] = [{"kind": "features"}, {"kind": "features", "layers": (0, 1)}, {"kind": "pixels"}]
REGULARIZERS: list[dict[str, Any] | None] = [
    None,
    *({"kind": "vicreg", "tensor": t, "projector": (16, 16, 8)} for t in ("pred_blocks", "context_pooled", "pred_pairs")),
    *({"kind": "sigreg", "tensor": t, "projector": (16, 16, 8)} for t in ("pred_blocks", "context_pooled")),
    *({"kind": "visreg", "tensor": t, "projector": (16, 16, 8)} for t in ("pred_blocks", "context_pooled")),
]
TERMS = {"vicreg": {"sim", "std", "cov"}, "sigreg": {"sigreg"}, "visreg": {"scale", "center", "shape"}}


@pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: m["kind"])
@pytest.mark.parametrize(("conditioning", "stop"), [(None, 0.0), ({}, 0.0), (None, 0.25)], ids=["plain", "ec", "stop"])
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: f"{r['kind']}-{r['tensor']}" if r else "none")
def test_every_combination_of_parts_trains_every_parameter(
    masking: dict[str, Any], conditioning: dict[str, Any] | None, stop: float, regularizer: dict[str, Any] | None
) -> None:
    images = pictures(6)
    for target, loss in itertools.product(TARGET_KINDS, LOSSES):
        projected = regularizer is not None
        own = regularizer
        if own and own["tensor"] == "context_pooled" and target["kind"] == "pixels":  # no projector fits both
            own, projected = own | {"projector": ()}, False
        parts = {"masking": masking, "conditioning": conditioning, "regularizer": own}
        parts["predictor"] = {**SMALL["predictor"], "stop": stop}
        model = build(**parts | {"target": target, "loss": loss})
        out = model(images, model.method.masking.sample(GRID, np.arange(6), seed=0))
        assert set(out.terms) == {"prediction"} | (TERMS[regularizer["kind"]] if regularizer else set())
        assert all(term.isfinite() and term >= 0 for term in out.terms.values())
        torch.testing.assert_close(out.loss, torch.stack([*out.terms.values()]).sum(), rtol=1e-12, atol=0)
        assert out.features.shape == (6, 24) and not out.targets.requires_grad
        out.loss.backward()
        for name, p in model.trained_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            # variances, covariances and differences do not see the projector's last bias; SIGReg and VISReg do
            unseen = regularizer is not None and regularizer["kind"] == "vicreg" and name == "projector.6.bias"
            assert bool(p.grad.abs().max() > 1e-14) != unseen, name
        assert any(name == "projector.6.bias" for name, _ in model.trained_parameters()) == projected
        assert all(p.grad is None for p in model.target_encoder.parameters())


def test_one_projector_for_context_and_pixels_is_refused_and_none_is_served() -> None:
    parts = {"target": {"kind": "pixels"}, "regularizer": {"tensor": "context_pooled", "projector": (16, 8)}}
    with pytest.raises(ValueError, match=r"regularizer\.projector=\[\]"):
        build(**parts)
    model = build(**parts | {"regularizer": {"tensor": "context_pooled", "projector": ()}})
    masks = model.method.masking.model_copy(update={"min_keep": 1}).sample(GRID, np.arange(3), seed=0)
    assert model(pictures(3), masks).loss.isfinite()


def test_masks_and_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="20"):
        build()(pictures(1), Masks.from_indices([[0, 20]], [[[1]]]))
    with pytest.raises(UserError, match="2 images"):
        build()(pictures(1), Masks.from_indices([[0], [1]], [[[1]], [[2]]]))
    with pytest.raises(UserError, match="16x20"):
        build()(pictures(1, (4, 4)), Masks.from_indices([[0]], [[[1]]]))


# --- losses and targets ------------------------------------------------------------------------------------------


def test_losses_equal_their_formulas() -> None:
    prediction, target = 2 * pictures(1).view(-1, 24), pictures(2).view(-1, 24)[:40]
    d = (prediction - target).abs()
    assert (d < 1).any() and (d > 1).any()
    norms = prediction.square().sum(1).sqrt() * target.square().sum(1).sqrt()
    formulas = {
        "smooth_l1": torch.where(d < 1, d**2 / 2, d - 0.5).mean(),
        "l2": (d**2).mean(),
        "l1": d.mean(),
        "cosine": (1 - (prediction * target).sum(1) / norms).mean(),
    }
    assert set(formulas) == set(LOSSES)
    for name, formula in formulas.items():
        torch.testing.assert_close(LOSSES[name](prediction, target), formula, rtol=1e-12, atol=0)


def test_feature_targets_are_normalised_as_said() -> None:
    features = 3 * torch.randn(500, 24, dtype=torch.float64) + 5
    layer = FeatureTargets(norm="layer").normalise(features)
    centred = features - features.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer, expected)
    batch = FeatureTargets(norm="batch").normalise(features)
    torch.testing.assert_close(batch.mean(0), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.std(0), torch.ones(24, dtype=torch.float64), rtol=1e-5, atol=0)
    assert FeatureTargets(norm="none").normalise(features) is features


def test_targets_as_they_are_can_be_asked_for_by_the_bare_word() -> None:
    """none is no value at all in YAML, and so on the command line."""
    target = resolve(overrides(["target.norm=none"])).target
    assert isinstance(target, FeatureTargets) and target.norm == "none"


def test_pixel_targets_are_the_target_patches_normalised_one_by_one() -> None:
    images, masks = pictures(2) * 4 + 1, Masks.from_indices([[0], [1]], [[[7]], [[19, 3]]])
    raw = build(target={"kind": "pixels", "norm": False})(images, masks).targets
    expected = torch.stack(
        [images[0, :, 4:8, 8:12].flatten(), images[1, :, 12:16, 16:20].flatten(), images[1, :, 0:4, 12:16].flatten()]
    )
    assert torch.equal(raw, expected)
    scaled = build(target={"kind": "pixels"})(images, masks).targets
    torch.testing.assert_close(scaled, PixelTargets().normalise(expected))
    mae = (expected - expected.mean(-1, keepdim=True)) / (expected.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(scaled, mae)


def test_features_are_the_mean_over_patches_of_the_target_encoder() -> None:
    model, images = build(), pictures(3)
    tokens = model.target_encoder.embed(patchify(images, 4), torch.arange(20).repeat(3))
    full = model.target_encoder(tokens, Layout(np.full(3, 20))).view(3, 20, 24)
    out = model(images, Masks.from_indices(CONTEXT, TARGETS))
    torch.testing.assert_close(out.features, full.mean(1))
    expected = F.layer_norm(full, (24,))[0, TARGETS[0][0]]
    torch.testing.assert_close(out.targets[:4], expected)


@pytest.mark.parametrize("conditioning", [None, {}], ids=["plain", "ec"])
def test_target_images_are_what_targets_are_taken_from_and_nothing_else(conditioning: dict[str, Any] | None) -> None:
    model, images, masks = build(conditioning=conditioning), pictures(3), Masks.from_indices(CONTEXT, TARGETS)
    alone, others = model(images, masks), images.roll(1, 0)
    same, given = model(images, masks, images), model(images, masks, others)
    assert torch.equal(same.loss, alone.loss) and torch.equal(same.features, alone.features)
    assert torch.equal(given.context, alone.context) and torch.equal(given.predictions, alone.predictions)
    assert not torch.isclose(given.targets, alone.targets).all(1).any()
    swapped = model(others, masks)  # the same targets, whatever the encoder is shown
    assert torch.equal(given.targets, swapped.targets) and torch.equal(given.features, swapped.features)
    with pytest.raises(UserError, match="target_images"):
        model(images, masks, others[:2])


# --- target encoder, sizes, start --------------------------------------------------------------------------------


def test_the_target_encoder_starts_as_a_copy_and_has_no_gradient() -> None:
    model = JEPA(Method.model_validate(SMALL), GRID)
    pairs = list(zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert not any(b.requires_grad for _, b in pairs)
    assert not any(name.startswith("target_encoder") for name, _ in model.trained_parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_the_target_encoder_is_an_exponential_average(momentum: float) -> None:
    model = build()
    lively(model.target_encoder, 7)
    own = [p.detach().clone() for p in model.encoder.parameters()]
    old = [p.detach().clone() for p in model.target_encoder.parameters()]
    model.update_target_encoder(momentum)
    for p, mine, before in zip(model.target_encoder.parameters(), own, old, strict=True):
        torch.testing.assert_close(p.detach(), momentum * before + (1 - momentum) * mine, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(p, mine) for p, mine in zip(model.encoder.parameters(), own, strict=True))


def test_vit_b16_has_the_released_numbers_of_parameters() -> None:
    method = Method(encoder=ViTConfig(size="base"), predictor=PredictorConfig(depth=6, width=384))
    with torch.device("meta"):
        model = JEPA(method, (14, 14))
    assert sum(p.numel() for p in model.encoder.parameters()) == 85_646_592
    assert sum(p.numel() for p in model.predictor.parameters()) == 11_238_912
    assert sum(p.numel() for _, p in model.trained_parameters()) == 85_646_592 + 11_238_912


@pytest.mark.parametrize(
    ("size", "shape", "hidden"),
    [
        ("tiny", (192, 12, 3), 768),
        ("small", (384, 12, 6), 1536),
        ("base", (768, 12, 12), 3072),
        ("large", (1024, 24, 16), 4096),
        ("huge", (1280, 32, 16), 5120),
        ("giant", (1408, 40, 16), 6144),
    ],
)
def test_sizes_are_the_released_table(size: str, shape: tuple[int, int, int], hidden: int) -> None:
    config = ViTConfig.model_validate({"size": size})
    assert (config.width, config.depth, config.heads) == shape
    with torch.device("meta"):
        first = ViT(config, (4, 4)).blocks[0]
    assert first.mlp.fc1.out_features == hidden


def test_weights_start_at_002_without_a_cut_and_biases_at_0() -> None:
    torch.manual_seed(0)
    model = JEPA(Method.model_validate({"encoder": {"width": 192, "depth": 2, "heads": 3}}), (14, 14))
    for name, p in model.named_parameters():
        if p.ndim > 1:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.1 if p.numel() < 1000 else 0.02), name
        else:
            assert (p == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all(), name
    # truncated at +-2, which is 100 standard deviations; not at two of them
    assert model.encoder.blocks[0].mlp.fc1.weight.abs().max() > 0.06


def test_depth_rescale_divides_the_two_output_layers_by_the_root_of_twice_the_layer() -> None:
    models = []
    for rescale in (False, True):
        torch.manual_seed(0)
        models.append(JEPA(Method.model_validate(SMALL | {"encoder": SMALL["encoder"] | {"depth_rescale": rescale}}), GRID))
    plain, scaled = (dict(m.named_parameters()) for m in models)
    for name, p in plain.items():
        layer = int(name.split("blocks.")[1].split(".")[0]) + 1 if "blocks." in name else 0
        factor = (2 * layer) ** -0.5 if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 1.0
        torch.testing.assert_close(scaled[name], p * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_the_same_bit_for_bit_on_repeat(dtype: torch.dtype) -> None:
    torch.set_num_threads(2)
    parts = {"conditioning": {}, "regularizer": {"projector": (16, 8)}}
    images = pictures(8, (8, 8), dtype)
    runs = []
    for _ in range(3):
        model = build((8, 8), dtype, **parts)
        masks = model.method.masking.model_copy(update={"draws": 2}).sample((8, 8), np.arange(8), seed=0)
        model(images, masks).loss.backward()
        runs.append([p.grad for _, p in model.trained_parameters()])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_recomputed_blocks_have_the_same_gradients_and_keep_little() -> None:
    method = Method.model_validate(
        {"encoder": {"width": 32, "depth": 8, "heads": 2, "patch_size": 4}, "predictor": {"width": 16}}
    )
    torch.manual_seed(0)
    jepa = JEPA(method, (8, 8))
    twin = copy.deepcopy(jepa)
    twin.recompute_blocks()
    images, masks = torch.randn(6, 3, 32, 32), method.masking.sample((8, 8), np.arange(6), seed=0)

    def kept(model: JEPA) -> int:
        sizes: list[int] = []

        def count(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss = model(images, masks).loss
        loss.backward()
        return sum(sizes)

    assert kept(twin) < kept(jepa) / 4
    for (name, a), (_, b) in zip(jepa.named_parameters(), twin.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("parts", DRAW_PARTS, ids=["plain", "ec"])
def test_blocks_of_fixed_rows_see_one_shape_and_give_the_same_numbers(parts: dict[str, Any]) -> None:
    grid, count = (8, 8), 16
    model = build(grid, **parts, regularizer={"tensor": "context_pooled", "projector": ()})
    fixed = copy.deepcopy(model)
    masks = [model.method.masking.sample(grid, np.arange(count), seed=0, epoch=i) for i in range(20)]
    fixed.fix_rows(masks)
    shapes: dict[int, set[int]] = {}
    for block in (*fixed.encoder.blocks, *fixed.target_encoder.blocks, *fixed.predictor.predictor_blocks[:-1]):
        block.register_forward_hook(lambda m, inputs, out: shapes.setdefault(id(m), set()).add(len(inputs[0])))
    images = pictures(count, grid)
    for own in masks[:5]:
        outputs = []
        for jepa in (model, fixed):
            jepa.zero_grad()
            out = jepa(images, own)
            out.loss.backward()
            outputs.append([out.loss, out.context, out.predictions, out.targets, out.features])
        for ours, plain in zip(*outputs, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)
        for (name, a), (_, b) in zip(model.trained_parameters(), fixed.trained_parameters(), strict=True):
            assert a.grad is not None and b.grad is not None, name
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11, msg=name)
    assert len(shapes) == 5 and all(len(rows) == 1 for rows in shapes.values())
    for part in (fixed.encoder, fixed.target_encoder):  # in one unit, not in twice as many rows
        rows_of_block = part.row_multiple or count * 64
        assert all(shapes[id(block)] == {rows_of_block} for block in part.blocks)
    told = 8 * count if parts["conditioning"] is not None else 0  # two tokens for each of four targets
    rows = fixed.encoder.row_multiple
    assert rows and rows % 8 == 0 and rows < 1.35 * (np.mean([len(m.context) for m in masks]) + told)  # of 16 images only


def test_a_batch_larger_than_the_fixed_rows_is_still_right() -> None:
    model = build()
    images, masks = pictures(3), Masks.from_indices(CONTEXT, TARGETS)
    plain = model(images, masks)
    model.encoder.row_multiple, model.predictor.row_multiple = 8, 16
    torch.testing.assert_close(model(images, masks).predictions, plain.predictions, rtol=1e-11, atol=1e-11)
