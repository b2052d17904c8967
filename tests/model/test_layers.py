"""Targets of several layers: each is a block's output normalised by itself, and a regulariser sees the last one only."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.config.config import Config, overrides, resolve
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.targets import FeatureTargets
from jepakit.model.teacher import Teacher
from jepakit.model.vit import ViT, patchify
from jepakit.planning import flops
from test_model import CONTEXT, GRID, SMALL, TARGETS, build, lively, pictures

DEEP: dict[str, Any] = {"encoder": {**SMALL["encoder"], "depth": 4}}
MASKS = Masks.from_indices(CONTEXT, TARGETS)


def hidden(vit: ViT, images: Tensor) -> list[Tensor]:
    """What leaves each block for whole images, by forward hooks: (B * N, D) each."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in vit.blocks]
    n = len(images) * GRID[0] * GRID[1]
    tokens = vit.embed(patchify(images, 4), torch.arange(GRID[0] * GRID[1]).repeat(len(images)))
    vit(tokens, Layout(np.full(len(images), GRID[0] * GRID[1])))
    for hook in hooks:
        hook.remove()
    return [x[:n] for x in seen]


def wanted(levels: list[Tensor], norm: str = "layer") -> Tensor:
    """[LN(h_1); ...; LN(h_K)] at the target patches of MASKS, by the formula."""
    rows = torch.tensor([image * 20 + patch for image, blocks in enumerate(TARGETS) for block in blocks for patch in block])

    def normed(h: Tensor) -> Tensor:
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() if norm == "layer" else h

    return torch.cat([normed(h)[rows] for h in levels], 1)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 3), (0, 2), (2,)])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_target_is_each_layers_output_normalised_by_itself(layers: tuple[int, ...], norm: str) -> None:
    model, images = build(**DEEP, target={"kind": "features", "layers": layers, "norm": norm}), pictures(3)
    lively(model.target_encoder, 5)  # with a last norm that is not the identity, and not the context's encoder
    out = model(images, MASKS)
    levels = hidden(model.target_encoder, images)
    torch.testing.assert_close(out.targets, wanted([levels[i] for i in layers], norm), rtol=0, atol=1e-10)
    assert out.predictions.shape == out.targets.shape == (18, len(layers) * 24)
    torch.testing.assert_close(out.terms["prediction"], F.smooth_l1_loss(out.predictions, out.targets), rtol=1e-12, atol=0)
    own = model.target_encoder.norm(levels[-1]).unflatten(0, (3, -1)).mean(1)
    torch.testing.assert_close(out.features, own, rtol=0, atol=1e-10)  # what is judged is the encoder's output as ever


def test_conditioned_target_encoders_give_the_layers_of_the_patches_alone() -> None:
    """With all layers but no context to tell apart, the last level is the norm-free form of what a plain target is."""
    layers, images = (0, 1, 2, 3), pictures(3)
    model = build(**DEEP, conditioning={}, target={"kind": "features", "layers": layers, "norm": "none"})
    plain = build(**DEEP, conditioning={}, target={"kind": "features", "norm": "none"})
    own, ours = plain(images, MASKS).targets, model(images, MASKS).targets
    torch.testing.assert_close(model.target_encoder.norm(ours[:, -24:]), own, rtol=0, atol=1e-10)
    assert (ours[:, :24] - ours[:, 24:48]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
@pytest.mark.parametrize("tensor", ["pred_blocks", "context_pooled"])
def test_a_regulariser_sees_the_last_level_only(kind: str, tensor: str) -> None:
    targets = [[[10, 11], [5]], [[0, 1], [12]], [[0, 5], [6]]]
    masks, regularizer = Masks.from_indices(CONTEXT, targets), {"kind": kind, "tensor": tensor, "projector": (16, 8)}
    model = build(**DEEP, target={"kind": "features", "layers": (1, 3)}, regularizer=regularizer)
    assert model.projector[0].in_features == 24
    out = model(pictures(3), masks, seed=3)
    assert model.method.regularizer is not None
    by_hand = model.method.regularizer.terms(out.context, out.predictions[:, 24:], out.targets[:, 24:], masks, model.projector, 3)
    for name, term in by_hand.items():
        torch.testing.assert_close(out.terms[name], term, rtol=1e-12, atol=0)


def test_none_is_the_encoders_output_bit_for_bit_and_one_layer_is_not() -> None:
    images, without = pictures(3), build(**DEEP)
    out = without(images, MASKS)
    full = without.target_encoder.norm(hidden(without.target_encoder, images)[-1])
    torch.testing.assert_close(out.targets, wanted([full]), rtol=0, atol=1e-10)
    last = build(**DEEP, target={"kind": "features", "layers": (3,)})
    lively(last.target_encoder, 5)
    assert last.predictor.predictor_proj.weight.shape == without.predictor.predictor_proj.weight.shape


def test_a_teachers_layers_are_its_own_blocks_outputs() -> None:
    images, settings = pictures(2, dtype=torch.float32), ImageSettings(size=(16, 20), depth="uint8")
    vit = lively(ViT(Method.model_validate(DEEP).encoder, GRID), 2)
    assert isinstance(vit, ViT)
    teacher = Teacher(Encoder(vit, settings), settings, GRID, (0, 2))
    given, levels = teacher(images), hidden(vit, images)
    torch.testing.assert_close(given, torch.cat([levels[0], levels[2]], 1), rtol=0, atol=1e-5)
    method = Method.model_validate(
        SMALL
        | {
            "target": {"kind": "features", "teacher": "t", "teacher_width": 24, "layers": (0, 2)}
        }  # beyond the student's depth of 2
    )
    masks = Masks.from_indices(CONTEXT[:2], TARGETS[:2])
    out = JEPA(method, GRID)(images, masks, teacher_features=given)
    rows = torch.tensor([i * 20 + p for i, blocks in enumerate(TARGETS[:2]) for block in blocks for p in block])
    both = torch.cat([F.layer_norm(levels[i], (24,))[rows] for i in (0, 2)], 1)
    torch.testing.assert_close(out.targets, both, rtol=0, atol=1e-4)


def test_layers_beyond_the_depth_unordered_or_twice_are_refused() -> None:
    with pytest.raises(UserError, match=r"target\.layers names block 12, and the encoder has 12: from 0 to 11"):
        resolve(overrides(["target.layers=[3,12]"]))
    for given in ("[3,1]", "[2,2]", "[-1]", "[]"):
        with pytest.raises(UserError, match=r"target\.layers"):
            resolve(overrides([f"target.layers={given}"]))
    settings = ImageSettings(size=(16, 20), depth="uint8")
    with pytest.raises(UserError, match=r"block 2, and the teacher has 2"):
        Teacher(Encoder(ViT(Method.model_validate(SMALL).encoder, GRID), settings), settings, GRID, (0, 2))
    none = resolve(overrides(["target.layers=none"])).target
    assert isinstance(none, FeatureTargets) and none.layers is None


def test_flops_count_the_wider_head_and_the_regularisers_one_level() -> None:
    config: Config = resolve(overrides(["encoder.depth=4", "regularizer.projector=[8]"]), {"regularizer": {"kind": "vicreg"}})
    wide = resolve(config.model_dump(), overrides(["target.layers=[0,1,2,3]"]))
    masks = config.masking.sample(config.grid, np.arange(4), seed=0)
    one, four = (flops.step(c, config.grid, 3, masks) for c in (config, wide))
    head = flops.linear_flops(len(masks.targets), config.predictor.width, 3 * config.encoder.width)
    assert four.predictor_forward - one.predictor_forward == head
    assert four.regularizer == one.regularizer and four.target_encoder == one.target_encoder
