"""jepakit: pretrain image encoders without labels by predicting in latent space (I-JEPA, EC-IJEPA, C-JEPA).

run     = jepakit.pretrain(data="photos/", out="runs/a", recipe="small", method="ec_ijepa")
encoder = jepakit.load("runs/a")
vectors = encoder.embed(paths)           # or PIL images, uint8 arrays, normalised floats (B, C, H, W) -> (B, D)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepakit import metrics, pictures
    from jepakit.artifacts.export.exporting import export
    from jepakit.artifacts.export.pushing import push
    from jepakit.artifacts.load import load
    from jepakit.artifacts.run import Run
    from jepakit.core.errors import UserError
    from jepakit.data.formats.pack import pack
    from jepakit.evaluation.embeddings.embedding import embed
    from jepakit.evaluation.embeddings.index import Index
    from jepakit.evaluation.embeddings.search import search
    from jepakit.evaluation.tasks import evaluate
    from jepakit.model.encoder import Encoder
    from jepakit.model.jepa import JEPA
    from jepakit.model.masking.packed_masks import Masks
    from jepakit.model.method import Method
    from jepakit.planning.check import check
    from jepakit.planning.plan import plan
    from jepakit.reporting import report, runs
    from jepakit.training.train import pretrain

__version__ = "0.1.0"
__all__ = [
    "JEPA",
    "Encoder",
    "Index",
    "Masks",
    "Method",
    "Run",
    "UserError",
    "check",
    "embed",
    "evaluate",
    "export",
    "load",
    "metrics",
    "pack",
    "pictures",
    "plan",
    "pretrain",
    "push",
    "report",
    "runs",
    "search",
]

_PLACES = {
    "Encoder": "artifacts.load",
    "Index": "evaluation.embeddings.index",
    "JEPA": "artifacts.load",
    "Masks": "model.masking.packed_masks",
    "Method": "model.method",
    "Run": "artifacts.run",
    "UserError": "core.errors",
    "check": "planning.check",
    "embed": "evaluation.embeddings.embedding",
    "evaluate": "evaluation.tasks",
    "export": "artifacts.export.exporting",
    "load": "artifacts.load",
    "pack": "data.formats.pack",
    "plan": "planning.plan",
    "pretrain": "training.train",
    "push": "artifacts.export.pushing",
    "report": "reporting",
    "runs": "reporting",
    "search": "evaluation.embeddings.search",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: importing the package does no work."""
    if name in ("metrics", "pictures"):
        return import_module(f"jepakit.{name}")
    if name in _PLACES:
        value = getattr(import_module(f"jepakit.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jepakit' has no attribute '{name}'")
