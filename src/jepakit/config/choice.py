"""What a run is made with where no recipe is named: recipe small, fitted to the images that are found and to the device."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from jepakit.config.config import Config, merge, nested, validation_sentence
from jepakit.config.optim import Optim
from jepakit.config.recipes import settings
from jepakit.config.renamed import current_layer
from jepakit.config.run_settings import RunSettings
from jepakit.config.sizes import LARGEST, patch_for, row_reached, size_for
from jepakit.core.device import cores, device_of
from jepakit.core.errors import UserError
from jepakit.core.settings import Settings
from jepakit.data.labels.table import TableSettings
from jepakit.data.labels.table_labels import with_table
from jepakit.data.opening import absolute, open_source
from jepakit.data.sources import Source
from jepakit.data.statistics import shapes_of
from jepakit.data.training_part import training_part, with_split
from jepakit.model.images import ImageSettings
from jepakit.model.masking.masks import MultiBlock
from jepakit.model.predictor import PredictorConfig
from jepakit.model.vit import SHAPE, ViTConfig

_Values = dict[str, Any]  # by dotted key


def _vit(size: str, predictor_width: int, predictor_depth: int) -> _Values:
    return {"encoder.size": size, "predictor.width": predictor_width, "predictor.depth": predictor_depth}


# What is chosen. Rows are (from so many on, value).
DEMO = {"encoder.width": 128, "encoder.depth": 4, "encoder.heads": 4, "predictor.width": 64, "predictor.depth": 2}
TINY, SMALL, BASE = _vit("tiny", 96, 4), _vit("small", 192, 4), _vit("base", 384, 6)  # predictors half as wide
ENCODERS = {"cpu": ((0, DEMO), (100_000, TINY)), "cuda": ((0, TINY), (50_000, SMALL), (500_000, BASE))}  # images
BATCHES = {"cpu": ((0, 64), (20_000, 128)), "cuda": ((0, 64), (20_000, 128), (50_000, 256))}  # images
SHARE = 4  # a batch is at most a quarter of the images
SEEN = {"cpu": 2_000_000, "cuda": 20_000_000}  # images in all (docs/small-data.md: 1.7 million still pay)
EPOCHS = (5, 800)  # passes, at least and at most
WARMUP = 10  # a tenth of the run
_THREADS = 8  # the most that decode for a CUDA device
_FEW = 1000  # images that a warning calls few
_NAMES = {"cpu": "a CPU", "cuda": "a CUDA device", "mps": "an Apple GPU"}


@dataclass(frozen=True)
class DataSummary:
    """What settings are chosen by. long, short: medians of the longer and shorter sides, pixels; bands: of most of the images."""

    images: int
    long: int
    short: int
    bands: int
    device: str  # cpu, cuda or mps
    cores: int  # 0: the device is elsewhere, and theirs are not known

    @property
    def row(self) -> str:
        """Whose row of the tables it takes: what an Apple GPU could do more than a CPU has not been measured."""
        return "cuda" if self.device == "cuda" else "cpu"


@dataclass(frozen=True)
class Choice:
    """Settings to lie over recipe small; for what they were chosen, and why (a line each); a warning, or ''."""

    settings: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    reasons: tuple[str, ...] = ()
    warning: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """What the settings were chosen for, each choice with its reason, and the warning; none where nothing was chosen."""
        return (self.about, *self.reasons, *([self.warning] if self.warning else [])) if self.reasons else ()

    def say(self, log: logging.Logger) -> None:
        """Log the images that settings were chosen for, and a line for each choice; nothing where nothing was chosen."""
        if self.reasons:
            log.info("chosen for %s (your own settings win; --recipe NAME chooses nothing):", self.about)
        for reason in self.reasons:
            log.info("  %s", reason)
        if self.warning:
            log.warning("%s", self.warning)


class Shape(ViTConfig):
    """What the user has set of an encoder's shape."""

    @model_validator(mode="after")
    def _divides(self) -> "Shape":
        return self


class UserSettings(Settings):
    """What the user has set, as far as choices depend on it. Whether settings fit each other is checked when all are there."""

    model_config = ConfigDict(extra="ignore")
    data: str | None = None
    table: TableSettings = Field(default_factory=TableSettings)
    images: ImageSettings = Field(default_factory=ImageSettings)
    encoder: Shape = Field(default_factory=Shape)
    predictor: PredictorConfig = Field(default_factory=PredictorConfig)
    optim: Optim = Field(default_factory=Optim)
    run: RunSettings = Field(default_factory=RunSettings)

    @model_validator(mode="before")
    @classmethod
    def _fitting(cls, data: Any) -> Any:
        """Without what must fit images.channels, which may be chosen."""
        images = data.get("images") if isinstance(data, dict) else None
        if not isinstance(images, dict):
            return data
        return {**data, "images": {key: value for key, value in images.items() if key not in ("mean", "std")}}

    def has(self, *keys: str) -> bool:
        """Whether any of these dotted keys was set."""
        return any(name in getattr(self, group).model_fields_set for group, name in (key.split(".") for key in keys))


def resolve_with_data(
    recipe: str | None,
    method: str | None,
    *layers: dict[str, Any],
    labels: str | None = None,
    device: str | None = None,
    source: Source | None = None,
) -> tuple[Config, Source, Choice]:
    """The settings of a run, all images of its source, and what was chosen: nothing where a recipe is named. Raises UserError.

    method: where no layer says another; layers: settings over the recipe, later over earlier, `data` among them; device: cpu
    or cuda, where the run will be elsewhere; source: the images, where they are open already.
    """
    if recipe:
        config, choice = settings(recipe, method, *layers), Choice()
        source = with_table(source, config.table) if source else _open(config, labels)
    else:
        user = _user_settings(layers)
        source = with_table(source, user.table) if source else _open(user, labels)
        part = training_part(source, with_split(user.images, source))
        choice = choose(summarise(part, user, device), user)
        config = settings(None, method, choice.settings, *layers)
    decided: dict[str, Any] = {"data": absolute(config.data or ""), "table": config.table.absolute()}
    decided["images"] = with_split(config.images, source)
    masking = config.masking
    if isinstance(masking, MultiBlock) and masking.prior_folder:
        decided["masking"] = masking.model_copy(update={"prior_folder": absolute(masking.prior_folder)})
    return config.model_copy(update=decided), source, choice  # to be opened from anywhere


def _user_settings(layers: tuple[dict[str, Any], ...]) -> UserSettings:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, current_layer(layer))
    try:
        return UserSettings.model_validate(merged)
    except ValidationError as error:
        raise UserError(validation_sentence(error, "settings")) from None


def _open(user: Config | UserSettings, labels: str | None) -> Source:
    if not user.data:
        raise UserError("which images? give --data FOLDER, or --data emoji for the embedded ones")
    seen = {"most_pixels": user.images.max_pixels, "images": user.images}
    return open_source(absolute(user.data), labels, table=user.table, **seen)  # type: ignore[arg-type]


def summarise(source: Source, user: UserSettings, device: str | None = None) -> DataSummary:
    """What settings are chosen by, of some images. Raises UserError where none can be read, or the device is not there."""
    run, most = user.run, user.images.max_pixels
    where, own = (device, 0) if device else (device_of(run.device).type, cores())
    shapes = shapes_of(source, most, threads=run.loader_threads, seconds=run.read_timeout_seconds)
    short, long = np.median(np.sort(shapes[:, :2]), axis=0).astype(int).tolist()
    return DataSummary(len(source), long, short, int(np.bincount(shapes[:, 2]).argmax()), where, own)


def choose(data: DataSummary, user: UserSettings | None = None) -> Choice:
    """Settings for such images on such a device. What the user has set is not chosen, and what depends on it follows it."""
    user = user or UserSettings()
    layer: dict[str, Any] = {}
    reasons = []
    for values, why in (*_images(data, user), _encoder(data, user), _batch(data), *_length(data, user), _loading(data)):
        chosen = {key: value for key, value in values.items() if not user.has(key)}
        for key, value in chosen.items():
            layer = merge(layer, nested(key, value))
        if chosen:
            reasons.append(f"{' '.join(f'{key}={value}' for key, value in chosen.items())}: {why}")
    about = f"{data.images:,} images of about {data.long}x{data.short} px on {_NAMES[data.device]}"
    few = f"only {data.images:,} images: so few teach an encoder little; 'jepakit evaluate' shows how much, beside baselines"
    return Choice(layer, about, tuple(reasons), few if data.images < _FEW else "")


_Row = tuple[_Values, str]  # settings, and why


def _images(data: DataSummary, user: UserSettings) -> list[_Row]:
    most, given = LARGEST[data.row], user.encoder.patch_size if user.has("encoder.patch_size") else None
    sides, rows = user.images.height_width, list[_Row]()
    size = None if user.has("images.size") else size_for(data.short, most, given)
    if size:
        why = "the least" if size > data.short else "as the images are" if size < most else f"the most on {_NAMES[data.device]}"
        sides, rows = (size, size), [({"images.size": size}, why)]
    if patch := patch_for(sides):  # else the size that the user gave has no good patch, and is refused with a better one
        rows.append(({"encoder.patch_size": patch}, f"{sides[0] // patch}x{sides[1] // patch} patches"))
    if data.bands not in (1, 3):  # these are turned into each other
        rows.append(({"images.channels": data.bands}, "the bands of the images"))
    return rows


def _encoder(data: DataSummary, user: UserSettings) -> _Row:
    """Encoder and predictor go together: who shapes the one has the recipe's other."""
    values, why = row_reached(ENCODERS[data.row], data.images)
    shape = ViTConfig.model_validate({key.removeprefix("encoder."): v for key, v in values.items() if key.startswith("encoder.")})
    own = [name for name in ("size", *SHAPE) if user.has(f"encoder.{name}")]
    if any(getattr(user.encoder, name) != getattr(shape, name) for name in own):
        return {}, ""
    papers = "; 'jepakit recipes' names the papers' own" if values is BASE else ""
    return values, f"{why} on {_NAMES[data.device]}{papers}"


def _batch(data: DataSummary) -> _Row:
    batch, why = row_reached(BATCHES[data.row], data.images)
    most = 1 << max(1, (data.images // SHARE).bit_length() - 1)
    return {"optim.batch_size": min(batch, most)}, "at most a quarter of the images" if most < batch else why


def _length(data: DataSummary, user: UserSettings) -> list[_Row]:
    least, most = EPOCHS
    epochs = user.optim.epochs if user.has("optim.epochs") else min(most, max(least, round(SEEN[data.row] / data.images)))
    steps = user.optim.steps
    length: _Values = {} if steps else {"optim.epochs": epochs}
    warmup: _Values = {"optim.warmup_steps": steps // WARMUP} if steps else {"optim.warmup_epochs": epochs / WARMUP}
    if user.optim.warmup_steps is not None or user.has("optim.warmup_epochs"):  # the one would take the place of the other
        warmup = {}
    return [(length, f"about {round(epochs * data.images):,} images in all"), (warmup, f"1/{WARMUP} of the run")]


def _loading(data: DataSummary) -> _Row:
    threads = min(_THREADS, data.cores)
    return ({"run.loader_threads": threads}, "to keep the device busy") if data.device == "cuda" and threads > 2 else ({}, "")
