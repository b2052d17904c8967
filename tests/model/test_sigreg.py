"""SIGReg: the Epps-Pulley statistic by its integral and closed forms, what it sees, what it makes of features, and its draws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, trapezoid
from torch import Tensor, nn

from jepakit.artifacts import checkpoint
from jepakit.config.config import overrides, resolve
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource
from jepakit.model.images import normalise, turned
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method, method_name
from jepakit.model.regularizers import sigreg
from jepakit.model.regularizers.sigreg import SIGReg, directions, epps_pulley
from jepakit.model.regularizers.vicreg import VICReg
from jepakit.planning import flops
from jepakit.planning.memory import peak_memory
from jepakit.training.step import Training
from jepakit.training.train import pretrain
from test_plan import CPU, LAW, SHAPES, counted
from test_regularizers import MASKS, SAMPLES, pooled, random, tensors
from test_resume import copy, same_bits

POINT = (2 * np.pi) ** 0.5 * (1 - 2 / 2**0.5 + 1 / 3**0.5)  # the integral of a point mass at 0, over all reals: .40892


def by_definition(x: np.ndarray, knots: int, reach: float) -> float:
    """T of samples (N,), one knot after the other, on both halves."""
    h = reach / (knots - 1)
    total = 0.0
    for k in range(-knots + 1, knots):
        t = k * h
        phi = np.exp(1j * t * x).mean()
        total += (0.5 if abs(k) == knots - 1 else 1) * h * abs(phi - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2)
    return float(len(x) * total)


def of_normal(t: float, mean: float, std: float, n: int) -> float:
    """The expectation, over n samples of N(mean, std^2), of n times what is integrated: bias and variance of phi_N."""
    phi = np.exp(1j * mean * t - (std * t) ** 2 / 2)
    return float((n * abs(phi - np.exp(-t * t / 2)) ** 2 + 1 - abs(phi) ** 2) * np.exp(-t * t / 2))


def term(z: Tensor, seed: int = 0, **how: Any) -> float:
    """The unweighted term of features (N, d) as the pooled contexts of N images."""
    masks = Masks.from_indices([[0]] * len(z), [[[1]]] * len(z))
    return float(SIGReg(weight=1, **how).terms(z, z, z, masks, nn.Identity(), seed)["sigreg"])


# ---- the statistic


@pytest.mark.parametrize(("knots", "reach"), [(17, 3.0), (2, 1.0), (40, 5.0)])
def test_the_statistic_is_its_definition(knots: int, reach: float) -> None:
    x = 1.7 * random(9, 4) + 0.3
    for values, expected in ((x, x.numpy()), (x.float(), x.float().double().numpy())):
        ours = epps_pulley(values, knots, reach)
        wanted = [by_definition(expected[:, k], knots, reach) for k in range(4)]
        np.testing.assert_allclose(ours.double().numpy(), wanted, rtol=1e-12 if values.dtype == torch.float64 else 1e-5)


def test_a_point_mass_has_the_integrals_closed_form() -> None:
    for n in (2, 50):
        zeros = torch.zeros(n, 1, dtype=torch.float64)
        assert float(epps_pulley(zeros, 400, 9.0)) == pytest.approx(n * POINT, rel=1e-9)
        inside, _ = quad(lambda t: (1 - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2), -3, 3)
        # Euler and Maclaurin: the rule's error is h^2 / 12 times the difference of the slopes at the ends, 3.2e-2 here
        slope = -3 * np.exp(-4.5) * (1 - np.exp(-4.5)) * (1 - 3 * np.exp(-4.5))
        assert float(epps_pulley(zeros)) == pytest.approx(n * (inside + 2 * (3 / 16) ** 2 / 12 * slope), rel=1e-5)
        assert float(epps_pulley(zeros)) == pytest.approx(n * inside, rel=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0.5, 1), (0, 2), (0, 0.5), (-1, 0.7)])
@pytest.mark.parametrize("n", [4, 64])
def test_normal_samples_have_the_expectation_of_theory(mean: float, std: float, n: int) -> None:
    found = epps_pulley(mean + std * random(n, 4000, seed=n), 33, 4.0)
    t = np.linspace(-4, 4, 65)
    expected = trapezoid([of_normal(x, mean, std, n) for x in t], t)
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / 4000**0.5)
    if (mean, std) == (0, 1):  # for any n
        assert expected == pytest.approx((2 * np.pi) ** 0.5 * (1 - 3**-0.5), rel=1e-3)


def test_of_normal_features_it_is_about_one_for_any_number_and_of_equal_ones_it_grows() -> None:
    normal = [np.mean([term(random(n, 16, seed=seed)) for seed in range(5)]) for n in (16, 64, 256)]
    assert all(0.9 < value < 1.2 for value in normal)
    for place in (0.0, 1.0):
        equal = [term(torch.full((n, 16), place, dtype=torch.float64)) for n in (16, 64)]
        assert equal[1] == pytest.approx(4 * equal[0]) and equal[0] >= 16 * 0.4


def test_it_sees_a_shift_a_scale_and_an_anisotropy_of_the_same_trace_and_more_of_more() -> None:
    z = random(512, 8)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T  # exactly white
    for worse in (lambda a: z + a, lambda a: z * (1 + a), lambda a: z * torch.tensor([1 + a, 1 - a] * 4).sqrt()):
        values = [term(worse(a)) for a in (0.0, 0.3, 0.6, 0.9)]
        assert values == sorted(values) and values[3] > 5 * values[0]


def test_it_sees_a_distribution_that_has_a_normals_mean_and_covariance() -> None:
    signs = random(512, 1).sign()
    assert term(signs) > 50 > 10 * term(random(512, 1, seed=1))  # VICReg tells them apart by nothing


def test_rotated_features_have_the_same_value_up_to_the_choice_of_directions() -> None:
    z = random(64, 5) * torch.tensor([2.0, 1.0, 1.0, 0.5, 0.1]) + 0.3
    q = torch.linalg.qr(random(5, 5, seed=1))[0]
    own = epps_pulley(z @ directions(5, 4000, 0).double())
    assert term(z @ q, directions=4000) == pytest.approx(float(own.mean()), abs=5 * float(own.std()) / 2000**0.5)


def test_directions_are_unit_vectors_that_favour_none() -> None:
    a = directions(6, 20_000, 3).double()
    torch.testing.assert_close(a.norm(dim=0), torch.ones(20_000, dtype=torch.float64), rtol=1e-6, atol=0)
    assert a.mean(1).abs().max() < 0.02
    torch.testing.assert_close(a @ a.T / 20_000, torch.eye(6, dtype=torch.float64) / 6, rtol=0, atol=0.01)


# ---- what it does


@pytest.mark.parametrize("place", [0.0, 1.0, -3.0])
def test_its_gradient_drives_collapsed_features_apart(place: float) -> None:
    z = (place + 1e-4 * random(32, 8)).requires_grad_()
    masks = Masks.from_indices([[0]] * 32, [[[1]]] * 32)
    SIGReg().terms(z, z, z, masks, nn.Identity())["sigreg"].backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().max() > 1e-6
    moved = (z - 0.01 * z.grad).detach()
    assert (moved.var(0) > z.detach().var(0)).all()


def test_what_lowers_it_turns_features_into_a_standard_normal() -> None:
    z = (random(128, 4) * torch.tensor([1.5, 1.0, 0.3, 0.01]) + 0.5).requires_grad_()
    adam = torch.optim.Adam([z], 0.05)
    for step in range(400):
        loss = epps_pulley(z @ directions(4, 32, step).double()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    z = z.detach()
    assert z.mean(0).abs().max() < 0.1
    assert (torch.linalg.eigvalsh(z.T.cov()) - 1).abs().max() < 0.25


# ---- in the loss


def test_context_pooled_is_of_each_draws_context_and_nothing_else() -> None:
    context, predictions, targets = tensors()
    found = SIGReg(weight=0.5, directions=7).terms(context, predictions, targets, MASKS, nn.Identity(), 11)
    z = pooled(context, MASKS.context_lengths).numpy() @ directions(5, 7, 11).double().numpy()
    assert set(found) == {"sigreg"}
    assert float(found["sigreg"]) == pytest.approx(0.5 * np.mean([by_definition(x, 17, 3.0) for x in z.T]), rel=1e-10)


def test_pred_blocks_is_the_mean_over_the_places_of_blocks() -> None:
    context, predictions, targets = tensors()
    found = SIGReg(tensor="pred_blocks").terms(context, predictions, targets, MASKS, nn.Identity(), 4)
    z = pooled(predictions, MASKS.target_lengths).view(SAMPLES, 3, 5)
    assert float(found["sigreg"]) == pytest.approx(0.05 * np.mean([term(z[:, m], seed=4) for m in range(3)]), rel=1e-10)
    ragged = Masks.from_indices([[0], [1]], [[[2], [3]], [[4]]])
    with pytest.raises(UserError, match="same number"):
        SIGReg(tensor="pred_blocks").terms(random(2, 5), random(3, 5), random(3, 5), ragged, nn.Identity())


def test_autocast_does_not_lower_its_precision() -> None:
    given = [x.bfloat16() for x in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = SIGReg().terms(*given, MASKS, nn.Linear(5, 3), 2)["sigreg"]
        assert rounded.dtype == torch.float32
        rounded = SIGReg().terms(*given, MASKS, nn.Identity(), 2)["sigreg"]
    exact = SIGReg().terms(*(x.double() for x in given), MASKS, nn.Identity(), 2)["sigreg"]
    assert float(rounded) == pytest.approx(float(exact), rel=1e-5)


def test_the_gradient_is_that_of_the_value() -> None:
    context, predictions, targets = (x.requires_grad_() for x in tensors(3))
    for reading in ("context_pooled", "pred_blocks"):
        law = SIGReg(tensor=reading, weight=1, directions=5)  # type: ignore[arg-type]
        project = nn.Identity()

        def value(c: Tensor, p: Tensor, law: SIGReg = law, project: nn.Module = project) -> Tensor:
            return law.terms(c, p, targets, MASKS, project, 1)["sigreg"]

        assert torch.autograd.gradcheck(value, (context, predictions))


@pytest.mark.parametrize("how", [{}, {"tensor": "pred_blocks"}, {"projector": [20, 8]}, {"directions": 3}], ids=str)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_its_flops_are_those_that_torch_counts(how: dict[str, Any], shape: int) -> None:
    grid, channels, sizes = SHAPES[shape]
    method = Method.model_validate({**sizes, "masking": LAW, "regularizer": {"kind": "sigreg", **how}})
    masks = method.masking.sample(grid, np.arange(3), seed=1)
    ours = flops.step(method, grid, channels, masks, padded=True)
    assert ours.total == counted(method, grid, channels, masks)[1] and ours.regularizer > 0


# ---- what it draws

WORDS = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 run.threads=1 run.precision=fp32 optim.steps=4 run.save_every_steps=2 "
    "run.probe_images=0 regularizer.kind=sigreg images.target_crop=own"
)
TINY = WORDS.split()


def source() -> ArraySource:
    return ArraySource("noise", np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), np.uint8), None)


def training(*words: str) -> Training:
    return Training.prepare(settings("small", None, overrides([*TINY, *words])), source())


def test_directions_are_a_function_of_the_runs_seed_and_the_step_alike_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(*words: str) -> list[int]:
        drawn: list[int] = []
        own = training(*words)
        monkeypatch.setattr(sigreg, "directions", lambda d, k, seed: drawn.append(seed) or directions(d, k, seed))
        for step in (0, 1, 5):
            own.train_step(own.loader.batch(step), own.schedule.at(0), check=True)
        return drawn

    whole, parts, other = seeds(), seeds("optim.accumulate=2"), seeds("seed=1")
    assert len(set(whole)) == 3 and parts == [seed for seed in whole for _ in range(2)]
    assert not set(whole) & set(other)


def test_another_step_has_other_directions_and_all_else_alike() -> None:
    def terms(step: int) -> dict[str, float]:
        own = training()
        out, _ = own.train_step(replace(own.loader.batch(0), step=step), own.schedule.at(0), check=True)
        return {name: float(value.detach()) for name, value in out.terms.items()}

    first, again, other = terms(0), terms(0), terms(1)
    assert first == again and first["prediction"] == other["prediction"] and first["sigreg"] != other["sigreg"]


def test_a_step_shows_the_target_encoder_the_crop_of_its_own() -> None:
    own = training("images.symmetry=mirror")
    batch = own.loader.batch(0)
    images, others = (
        normalise(turned(view, which), own.config.images) for view, which in zip(batch.views, batch.turns, strict=True)
    )
    seen, alone = own.jepa(images, batch.masks[0], others), own.jepa(images, batch.masks[0])
    out, _ = own.train_step(batch, own.schedule.at(0), check=True)
    assert torch.equal(out.targets, seen.targets) and torch.equal(out.context, seen.context)
    assert not torch.equal(seen.targets, alone.targets)


def test_a_run_with_it_and_a_crop_for_each_encoder_resumes_to_the_same_bits(tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", images=source().images)
    straight = pretrain(str(tmp_path / "noise.npz"), tmp_path / "a", set=TINY)
    again = copy(straight, tmp_path / "b")
    (again.checkpoints / checkpoint.step_name(4) / "model.safetensors").write_bytes(b"broken")
    same_bits(straight, pretrain(resume=again.path))
    assert straight.config.method is None and "a method of your own" in (tmp_path / "a/run.log").read_text()
    assert {"loss/prediction", "loss/sigreg"} <= set(straight.metrics()[-1])
    assert again.config == straight.config


def test_memory_is_foreseen_of_both_crops() -> None:
    def images(*words: str) -> int:
        return peak_memory(settings("small", None, overrides([*TINY, *words])), CPU, 4).images

    assert images() == 2 * images("images.target_crop=same") == 2 * 4 * 3 * 16 * 16


# ---- as a setting


def test_a_regulariser_without_a_kind_is_vicreg_as_in_runs_of_old() -> None:
    old = settings("demo", None).model_dump(mode="json")
    del old["regularizer"]["kind"]
    assert resolve(old) == settings("demo", None) and isinstance(resolve(old).regularizer, VICReg)
    assert Method.model_validate({"regularizer": {"sim": 3}}).regularizer == VICReg(sim=3)
    assert resolve({"regularizer": {"sim": 3}}, {"regularizer": {"kind": "vicreg"}}).regularizer == VICReg(sim=3)
    assert resolve({"regularizer": {"sim": 3}}, {"regularizer": {"kind": "sigreg"}}).regularizer == SIGReg()


@pytest.mark.parametrize("turn", [list, reversed])
def test_another_kind_replaces_a_part_whole_in_any_order_of_words(turn: Callable[[list[str]], list[str]]) -> None:
    def chosen(*words: str) -> Any:
        return settings("demo", None, overrides(list(turn(list(words)))))

    assert chosen("regularizer.kind=sigreg", "regularizer.weight=.2").regularizer == SIGReg(weight=0.2)
    assert chosen("regularizer.kind=vicreg", "regularizer.weight=.2").regularizer.std == 25
    assert chosen("masking.kind=random", "masking.draws=2").masking.draws == 2


def test_a_method_with_it_has_no_name_of_the_family() -> None:
    for words in ([], ["conditioning.encoder=true"]):
        config = settings("demo", None, overrides(["regularizer.kind=sigreg", *words]))
        assert config.method is None and method_name(config) is None
    over_a_file = settings("demo", "c_jepa", {"regularizer": {"kind": "sigreg"}}, {"regularizer": {"kind": "vicreg"}})
    assert over_a_file.method == "c_jepa"


def test_what_is_wrong_with_a_kind_is_said() -> None:
    with pytest.raises(UserError, match=r"regularizer\.directions: .*another regularizer\.kind"):
        settings("demo", None, overrides(["regularizer.directions=8"]))
    with pytest.raises(UserError, match=r"sigregg.*'vicreg', 'sigreg', 'visreg'"):
        settings("demo", None, overrides(["regularizer.kind=sigregg"]))
    with pytest.raises(UserError, match=r"regularizer\.projector=\[\]"):
        words = ["target.kind=pixels", "regularizer.kind=sigreg", "regularizer.projector=[8]"]
        settings("demo", None, overrides(words))
