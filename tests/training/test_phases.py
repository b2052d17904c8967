"""Pixels first, then features: one run whose target changes once; and a frozen teacher's features as targets."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.artifacts import checkpoint
from jepakit.artifacts.load import jepa_from_checkpoint, load
from jepakit.artifacts.run import Run
from jepakit.config.config import overrides
from jepakit.config.optim import Optim, Schedule
from jepakit.config.phases import at_step, phases
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.data.opening import open_source
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.method import Method
from jepakit.model.teacher import Teacher
from jepakit.model.vit import ViT
from jepakit.training.step import Training
from jepakit.training.train import pretrain
from noise import save_noise

CHANGE, STEPS = 7, 18
TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 optim.lr=3e-3 optim.warmup_steps=6 run.threads=1 run.precision=fp32 "
    f"run.log_every_steps=1 run.save_every_steps=1 run.keep_checkpoints=99 run.probe_images=0 optim.steps={STEPS}"
).split()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_noise(tmp_path_factory.mktemp("photos"), 24)


@pytest.fixture(scope="module")
def straight(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """C-JEPA with own target crops, pixels first, that nobody disturbed."""
    return pretrain(photos, tmp_path_factory.mktemp("straight") / "run", "small", set=[*TINY, f"target.pixels_first={CHANGE}"])


def tensors(run: Run, step: int) -> dict[str, Tensor]:
    found = checkpoint.load_checkpoint(run.checkpoints / checkpoint.step_name(step))
    return {f"{group}.{name}": value for group, part in found.tensors.items() for name, value in part.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_up_to_the_change_the_run_is_one_of_pixels(straight: Run, photos: str, tmp_path: Path) -> None:
    words = [w for w in TINY if not w.startswith(("optim.steps", "optim.warmup"))]
    words += [f"optim.steps={CHANGE}", f"optim.warmup_steps={round(6 * CHANGE / STEPS)}"]
    pixels = pretrain(photos, tmp_path / "run", "small", "mae_pixels", set=words)
    same(tensors(straight, CHANGE), tensors(pixels, CHANGE))


def test_from_the_change_on_it_is_the_method_with_that_encoder(straight: Run, photos: str) -> None:
    own = straight.config
    rest = own.optim.model_copy(update={"steps": STEPS - CHANGE, "warmup_steps": round(6 * (STEPS - CHANGE) / STEPS)})
    plain = own.model_copy(update={"optim": rest, "target": own.target.model_copy(update={"pixels_first": 0.0})})
    training = Training.prepare(plain, open_source(photos))
    pixels = {n.removeprefix("model.encoder."): x for n, x in tensors(straight, CHANGE).items() if n.startswith("model.encoder.")}
    training.jepa.encoder.load_state_dict(pixels)
    training.jepa.target_encoder.load_state_dict(pixels)
    for step in range(CHANGE, STEPS):
        training.train_step(training.loader.batch(step), training.schedule.at(step - CHANGE), check=True)
    last = {n.removeprefix("model."): x for n, x in tensors(straight, STEPS).items() if n.startswith("model.")}
    same(training.jepa.state_dict(), last)


@pytest.mark.parametrize("step", [0, CHANGE - 1, CHANGE, CHANGE + 1])
def test_a_resume_on_either_side_of_the_change_ends_in_the_same_bits(straight: Run, step: int, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(straight.path, copy, symlinks=True)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / checkpoint.step_name(later))
    again = pretrain(resume=copy)
    same(tensors(straight, STEPS), tensors(again, STEPS))
    assert [row["loss"] for row in again.metrics()] == [row["loss"] for row in straight.metrics()]


def test_what_a_checkpoint_of_either_phase_is(straight: Run) -> None:
    early, late = (jepa_from_checkpoint(straight.checkpoints / checkpoint.step_name(step)) for step in (CHANGE, CHANGE + 1))
    assert (early.method.target.kind, early.method.which, early.method.regularizer) == ("pixels", "encoder", None)
    assert (late.method.target.kind, late.method.which) == ("features", "target_encoder")
    assert early.predictor.predictor_proj.weight.shape == (48, 8) and late.predictor.predictor_proj.weight.shape == (16, 8)
    log = (straight.path / "run.log").read_text()
    assert f"step {CHANGE}: features are predicted from here on" in log


def test_the_schedule_begins_anew_unless_it_is_kept() -> None:
    words = [*TINY, f"target.pixels_first={CHANGE}"]
    anew = phases(settings("small", None, overrides(words)), 3)
    assert [(p.start, p.end, p.schedule.steps, p.schedule.warmup) for p in anew] == [(0, 7, 7, 2), (7, 18, 11, 4)]
    own = Schedule(Optim.model_validate({**anew[1].config.optim.model_dump(), "steps": 11, "warmup_steps": 4}), 3)
    assert [anew[1].schedule.at(step) for step in range(7, 18)] == [own.at(step) for step in range(11)]
    kept = phases(settings("small", None, overrides([*words, "target.kept=[schedule]"])), 3)
    full = Schedule(kept[1].config.optim, 3)
    assert [p.schedule.at(step) for p in kept for step in range(p.start, p.end)] == [full.at(step) for step in range(STEPS)]


def test_predictor_and_moments_are_kept_where_asked(photos: str) -> None:
    words = [*TINY, f"target.pixels_first={CHANGE}", "target.kept=[predictor,moments]"]
    first = Training.prepare(settings("small", None, overrides(words)), open_source(photos))
    for step in range(CHANGE):
        first.train_step(first.loader.batch(step), first.schedule.at(step), check=True)
        first.step += 1
    before, after = first.jepa.state_dict(), first.next_phase()
    named = after.jepa.state_dict()
    kept = [n for n in named if n.startswith("predictor.") and "predictor_proj" not in n]
    assert kept and all(torch.equal(named[n], before[n]) for n in kept)
    moments = after.moments()
    assert not any("predictor_proj" in name for name in moments) and any(name.startswith("predictor.") for name in moments)
    assert all(torch.equal(x, first.moments()[name]) for name, x in moments.items())


def test_a_share_is_written_down_in_updates(photos: str, tmp_path: Path) -> None:
    run = pretrain(photos, tmp_path / "run", "small", "ijepa", set=[*TINY, "target.pixels_first=.25"])
    assert run.config.target.pixels_first == round(0.25 * STEPS)  # type: ignore[union-attr]
    assert run.finished and run.metrics()[-1]["step"] == STEPS


@pytest.mark.parametrize("given", ["18", "99", ".001"])
def test_a_change_that_leaves_nothing_is_refused(given: str, photos: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves none for"):
        pretrain(photos, tmp_path / "run", "small", set=[*TINY, f"target.pixels_first={given}"])
    assert not (tmp_path / "run").exists()


def test_no_alarm_while_pixels_are_targets_and_the_doctor_begins_with_features(photos: str, tmp_path: Path) -> None:
    words = [w for w in TINY if "run.log_every" not in w]
    words += ["optim.steps=30", "run.log_every_steps=1", "target.pixels_first=15", "optim.lr=1e-12", "optim.start_lr=1e-12"]
    run = pretrain(photos, tmp_path / "run", "small", "ijepa", set=[*words, "target.norm=none"])  # targets hardly vary: collapse
    at = [row["step"] for row in run.metrics() if "alarms" in row]
    assert all(row["settled"] > 15 for row in run.metrics() if row["step"] > 15)
    assert all(step >= 20 for step in at)


# ---- a frozen teacher


def encoder(width: int = 24, patch: int = 4, size: int = 16, **images: Any) -> Encoder:
    torch.manual_seed(3)
    config = Method.model_validate({"encoder": {"patch_size": patch, "width": width, "depth": 2, "heads": 2}}).encoder
    vit = ViT(config, (size // patch, size // patch))
    for p in vit.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Encoder(vit, ImageSettings(size=size, depth="uint8", **images)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def taught(photos: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A wider teacher of pixels, and a student of its features."""
    folder = tmp_path_factory.mktemp("taught")
    wider = [*[w for w in TINY if "encoder.width" not in w], "encoder.width=24"]
    teacher = pretrain(photos, folder / "teacher", "small", "mae_pixels", set=wider)
    words = [*TINY, f"target.teacher={teacher.path}", "target.norm=layer", "loss=l1"]
    return teacher, pretrain(photos, folder / "student", "small", "ijepa", set=words)


def test_the_loss_is_of_the_teachers_normed_features(taught: tuple[Run, Run], photos: str) -> None:
    teacher, student = taught
    shown, source = load(teacher.path), open_source(photos)
    training = Training.prepare(student.config, source, shown)
    batch = training.loader.batch(0)
    out, _ = training.train_step(batch, training.schedule.at(0), check=True)
    masks, view = batch.masks[0], batch.views[-1]
    features = F.layer_norm(shown(shown.normalise(view)), (24,))  # (B, N, 24)
    image = np.repeat(masks.image_of_draw[masks.draw_of_block], masks.target_lengths)
    wanted = features[torch.from_numpy(image), torch.from_numpy(masks.targets)]
    torch.testing.assert_close(out.targets, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.loss, (out.predictions - wanted).abs().mean(), rtol=1e-4, atol=1e-4)


def test_the_student_is_the_runs_encoder_and_no_alarm_is_of_the_teacher(taught: tuple[Run, Run]) -> None:
    teacher, student = taught
    assert student.config.which == "encoder" and student.encoder().width == 16
    assert student.config.target.teacher_width == 24  # type: ignore[union-attr]
    assert student.config.target.teacher == str(teacher.path)  # type: ignore[union-attr]
    assert not any("alarms" in row for row in student.metrics())


def test_a_student_resumes_exactly_with_the_same_teacher_and_no_other(taught: tuple[Run, Run], tmp_path: Path) -> None:
    _, student = taught
    copy = tmp_path / "run"
    shutil.copytree(student.path, copy, symlinks=True)
    for later in range(10, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / checkpoint.step_name(later))
    same(tensors(student, STEPS), tensors(pretrain(resume=copy), STEPS))
    with pytest.raises(UserError, match="other weights than when the run began"):
        training = Training.prepare(student.config, open_source(str(student.config.data)), encoder())
        training.restore(checkpoint.load_newest(student.checkpoints))


def test_a_teacher_sees_images_by_its_own_mean_and_std() -> None:
    own = ImageSettings(size=16, depth="uint8", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    teacher = encoder(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    raw = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = (raw.float() / 255 - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    wanted = teacher(teacher.normalise(raw)).flatten(0, 1)
    torch.testing.assert_close(Teacher(teacher, own, (4, 4))(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_teacher_of_other_patches_gives_a_feature_for_each_patch_of_the_grid() -> None:
    teacher = Teacher(encoder(patch=8, size=32), ImageSettings(size=16, depth="uint8"), (4, 4))
    assert teacher(torch.zeros(3, 3, 16, 16)).shape == (3 * 16, 24)


def test_a_teacher_of_other_bands_is_refused() -> None:
    with pytest.raises(UserError, match="3 channels"):
        Teacher(encoder(), ImageSettings(size=16, channels=1, depth="uint8"), (4, 4))


def test_teacher_and_pixels_first_exclude_each_other() -> None:
    with pytest.raises(UserError, match="set one of the two"):
        settings("small", None, overrides(["target.teacher=somewhere", "target.pixels_first=5"]))


def test_settings_of_a_step_are_the_same_object_where_nothing_changes() -> None:
    config = settings("small", None)
    assert at_step(config, 0) is config
