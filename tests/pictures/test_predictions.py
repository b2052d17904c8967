"""What the predictor predicts: tokens as training has them, numbers by closed forms, a decoder that knows what it paints."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from jepakit.core import rng
from jepakit.evaluation.probes.ridge import ridge
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.method import METHODS, Method
from jepakit.model.predictor import PredictorConfig
from jepakit.model.vit import ViTConfig, patchify
from jepakit.pictures.painted_patches import DECODER_CAPTIONS, fit_ridge, paint
from jepakit.pictures.predicted_tokens import PredictedTokens, nearest_patches, noise_draws, predicted_tokens, prediction_numbers

GRID = (4, 5)
IMAGES = ImageSettings(size=(16, 20), mean=(0.5,) * 3, std=(0.25,) * 3)


def model(name: str, **more: Any) -> JEPA:
    torch.manual_seed(0)
    parts = {"encoder": ViTConfig(patch_size=4, width=32, depth=2, heads=4), "predictor": PredictorConfig(depth=1, width=16)}
    return JEPA(Method(**(METHODS[name] | parts | {"masking": MultiBlock(min_keep=2)} | more)), GRID).eval()


def images(n: int = 12) -> Tensor:
    """Slopes of brightness and colour, which tokens of any encoder tell."""
    draw = torch.Generator().manual_seed(0)
    down, across = (torch.linspace(-1, 1, side) for side in (16, 20))
    slopes = torch.rand(3, n, 3, 1, 1, generator=draw) * 2 - 1
    return slopes[0] * down[:, None] + slopes[1] * across + slopes[2]


@pytest.mark.parametrize("name", ["ijepa", "ec_c_jepa", "mae_pixels"])
def test_predictions_and_targets_are_those_of_training(name: str) -> None:
    jepa, x = model(name, masking=MultiBlock(min_keep=2, draws=3, contexts=2)), images(4)
    of = predicted_tokens(jepa, x, seed=5)
    law = MultiBlock(min_keep=2)
    masks = law.sample(GRID, np.arange(4), seed=5)
    with torch.no_grad():
        out = jepa(x, masks)
    block = np.repeat(np.arange(len(masks.target_lengths)), masks.target_lengths)
    image = masks.draw_of_block[block]
    true = of.true[image, masks.targets]
    torch.testing.assert_close(true, out.targets, atol=1e-5, rtol=1e-5)
    for i, place in ((0, masks.targets[0]), (3, masks.targets[-1])):  # where blocks overlap, the mean of what each asks for
        rows = np.flatnonzero((image == i) & (masks.targets == place))
        torch.testing.assert_close(of.predictions[i, place], out.predictions[rows].mean(0), atol=1e-5, rtol=1e-4)
    seen = np.zeros((4, 20), bool)
    seen[np.repeat(masks.image_of_draw, masks.context_lengths), masks.context] = True
    np.testing.assert_array_equal(of.context.numpy(), seen)
    assert not (of.context & of.asked).any() and (of.predictions[~of.asked] == 0).all()


def made(predictions: Tensor, true: Tensor, asked: Tensor) -> PredictedTokens:
    return PredictedTokens(predictions, true, ~asked, asked[:, None], torch.zeros(*true.shape[:2], 12))


def test_numbers_tell_knowing_from_naming_the_place_or_the_image() -> None:
    draw = torch.Generator().manual_seed(0)
    true, asked = torch.randn(8, 20, 64, generator=draw), torch.rand(8, 20, generator=draw) < 0.5
    knows = prediction_numbers(made(true, true, asked))
    assert knows["own"] == pytest.approx(1) and knows["found"] == knows["found_image"] == 1
    assert knows["prediction_spread"] == pytest.approx(knows["true_spread"]) and abs(knows["elsewhere"]) < 0.05
    assert knows["chance"] == 1 / 160
    place, image = true.mean(0, keepdim=True).expand(8, -1, -1), true.mean(1, keepdim=True).expand(-1, 20, -1)
    only_place, only_image = (prediction_numbers(made(each, true, asked)) for each in (place, image))
    assert only_place["own"] == pytest.approx(only_place["other_image"], abs=0.05) and only_place["own"] > 0.2
    assert only_image["prediction_spread"] == pytest.approx(0, abs=1e-9)  # asking elsewhere changes nothing
    assert only_image["own"] == pytest.approx(only_image["elsewhere"], abs=0.05) and abs(only_image["other_image"]) < 0.05
    alone = prediction_numbers(made(true[:1], true[:1], asked[:1]))
    assert np.isnan(alone["other_image"]) and alone["own"] == pytest.approx(1)


def test_the_nearest_patch_is_of_another_image() -> None:
    draw = torch.Generator().manual_seed(0)
    true, asked = torch.randn(5, 20, 8, generator=draw), torch.rand(5, 20, generator=draw) < 0.5
    of = made(true + 0.1, true, asked)
    found = nearest_patches(of, 3)
    unit = torch.nn.functional.normalize(true, dim=2)
    for i in range(3):
        for place in range(20):
            cosines = unit @ torch.nn.functional.normalize(of.predictions[i, place], dim=0)
            cosines[i] = -2
            assert found[i, place] == (cosines.argmax() if asked[i, place] else -1)
    assert (nearest_patches(made(true[:1], true[:1], asked[:1]), 1) == -1).all()


def test_ridge_of_many_columns_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    x, y, asked = draw.normal(size=(50, 6)) * 3 + 1, draw.normal(size=(50, 4)), draw.normal(size=(7, 6))
    mean, std = x.mean(0), x.std(0)
    judge = Ridge(alpha=50 * 0.1).fit((x - mean) / std, y).predict((asked - mean) / std)
    ours = ridge(*map(torch.from_numpy, (x, y, asked)), [0.1])
    np.testing.assert_allclose(ours[0], judge, atol=1e-9)


def test_the_decoder_beats_the_mean_patch_on_images_it_has_not_seen() -> None:
    jepa, x = model("ijepa"), images(40)
    found = paint(jepa, x, IMAGES, shown=4)
    assert found.decoder == "ridge" and found.numbers["r2_true"] > 0.5
    assert found.numbers["r2_predicted"] < found.numbers["r2_true"]  # an untrained predictor knows nothing
    of = predicted_tokens(jepa, x)
    asked, others = of.asked[:10], of.patches[10:].flatten(0, 1)  # a quarter is held out, whether it is shown or not
    truth = of.patches[:10][asked]
    said = fit_ridge(of.true[10:], of.patches[10:], of.true[:10][asked])
    mean_error, error = (float((truth - each).square().sum()) for each in (others.mean(0), said))
    assert found.numbers["r2_true"] == pytest.approx(1 - error / mean_error, abs=1e-5)


def test_pictures_keep_the_context_hide_the_rest_and_paint_the_targets() -> None:
    jepa, x = model("mae_pixels"), images(6)
    found = paint(jepa, x, IMAGES, shown=3)
    assert found.decoder == "pixels" and found.caption == DECODER_CAPTIONS["pixels"] and found.figure().axes
    context, asked = (each.repeat(4, 1).repeat(4, 2) for each in (found.context, found.blocks.any(1)))
    np.testing.assert_array_equal(found.seen[context], found.images[context])
    assert (found.seen[~context] == 128).all()
    assert found.true_painted is not None and found.painted is not None and found.nearest is not None
    far = found.true_painted[asked].astype(int) - found.images[asked]  # of pixels, normalised and back
    assert np.abs(far).max() <= 1
    for painted in (found.true_painted, found.painted, found.nearest):
        np.testing.assert_array_equal(painted[context], found.images[context])
        assert (painted[~context & ~asked] == 128).all()
    assert (found.painted != found.true_painted)[asked].any()
    assert np.isfinite(found.cosines).tolist() == found.blocks.any(1).tolist()
    assert found.field.shape == (3, *GRID) and np.abs(found.field).max() <= 1 + 1e-5


def test_each_draw_of_noise_is_the_predictors_own_and_only_what_is_asked_for_differs() -> None:
    jepa, x = model("ijepa", predictor=PredictorConfig(depth=1, width=16, stop=0.5)), images(12)
    found, of = paint(jepa, x, IMAGES, shown=3), predicted_tokens(jepa, x)
    assert found.noise is not None and found.noise.shape == (3, 4, 16, 20, 3) and found.figure().axes
    drawn = noise_draws(jepa, x, 3, 4)
    masks = MultiBlock(min_keep=2).sample(GRID, np.arange(12), seed=0).of_images(slice(0, 3))
    with torch.no_grad():
        context = jepa.encode_context(patchify(x[:3], 4), masks)
        said = jepa.predictor(context, masks, rng.torch_seed(0, "noise drawn", 2))
    block = np.repeat(np.arange(len(masks.target_lengths)), masks.target_lengths)
    rows = np.flatnonzero(
        (masks.draw_of_block[block] == 1) & (masks.targets == masks.targets[masks.draw_of_block[block] == 1][0])
    )
    torch.testing.assert_close(drawn[2, 1, masks.targets[rows[0]]], said[rows].mean(0))
    assert (drawn[:, ~of.asked[:3]] == 0).all() and len({each.sum().item() for each in drawn}) == 4
    unit = torch.nn.functional.normalize(drawn[:, of.asked[:3]].double(), dim=2)
    pairs = [(unit[a] * unit[b]).sum(1).mean() for a in range(4) for b in range(a)]
    assert found.numbers["noise_spread"] == pytest.approx(1 - float(torch.stack(pairs).mean()))
    context_seen, asked = (each.repeat(4, 1).repeat(4, 2) for each in (found.context, found.blocks.any(1)))
    for k in range(4):
        np.testing.assert_array_equal(found.noise[:, k][context_seen], found.images[context_seen])
        assert (found.noise[:, k][~context_seen & ~asked] == 128).all() and (found.noise[:, k] != found.noise[:, k - 1]).any()
    plain = paint(model("ijepa"), x, IMAGES, shown=3)
    assert plain.noise is None and "noise_spread" not in plain.numbers


def test_few_images_and_broken_ones() -> None:
    jepa = model("ijepa")
    alone = paint(jepa, images(1), IMAGES)
    assert alone.decoder == "" and alone.painted is alone.nearest is None and alone.caption == DECODER_CAPTIONS[""]
    with torch.no_grad():
        jepa.predictor.predictor_proj.bias[0] = torch.nan
    with pytest.raises(Exception, match="not finite"):
        paint(jepa, images(2), IMAGES)


def test_a_prediction_is_beside_its_own_truth_only_where_asked() -> None:
    of = predicted_tokens(model("ijepa"), images(3))
    same = replace(of, predictions=torch.where(of.asked[..., None], of.true, 0))
    assert prediction_numbers(same)["own"] == pytest.approx(1)
