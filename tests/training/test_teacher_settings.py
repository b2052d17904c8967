"""A frozen teacher's settings: where it is recorded to lie, where it has moved, and what does not go with it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jepakit.artifacts import checkpoint, load
from jepakit.artifacts.run import Run
from jepakit.artifacts.teacher import with_teacher
from jepakit.config.config import overrides
from jepakit.config.recipes import settings
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.teacher import Teacher
from jepakit.model.vit import ViT, ViTConfig
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "masking.min_keep=2", "optim.batch_size=8", "optim.warmup_steps=2", "optim.steps=4", "run.threads=1"),
    *("run.precision=fp32", "run.log_every_steps=1", "run.save_every_steps=2", "run.keep_checkpoints=99", "run.probe_images=0"),
]
WIDER = [*[w for w in TINY if "encoder.width" not in w], "encoder.width=24"]


@pytest.fixture(scope="module")
def teacher(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A wider encoder than its student's, of pixels."""
    return pretrain(photos, tmp_path_factory.mktemp("teacher") / "run", "small", "mae_pixels", set=WIDER)


def test_a_run_goes_on_with_a_teacher_that_has_moved_and_remembers_where_it_is(photos: str, teacher: Run, tmp_path: Path) -> None:
    shutil.copytree(teacher.path, tmp_path / "first", symlinks=True)
    student = pretrain(photos, tmp_path / "student", "small", "ijepa", set=[*TINY, f"target.teacher={tmp_path / 'first'}"])
    last = student.checkpoints / checkpoint.step_name(4)
    wanted = checkpoint.load_checkpoint(last).tensors["model"]
    shutil.rmtree(last)
    (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(UserError, match=r"where it has moved, --resume \S+ target\.teacher=NEW"):
        pretrain(resume=student)
    with pytest.raises(UserError, match="other weights than when the run began"):
        pretrain(resume=student, set=f"target.teacher={tmp_path / 'second'}@2")
    again = pretrain(resume=student, set=f"target.teacher={tmp_path / 'second'}")
    assert all(x.equal(wanted[name]) for name, x in checkpoint.load_checkpoint(last).tensors["model"].items())
    assert again.config.target.teacher == str(tmp_path / "second")  # type: ignore[union-attr]
    shutil.rmtree(last)  # as by a kill: the checkpoint before says the old place
    log = (student.path / "run.log").read_text()
    assert pretrain(resume=student).finished
    assert "was edited" not in (student.path / "run.log").read_text().removeprefix(log)


@pytest.mark.parametrize("word", ["target.layers=[0]", "target.norm=none"])
def test_a_resume_takes_no_other_targets(word: str, photos: str, teacher: Run, tmp_path: Path) -> None:
    student = pretrain(photos, tmp_path / "student", "small", "ijepa", set=[*TINY, f"target.teacher={teacher.path}"])
    with pytest.raises(UserError, match="not target"):
        pretrain(resume=student, set=word)
    with pytest.raises(UserError, match="not target"):  # a run without a teacher gets none
        pretrain(resume=teacher, set=f"target.teacher={student.path}")


def test_a_hub_id_is_recorded_as_it_is(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_from_hub", lambda name: teacher.path / "model")
    config, found = with_teacher(settings("small", None, overrides([*TINY, "target.teacher=owner/name"])))
    assert found is not None and found.width == 24
    assert config.target.teacher == "owner/name"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["target.teacher_width=24"], "set target.teacher"),
        (["target.kept=[predictor]"], "set that too"),
        (["target.teacher=TEACHER", "target.teacher_width=16"], "gives 24 features"),
        (
            [
                "target.teacher=TEACHER",
                "regularizer.kind=vicreg",
                "regularizer.tensor=context_pooled",
                "regularizer.projector=[8,8]",
            ],
            "a teacher's 24 features; set regularizer.projector",
        ),
    ],
)
def test_settings_that_would_do_nothing_or_do_not_fit_are_refused(
    words: list[str], match: str, photos: str, teacher: Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=match):
        given = [word.replace("TEACHER", str(teacher.path)) for word in words]
        pretrain(photos, tmp_path / "run", "small", set=[*TINY, *given])
    assert not (tmp_path / "run").exists()


def test_predictions_of_a_wider_teacher_may_be_projected(photos: str, teacher: Run, tmp_path: Path) -> None:
    words = ["regularizer.kind=vicreg", "regularizer.tensor=pred_blocks", "regularizer.projector=[8,8]", "optim.accumulate=2"]
    run = pretrain(photos, tmp_path / "run", "small", set=[*TINY, f"target.teacher={teacher.path}", *words])
    assert all(np.isfinite(row["loss/std"]) for row in run.metrics())


def test_a_teachers_digest_is_computed_once_and_is_of_its_weights() -> None:
    encoder = Encoder(ViT(ViTConfig(patch_size=4, width=16, depth=1, heads=2), (4, 4)), ImageSettings(size=16, depth="uint8"))
    teacher = Teacher(encoder, encoder.images, (4, 4))
    assert teacher.digest is teacher.digest  # not an equal one made anew: at each checkpoint of a large teacher that takes long
    encoder.vit.norm.bias.data[0] += 1
    assert Teacher(encoder, encoder.images, (4, 4)).digest != teacher.digest
