"""An encoder and which vectors are made with it: those that evaluation sees, of any images, batch by batch.

B images, T patch tokens, D features of a token.
"""

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepakit.artifacts.load import load, run_and_step
from jepakit.artifacts.run import Run
from jepakit.config.config import Config
from jepakit.config.run_settings import RunSettings
from jepakit.core.device import PRECISIONS, autocast, configure_cpu, cores, device_of, precision_of
from jepakit.core.errors import UserError, nearest, plain
from jepakit.core.files import user_path
from jepakit.data.crops import stacked
from jepakit.data.samples import read_ahead
from jepakit.data.sources import Source
from jepakit.evaluation.features import UnreadRow, batches, evaluation_view
from jepakit.model.encoder import Encoder
from jepakit.model.method import Which
from jepakit.model.vit import SHAPE

Pool = Literal["mean", "none"]
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Embedder:
    """An encoder, and how vectors are made with it.

    layer: 'last', 'last4' (the last four blocks side by side) or a block from 1 on; each through the encoder's last norm.
    pool: the mean over patch tokens, or all tokens. whole_image: all of an image is resized, not its largest centre crop.
    """

    encoder: Encoder
    layer: str = "last"
    pool: Pool = "mean"
    precision: Precision = "fp32"
    whole_image: bool = False
    seconds: float = 60.0  # in which an image must come

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is made of an image: (D,), or (T, D)."""
        vit = self.encoder.vit.config
        height, width = self.encoder.images.height_width
        features = vit.width * (min(4, vit.depth) if self.layer == "last4" else 1)
        return (features,) if self.pool == "mean" else (height * width // vit.patch_size**2, features)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is stored: patch tokens are half floats, as in evaluation; vectors float32, unless computed in fp16."""
        return torch.float16 if self.pool == "none" or self.precision == "fp16" else torch.float32

    def __call__(self, images: Tensor) -> Tensor:
        """Images as they come (B, C, H, W) -> (B, *shape) on the encoder's device."""
        encoder, depth = self.encoder, self.encoder.vit.config.depth
        last = {"last": 1, "last4": 4}.get(self.layer) or depth - int(self.layer) + 1
        with torch.inference_mode(), autocast(encoder.device, PRECISIONS[self.precision]):
            layers = encoder.layers(encoder.normalise(images.to(encoder.device)), last=last)
        with torch.inference_mode():
            chosen = layers if self.layer == "last4" else layers[:1]
            made = [x.float().mean(1) for x in chosen] if self.pool == "mean" else chosen
            return torch.cat(made, -1).to(self.dtype)


@dataclass(frozen=True)
class Embedded:
    """A batch: places in the source of those that could be read (B,), what was made of each (B, *shape), and the others."""

    places: list[int]
    vectors: NDArray[np.floating]
    bad: list[UnreadRow]


def embedded(embedder: Embedder, source: Source, batched: Sequence[NDArray[np.int64]]) -> Generator[Embedded]:
    """Each of these batches of places in a source, in their order; the next ones are read while the encoder works.

    Raises UserError for features that are not finite.
    """
    waiting: tuple[list[int], Tensor, list[UnreadRow]] | None = None
    for places, images, bad in read_ahead(_read(embedder, source, batched)):
        made = embedder(images) if images is not None else torch.empty(0, *embedder.shape, dtype=embedder.dtype)
        if waiting is not None:  # on CUDA the device has its next work before the last is fetched
            yield _fetched(source, *waiting)
        waiting = places, made, bad
    if waiting is not None:
        yield _fetched(source, *waiting)


def _fetched(source: Source, places: list[int], made: Tensor, bad: list[UnreadRow]) -> Embedded:
    x = made.cpu()
    if not bool((finite := torch.isfinite(x).flatten(1).all(1)).all()):
        first = source.title(places[int((~finite).nonzero()[0])])
        raise UserError(
            f"the features of {plain(first)} are not finite: the weights or the image are broken; in fp16 or bf16, or where "
            f"half floats are stored, try fp32 and --pool mean"
        )
    return Embedded(places, x.numpy(), bad)


def _read(
    embedder: Embedder, source: Source, batched: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[list[int], Tensor | None, list[UnreadRow]]]:
    def read(index: int) -> Tensor:
        return evaluation_view(source, index, embedder.encoder.images, embedder.whole_image)

    for good, bad in batches(source, batched, read, embedder.seconds, max(2, cores())):
        yield [i for i, _ in good], stacked([each for _, each in good]) if good else None, bad


def encoder_and_settings(
    run: Encoder | Run | str | Path, which: Which | None = None
) -> tuple[Encoder, RunSettings, Config | None, str]:
    """An encoder on its device, how its run is run (for another encoder, the defaults), the run's settings, and where it lies.

    Raises UserError as `load` does.
    """
    settings, config, where = RunSettings(), None, ""
    if not isinstance(run, Encoder):
        place = user_path(run, "the run")
        folder, step = run_and_step(place)
        if (folder / "config.yaml").is_file():
            config = Run.open(folder).config
            settings = config.run
        where = os.fspath(run) if not folder.exists() else str(folder.resolve()) + ("" if step is None else f"@{step}")
    encoder = run if isinstance(run, Encoder) else load(run, which)
    configure_cpu(settings.threads)
    return encoder.to(device_of(settings.device)).requires_grad_(False).eval(), settings, config, where


def embedder_of(
    encoder: Encoder, run: RunSettings, layer: str | int, pool: str, precision: str | None, whole_image: bool
) -> Embedder:
    """An embedder; without a precision, the one that the run is evaluated in. Raises UserError for unknown words."""
    depth = encoder.vit.config.depth
    if str(layer) not in ("last", "last4", *map(str, range(1, depth + 1))):
        raise UserError(f"layer={layer}: choose last, last4, or a block from 1 to {depth}, the last of this encoder")
    for name, word, choices in (("pool", pool, get_args(Pool)), ("precision", precision or "fp32", get_args(Precision))):
        if word not in choices:
            raise UserError(f"{name}={word}: choose {' or '.join(choices)}{nearest(word, choices)}")
    precision = next(
        name for name, dtype in PRECISIONS.items() if dtype == precision_of(precision or run.precision, encoder.device)
    )
    return Embedder(encoder, str(layer), pool, precision, whole_image, run.read_timeout_seconds)  # type: ignore[arg-type]


def encoder_digest(encoder: Encoder) -> str:
    """sha256 of all that a vector depends on: the weights, the shape, how images are normalised, the conditioning."""
    vit, images = encoder.vit, encoder.images
    sees = {name: getattr(images, name) for name in ("height_width", "channels", "white", "depth", "mean", "std")}
    sees |= images.model_dump(mode="json", include={"axis", "every", "window"}, exclude_defaults=True)  # of volumes
    shape = [getattr(vit.config, name) for name in (*SHAPE, "patch_size")]
    activation = getattr(vit.activation, "__name__", type(vit.activation).__name__)
    conditioning = encoder.conditioning.model_dump(mode="json") if encoder.conditioning else None
    digest = hashlib.sha256(json.dumps([sees, shape, vit.eps, activation, conditioning], sort_keys=True).encode())
    for name, value in sorted(vit.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
