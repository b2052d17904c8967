"""Imported by the server that runs of `smoke` are forked from: the modules and the images that each would load anew."""

import jepakit.evaluation.probes.logistic
import jepakit.evaluation.tasks
import jepakit.training.train  # noqa: F401
from jepakit.data.sets.emoji import emoji

emoji()
