"""StoP: the moments of noisy queries in closed form, where noise goes and what it trains, what it is a function of, and runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepakit.artifacts import checkpoint
from jepakit.config.config import overrides
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource
from jepakit.model.jepa import JEPA
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.predictor import Predictor, PredictorConfig
from jepakit.planning import flops
from jepakit.planning.memory import peak_memory
from jepakit.training.step import Training
from jepakit.training.train import pretrain
from test_model import CONTEXT, SMALL, TARGETS, build, pictures
from test_plan import CPU, LAW, SHAPES, counted
from test_resume import copy, same_bits

MASKS = Masks.from_indices(CONTEXT, TARGETS)
WANTED = torch.from_numpy(MASKS.targets)
WORDS = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 run.threads=1 run.precision=fp32 optim.steps=4 run.save_every_steps=2 "
    "run.probe_images=0 predictor.stop=.25"
)


def jepa(stop: float, width: int = 12, **parts: Any) -> JEPA:
    """Of the same weights for each `stop`, all far from those of the start; encoder width 24."""
    return build(**parts, predictor={**SMALL["predictor"], "width": width, "stop": stop})


def noise(predictor: Predictor, wanted: Tensor, seed: int = 0) -> Tensor:
    """n (S', D) itself, by an A that is the identity; the predictor is as wide as the encoder."""
    before = predictor.predictor_embed.weight.detach().clone()
    with torch.no_grad():
        predictor.predictor_embed.weight.copy_(torch.eye(24))
        n = predictor.queries(wanted, seed) - predictor.mask_token[0] - predictor.positions[wanted]
        predictor.predictor_embed.weight.copy_(before)
    return n


# ---- the law of the queries


@pytest.mark.parametrize("stop", [0.25, 1.5])
def test_queries_have_the_mean_without_noise_and_the_covariance_of_theory(stop: float) -> None:
    predictor, count = jepa(stop).predictor, 200_000
    with torch.no_grad():
        q = predictor.queries(torch.full((count,), 7), seed=3)
        a = predictor.predictor_embed.weight
        covariance = stop**2 * a @ a.T
        scale = covariance.diagonal().sqrt()
        assert ((q.mean(0) - predictor.mask_token[0, 0] - predictor.positions[7]).abs() < 5 * scale / count**0.5).all()
        assert ((q.T.cov() - covariance).abs() < 8 * torch.outer(scale, scale) / count**0.5).all()
        assert covariance[~torch.eye(12, dtype=torch.bool)].abs().max() > 0.1 * stop**2  # so that the test sees A


def test_the_noise_of_each_token_is_normal_of_that_deviation_and_its_own() -> None:
    n = noise(jepa(0.25, 24).predictor, torch.zeros(4000, dtype=torch.long))
    assert float(n.std()) == pytest.approx(0.25, rel=0.01) and float(n.mean()) == pytest.approx(0, abs=0.005)
    assert float((n / 0.25).pow(4).mean()) == pytest.approx(3, rel=0.05)  # a normal's
    assert len(n.unique(dim=0)) == 4000  # though all are at one position
    assert (n.T.corrcoef() - torch.eye(24)).abs().max() < 0.1


def test_off_is_the_law_without_it_to_the_bit_and_has_the_same_weights() -> None:
    assert PredictorConfig().stop == 0
    off, on, images = jepa(0), jepa(0.25), pictures(3)
    assert {k: v.shape for k, v in off.state_dict().items()} == {k: v.shape for k, v in on.state_dict().items()}
    plain = off.predictor.mask_token[0] + off.predictor.positions[WANTED]
    assert torch.equal(off.predictor.queries(WANTED, 1), plain)
    one, other = off(images, MASKS, seed=1), off(images, MASKS, seed=2, part=1)
    assert torch.equal(one.predictions, other.predictions) and torch.equal(one.loss, other.loss)


# ---- where it goes


def test_only_the_queries_are_noisy() -> None:
    off, on, images = jepa(0), jepa(0.25), pictures(3)
    seen: list[Tensor] = []
    for model in (off, on):
        model.predictor.predictor_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    without, out = off(images, MASKS), on(images, MASKS)
    assert torch.equal(without.context, out.context) and torch.equal(without.targets, out.targets)
    assert torch.equal(without.features, out.features) and not torch.equal(without.predictions, out.predictions)
    noisy = (seen[0] != seen[1]).any(1)
    assert int(noisy.sum()) == len(MASKS.targets) and (seen[0] != seen[1])[noisy].all()
    torch.testing.assert_close(seen[1][noisy], on.predictor.queries(WANTED, torch_seed_of(on, images)), rtol=0, atol=1e-12)


def torch_seed_of(model: JEPA, images: Tensor) -> int:
    """What forward gives the predictor for its noise, with the seed and part of default."""
    given: list[int] = []
    handle = model.predictor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[2]))
    model(images, MASKS)
    handle.remove()
    return given[0]


def test_the_weight_that_embeds_the_context_is_trained_by_the_noise_and_its_bias_is_not() -> None:
    predictor = jepa(0.25, 24).predictor
    n = noise(predictor, WANTED, 5)
    g = torch.randn(len(WANTED), 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (predictor.queries(WANTED, 5) * g).sum().backward()
    torch.testing.assert_close(predictor.predictor_embed.weight.grad, g.T @ n)
    assert predictor.predictor_embed.bias.grad is None
    assert predictor.mask_token.grad is not None
    torch.testing.assert_close(predictor.mask_token.grad[0, 0], g.sum(0))


def test_at_zero_the_noises_own_gradient_has_mean_zero_and_what_is_tied_to_it_has_not() -> None:
    """Proposition 3.1: a matrix of the noise alone would stay at 0, as there J's gradient is sum of g n^T, g the queries'."""
    images, grads = pictures(3), dict[float, Tensor]()
    for stop in (0, 0.25):
        model = jepa(stop, 24)
        with torch.no_grad():
            model.predictor.predictor_embed.weight.zero_()
        asked: list[Tensor] = []
        own = model.predictor.queries

        def queries(wanted: Tensor, seed: int, counts: Any, own: Any = own, asked: list[Tensor] = asked) -> Tensor:
            asked.append(own(wanted, seed))
            asked[0].retain_grad()
            return asked[0]

        model.predictor.queries = queries  # type: ignore[method-assign]
        model(images, MASKS).loss.backward()
        grad = model.predictor.predictor_embed.weight.grad
        assert grad is not None
        grads[stop] = grad
        g = asked[0].grad
    assert g is not None
    seed = torch_seed_of(jepa(0.25, 24), images)
    torch.testing.assert_close(grads[0.25] - grads[0], g.T @ noise(jepa(0.25, 24).predictor, WANTED, seed), rtol=1e-9, atol=1e-12)
    assert grads[0].abs().max() > 1e-4  # the context's, at any noise


# ---- what it is a function of


def test_it_is_a_function_of_seed_and_part_and_of_no_hidden_state() -> None:
    model, images = jepa(0.25), pictures(3)

    def predicted(seed: int, part: int) -> Tensor:
        torch.manual_seed(seed + part)
        before = torch.get_rng_state()
        out = model(images, MASKS, seed=seed, part=part).predictions
        assert torch.equal(before, torch.get_rng_state())
        return out

    outs = {(seed, part): predicted(seed, part) for seed in (4, 5) for part in (0, 1)}
    torch.manual_seed(99)
    assert torch.equal(model(images, MASKS, seed=4, part=1).predictions, outs[4, 1])
    pairs = [(a, b) for a in outs for b in outs if a < b]
    assert all(not torch.equal(outs[a], outs[b]) for a, b in pairs)


def test_each_step_and_micro_batch_has_noise_of_its_own_alike_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(*words: str) -> list[int]:
        drawn: list[int] = []
        own = training(*words)
        queries = Predictor.queries

        def seen(self: Predictor, wanted: Tensor, seed: int, counts: Any) -> Tensor:
            drawn.append(seed)
            return queries(self, wanted, seed, counts)

        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "queries", seen)
            for step in (0, 1):
                own.train_step(replace(own.loader.batch(0), step=step), own.schedule.at(0), check=True)
        return drawn

    whole, parts = seeds(), seeds("optim.accumulate=2")
    assert len(set(whole)) == 2 and len(set(parts)) == 4 and parts[::2] == whole
    assert seeds("optim.accumulate=2") == parts and not set(seeds("seed=1")) & set(whole)


# ---- in a run


def source() -> ArraySource:
    return ArraySource("noise", np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), np.uint8), None)


def training(*words: str) -> Training:
    return Training.prepare(settings("small", None, overrides([*WORDS.split(), *words])), source())


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_its_flops_are_those_that_torch_counts(shape: int) -> None:
    grid, channels, sizes = SHAPES[shape]
    predictor = {**sizes["predictor"], "stop": 0.25}
    method = Method.model_validate({**sizes, "predictor": predictor, "masking": LAW})
    masks = method.masking.sample(grid, np.arange(3), seed=1)
    ours = flops.step(method, grid, channels, masks, padded=True)
    parts, total = counted(method, grid, channels, masks)
    assert (ours.predictor_forward, ours.total) == (parts.predictor_forward, total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_the_noise_and_keeps_the_positions(dtype: torch.dtype) -> None:
    model = jepa(0.25).float()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        q = model.predictor.queries(WANTED, 1)
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.double(), jepa(0.25).predictor.queries(WANTED, 1), rtol=0, atol=0.02)


def test_a_run_with_it_is_foreseen_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = settings("small", None, overrides(WORDS.split()))
    off = config.model_copy(update={"predictor": config.predictor.model_copy(update={"stop": 0.0})})
    assert peak_memory(config, CPU, 64).total > peak_memory(off, CPU, 64).total
    np.savez(tmp_path / "noise.npz", images=source().images)
    straight = pretrain(str(tmp_path / "noise.npz"), tmp_path / "a", set=WORDS.split())
    again = copy(straight, tmp_path / "b")
    (again.checkpoints / checkpoint.step_name(4) / "model.safetensors").write_bytes(b"broken")
    same_bits(straight, pretrain(resume=again.path))
    assert again.config.predictor.stop == 0.25


def test_a_negative_deviation_is_refused() -> None:
    with pytest.raises(UserError, match=r"predictor\.stop"):
        settings("small", None, overrides(["predictor.stop=-1"]))
