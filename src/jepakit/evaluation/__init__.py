"""How good an encoder is: tasks on frozen encoders, always beside honest baselines."""

from typing import Any

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """`evaluate` when it is asked for: training needs a part of this package, and not scikit-learn."""
    if name == "evaluate":
        from jepakit.evaluation.tasks import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
