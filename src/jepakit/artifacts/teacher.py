"""The weights of a frozen teacher (target.teacher), read once for a run or a plan."""

from jepakit.artifacts.load import absolute_weights, load
from jepakit.config.config import Config, resolve
from jepakit.core.errors import UserError
from jepakit.model.encoder import Encoder
from jepakit.model.targets import FeatureTargets


def with_teacher(config: Config) -> tuple[Config, Encoder | None]:
    """The settings with the teacher's width and where it lies, and the teacher; None where no target.teacher is set.

    Raises UserError where there is no encoder to be loaded, and for settings that do not go with it.
    """
    target = config.target
    if not isinstance(target, FeatureTargets) or not target.teacher:
        return config, None
    teacher = load(target.teacher)
    if target.teacher_width not in (None, teacher.width):
        raise UserError(
            f"{target.teacher} gives {teacher.width} features, and target.teacher_width is {target.teacher_width}: leave that "
            f"out of a new run, as it is read off the weights; a resume needs the weights that the run began with"
        )
    found = {"teacher": absolute_weights(target.teacher), "teacher_width": teacher.width}
    return resolve(config.model_dump(), {"target": found}), teacher
