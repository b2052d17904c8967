"""jepakit: pretrain image encoders without labels by predicting in latent space (I-JEPA, EC-IJEPA, C-JEPA).

run     = jepakit.pretrain(data="photos/", out="runs/a", recipe="small", method="ec_ijepa")
encoder = jepakit.load("runs/a")
vectors = encoder.embed(images)          # (B, 3, H, W) normalised floats -> (B, D)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepakit import metrics
    from jepakit.data.check import check
    from jepakit.data.pack import pack
    from jepakit.encoder import Encoder
    from jepakit.errors import UserError
    from jepakit.evaluation.tasks import evaluate
    from jepakit.masks import Masks
    from jepakit.method import Method
    from jepakit.model import JEPA
    from jepakit.planning import plan
    from jepakit.reporting import report
    from jepakit.run import Run
    from jepakit.train import pretrain
    from jepakit.weights import load

__version__ = "0.1.0"
__all__ = [
    "JEPA",
    "Encoder",
    "Masks",
    "Method",
    "Run",
    "UserError",
    "check",
    "evaluate",
    "load",
    "metrics",
    "pack",
    "plan",
    "pretrain",
    "report",
]

_PLACES = {
    "Encoder": "encoder",
    "JEPA": "model",
    "Masks": "masks",
    "Method": "method",
    "Run": "run",
    "UserError": "errors",
    "check": "data.check",
    "evaluate": "evaluation.tasks",
    "load": "weights",
    "pack": "data.pack",
    "plan": "planning",
    "pretrain": "train",
    "report": "reporting",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: importing the package does no work."""
    if name == "metrics":
        return import_module("jepakit.metrics")
    if name in _PLACES:
        value = getattr(import_module(f"jepakit.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jepakit' has no attribute '{name}'")
