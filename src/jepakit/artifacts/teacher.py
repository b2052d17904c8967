"""The weights of a frozen teacher (target.teacher), read once for a run or a plan."""

from jepakit.artifacts.load import load
from jepakit.config.config import Config
from jepakit.data.opening import absolute
from jepakit.model.encoder import Encoder
from jepakit.model.targets import FeatureTargets


def with_teacher(config: Config) -> tuple[Config, Encoder | None]:
    """The settings with the teacher's width and where it lies, and the teacher; None where no target.teacher is set.

    Raises UserError where there is no encoder to be loaded.
    """
    target = config.target
    if not isinstance(target, FeatureTargets) or not target.teacher:
        return config, None
    teacher = load(target.teacher)
    found = {"teacher": absolute(target.teacher), "teacher_width": teacher.width}
    return config.model_copy(update={"target": target.model_copy(update=found)}), teacher
