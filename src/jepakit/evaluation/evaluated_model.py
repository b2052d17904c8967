"""What is judged: a run, or any encoder that `jepakit.load` takes, with its untrained twin."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jepakit.artifacts.checkpoint import pointed, step_name
from jepakit.artifacts.load import build_jepa, load, read_weights, run_and_step
from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.config.run_settings import RunSettings
from jepakit.core import distributed
from jepakit.core.device import configure_cpu, device_of, precision_of
from jepakit.core.errors import UserError
from jepakit.core.files import load_json, user_path
from jepakit.core.parallel import require_own_device
from jepakit.evaluation.embeddings.embedder import encoder_digest
from jepakit.evaluation.probes.protocol import Protocol
from jepakit.evaluation.train_test_overlap import PretrainingRecord
from jepakit.model.encoder import Encoder
from jepakit.model.masking.masks import Masking, MultiBlock
from jepakit.model.method import Which, encoder_label
from jepakit.model.vit import ViT

log = logging.getLogger("jepakit")
UNTRAINED_NAME = "untrained encoder"


@dataclass(frozen=True)
class EvaluatedModel:
    """What is judged, and how: encoders by name, the judged one first, and the folder that results go to.

    data, config: of the run, None for an encoder that is not a run's. trained: what it was pretrained on, None if not known.
    """

    encoders: dict[str, Encoder]
    folder: Path
    masking: Masking
    precision: torch.dtype
    data: str | None
    config: Config | None
    trained: PretrainingRecord | None = None
    seconds: float = 60.0  # in which an image must come
    timeout_seconds: float = 600.0  # in which each of several processes must have made its batch

    @property
    def name(self) -> str:
        """What the judged encoder is called in tables: which of a run's two it is."""
        return next(iter(self.encoders))

    @property
    def encoder(self) -> Encoder:
        """The judged encoder."""
        return self.encoders[self.name]

    @property
    def conditioned_names(self) -> list[str]:
        """Encoders that are told positions."""
        return [name for name, encoder in self.encoders.items() if encoder.conditioning is not None]

    def conditioned(self, given: Mapping[str, Any]) -> "EvaluatedModel":
        """The same with these settings of the run's conditioning at inference (none: as it is). Raises UserError where the
        encoder was trained without conditioning."""
        changed = {key: value for key, value in given.items() if value is not None}
        if not changed:
            return self
        trained = self.encoder.training_conditioning
        if trained is None or not trained.encoder:
            raise UserError(f"conditioning.{next(iter(changed))}: the encoder was not trained with conditioning")
        update = trained.model_copy(update=changed)
        encoders = {
            name: Encoder(encoder.vit, encoder.images, update, encoder.which).eval() for name, encoder in self.encoders.items()
        }
        return replace(self, encoders=encoders)

    def asked(self, protocol: Protocol) -> "EvaluatedModel":
        """The same as the protocol wants it: conditioned so, with or without its untrained twin. Raises as `conditioned`."""
        encoders = {name: each for name, each in self.encoders.items() if protocol.baselines or name != UNTRAINED_NAME}
        return replace(self, encoders=encoders).conditioned(dict(protocol.conditioning))

    def require_alike(self, asked: Mapping[str, str]) -> None:
        """Raises AgreedError where several processes judge other encoders, or were asked otherwise, or two are on one GPU."""
        require_own_device(self.encoder.device)
        if distributed.world_size() > 1:
            weights = {f"the {name}": encoder_digest(encoder) for name, encoder in self.encoders.items()}
            distributed.require_alike({"--out": str(self.folder.absolute()), **asked, **weights})


def subject(path: Run | str | Path, out: str | Path | None = None) -> EvaluatedModel:
    """The encoders at `path`, a run, RUN@step (results in RUN/evaluation/step-…), or all that `load` takes.

    Raises UserError for a run without a checkpoint, or an encoder of no run without `out`.
    """
    given, path = path, user_path(path, "the run")
    run, step = run_and_step(path)
    if step is not None:
        return _run_subject(Run.open(run), user_path(out, "out") if out else run / "evaluation" / step_name(step), step)
    if (path / "config.yaml").is_file():
        return _run_subject(Run.open(path), user_path(out, "out") if out else path / "evaluation")
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "state.json")):
        Run.open(path)  # says that it is none
    encoder = load(given)
    if out is None:
        raise UserError(f"{path} is an encoder without a run's folder: say where results go with --out DIR")
    vit = encoder.vit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = Encoder(
            ViT(vit.config, vit.grid, vit.channels, vit.eps, vit.activation), encoder.images, encoder.training_conditioning
        )
    encoders = {encoder_label(encoder.which): encoder, UNTRAINED_NAME: fresh}
    return _subject(encoders, user_path(out, "out"), MultiBlock(min_keep=1), RunSettings(), None, None, _trained(path))


def _run_subject(run: Run, folder: Path, step: int | None = None) -> EvaluatedModel:
    path = run.path if step is None else run.at_step(step)
    found = read_weights(path)
    config = found.method
    assert isinstance(config, Config)  # that of a run always is
    if config.init.path:
        log.warning("%s began with weights of %s: whether those saw the test images is not known", run.path, config.init.path)
    if config.target.kind == "features" and config.target.teacher:
        log.warning("%s learnt from %s: whether that saw the test images is not known", run.path, config.target.teacher)
    order: tuple[Which, ...] = (found.which, "target_encoder", "encoder")
    both = {encoder_label(which): found.encoders[which] for which in order if which in found.encoders}
    vits = {**both, UNTRAINED_NAME: build_jepa(config).encoder}
    encoders = {name: Encoder(vit, config.images, config.conditioning) for name, vit in vits.items()}
    return _subject(encoders, folder, config.masking, config.run, config.data, config, _trained(path))


def _trained(path: Path) -> PretrainingRecord | None:
    """What an encoder was pretrained on: that of a run, of a run's model/, or of a checkpoint."""
    run = path.resolve().parent if path.resolve().name == "model" else path
    if (run / "config.yaml").is_file():
        return PretrainingRecord.from_state(Run.open(run).state, str(run))
    try:
        state = load_json(pointed(path) / "state.json")
    except (OSError, ValueError):
        return None
    return PretrainingRecord.from_state(state, str(path)) if isinstance(state, dict) else None


def _subject(
    encoders: dict[str, Encoder],
    folder: Path,
    masking: Masking,
    run: RunSettings,
    data: str | None,
    config: Config | None,
    trained: PretrainingRecord | None = None,
) -> EvaluatedModel:
    configure_cpu(run.threads)
    device = device_of(run.device)
    ready = {name: encoder.to(device).requires_grad_(False).eval() for name, encoder in encoders.items()}
    seconds, precision = (run.read_timeout_seconds, run.timeout_seconds), precision_of(run.precision, device)
    return EvaluatedModel(ready, folder, masking, precision, data, config, trained, *seconds)
