"""How good an encoder is: probes on frozen features, always beside honest baselines."""

from jepakit.evaluation.tasks import evaluate

__all__ = ["evaluate"]
