"""The diffusion decoder: its schedule and sampler by closed forms, and that it learns what its conditions say."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from jepakit.model.images import ImageSettings
from jepakit.pictures import sampled_blocks as blocks
from jepakit.pictures.diffusion import Denoiser, draw_samples, fit_denoiser, signal_and_noise
from jepakit.pictures.sampled_blocks import sampled_blocks
from test_predictions import GRID, IMAGES, images, model


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of the smoke size."""
    monkeypatch.setattr(blocks, "fit_denoiser", partial(fit_denoiser, width=8, batch=4))
    monkeypatch.setattr(blocks, "draw_samples", partial(draw_samples, steps=2))


def test_the_schedule_keeps_the_variance_and_ends_in_noise() -> None:
    signal, noise = signal_and_noise(torch.linspace(0, 1, 11))
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(11, 1, 1, 1))
    assert float(signal[-1]) < 0.02 and float(noise[0]) < 0.02 and (signal.diff(dim=0) < 0).all()


def test_samples_of_a_perfect_denoiser_are_the_data() -> None:
    """Of data that are one picture for each condition, what is noise in x at a time is known."""
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    conditions = torch.tensor([[0.0], [1.0]])

    def perfect(x: Tensor, time: Tensor, told: Tensor) -> Tensor:
        signal, noise = signal_and_noise(time)
        here = picture[told[:, 0].long()]
        return signal * (x - signal * here) / noise - noise * here

    for seed in (0, 1):
        torch.testing.assert_close(draw_samples(perfect, conditions, (3, 8, 8), steps=7, seed=seed), picture, atol=1e-4, rtol=0)


def test_samples_of_a_gaussian_have_its_deviation() -> None:
    """Of pixels from N(0, s^2) the best denoiser is linear; without noise on the way samples keep mean and deviation."""
    s = 0.3

    def best(x: Tensor, time: Tensor, told: Tensor) -> Tensor:
        signal, noise = signal_and_noise(time)
        variance = signal.square() * s**2 + noise.square()
        return x * signal * noise * (1 - s**2) / variance

    drawn = draw_samples(best, torch.zeros(64, 1), (1, 8, 8), steps=200)
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - s) < 0.02


def test_a_short_training_learns_what_conditions_say() -> None:
    told = torch.tensor([[-1.0], [1.0]]).repeat(8, 1)
    pictures = (0.7 * told)[:, :, None, None].expand(-1, 1, 8, 8)  # dark, and bright
    fitted = fit_denoiser(pictures, told, 60, batch=8, lr=3e-3, width=8)
    drawn = draw_samples(fitted, told[:2], (1, 8, 8), steps=10)
    assert float(drawn[0].mean()) < -0.2 and float(drawn[1].mean()) > 0.2
    one, again = (fit_denoiser(pictures, told, 2, batch=2, width=8).out[2].weight for _ in range(2))
    assert torch.equal(one, again)
    assert Denoiser(13, 5)(torch.zeros(2, 13, 16, 16), torch.rand(2), torch.zeros(2, 5)).shape == (2, 13, 16, 16)


def test_samples_stand_in_the_place_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    jepa, x = model("ec_ijepa"), images(8)
    found = sampled_blocks(jepa, x, IMAGES, shown=2, samples=2, steps=2)
    assert found.samples.shape == (2, 2, 16, 20, 3) and found.pairs == 6 * 4 * 4  # images, blocks, draws of masks
    for image, box in zip(range(2), found.boxes * 4, strict=True):
        inside = np.zeros((16, 20), bool)
        inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
        first, second = found.samples[image]
        assert (first != second)[inside].any() and (first == second)[~inside].all()
        rest = first[~inside]
        assert ((rest == found.images[image][~inside]).all(-1) | (rest == 128).all(-1)).all()
    assert GRID == (4, 5) and isinstance(IMAGES, ImageSettings)
