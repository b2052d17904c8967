"""Positions and patch embeddings of other sizes, by closed forms; positions that are learnt."""

import pytest
import torch

from jepakit.artifacts.load import build_jepa
from jepakit.artifacts.resample import change_channels, resize_patches
from jepakit.config.config import resolve
from jepakit.config.optim import optimizer
from jepakit.core.errors import UserError
from jepakit.model.vit import resample_positions


def test_a_ramp_of_positions_stays_a_ramp() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    ramp = torch.stack([rows, columns], -1).flatten(0, 1)
    finer = resample_positions(ramp, (8, 6), (16, 12)).unflatten(0, (16, 12))
    inner = finer[4:-4, 4:-4]  # where the four neighbours of bicubic interpolation all lie in the grid
    expected_rows, expected_columns = ((torch.arange(n) + 0.5) / 2 - 0.5 for n in (16, 12))  # centres of patches on centres
    # torch's kernel (A = -.75) bends a ramp by A-dependent 3/64 between two places, the same between any two
    for axis, expected in ((0, expected_rows[4:-4, None].expand(8, 4)), (1, expected_columns[None, 4:-4].expand(8, 4))):
        torch.testing.assert_close((inner[..., axis] - expected).abs(), torch.full((8, 4), 3 / 64))
        torch.testing.assert_close(finer[..., axis] + finer.flip(0, 1)[..., axis], torch.full((16, 12), 7.0 - 2 * axis))
    torch.testing.assert_close(inner[2:, :, 0] - inner[:-2, :, 0], torch.ones(6, 4))
    assert resample_positions(ramp, (8, 6), (8, 6)) is ramp


@pytest.mark.parametrize("new", [5, 8, 12, 16])
def test_an_enlarged_patch_gives_what_the_patch_gave(new: int) -> None:
    """FlexiViT, equation 4: for patches enlarged by the same resize the answer is exact, so up and down is the identity."""
    g = torch.Generator().manual_seed(0)
    weight, patches = torch.randn(7, 3, 4, 4, generator=g), torch.randn(5, 3, 4, 4, generator=g)
    larger = torch.nn.functional.interpolate(patches, (new, new), mode="bilinear", align_corners=False)
    resized = resize_patches(weight, new)
    before, after = (torch.einsum("nchw,dchw->nd", *pair) for pair in ((patches, weight), (larger, resized)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(resized.sum((2, 3)), weight.sum((2, 3)), rtol=1e-4, atol=1e-4)  # a constant image
    assert resize_patches(weight, 4) is weight


def test_a_shrunk_patch_is_the_least_squares_answer() -> None:
    weight = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    shrink = torch.nn.functional.interpolate(basis, (4, 4), mode="bilinear", antialias=True).flatten(1)  # B^T
    expected = torch.linalg.lstsq(shrink, weight.flatten(1).T).solution.T
    torch.testing.assert_close(resize_patches(weight.float(), 4).flatten(1), expected.float(), rtol=1e-4, atol=1e-5)


def test_a_gray_image_is_to_one_channel_what_it_was_to_three() -> None:
    weight, gray = torch.randn(5, 3, 4, 4), torch.randn(2, 1, 4, 4)
    for here, there in ((weight, change_channels(weight, 1, "x")), (weight.sum(1, keepdim=True), None)):
        there = change_channels(here, 3, "x") if there is None else there
        answers = [torch.einsum("nchw,dchw->nd", gray.expand(-1, w.shape[1], -1, -1), w) for w in (here, there)]
        torch.testing.assert_close(*answers)
    with pytest.raises(UserError, match="3 channels, and the images have 13"):
        change_channels(weight, 13, "x")


def test_learnt_positions_do_not_decay_and_fixed_ones_change_no_state() -> None:
    layer = {"encoder": {"width": 16, "depth": 1, "heads": 2, "patch_size": 4}, "images": {"size": 16}, "predictor": {"width": 8}}
    fixed = build_jepa(resolve(layer))
    learnt = build_jepa(resolve(layer, {"encoder": {"learned_positions": True}}))
    names = learnt.state_dict().keys() - fixed.state_dict().keys()
    assert names == {"encoder.positions", "target_encoder.positions"}
    assert torch.equal(learnt.encoder.positions, fixed.encoder.positions)  # they begin as the sin-cos ones
    decays, others = optimizer(learnt, resolve(layer).optim).param_groups
    assert any(p is learnt.encoder.positions for p in others["params"]) and not others["decays"] and decays["decays"]
    assert all(p is not learnt.target_encoder.positions for group in (decays, others) for p in group["params"])
