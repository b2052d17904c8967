"""The released I-JEPA code's configurations (YAML of five groups: data, logging, mask, meta, optimization) as our settings."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jepakit.config.config import grouped, known_keys, merge, nested
from jepakit.core.errors import UserError, nearest, plain
from jepakit.model.vit import VIT_SIZES

RELEASED_GROUPS = ("data", "logging", "mask", "meta", "optimization")
_OWN = ("mask", "meta", "optimization")  # groups of theirs that no settings of ours have
# Their key: ours, with the same value
SAME = {
    "data.crop_size": "images.size",
    "data.crop_scale": "images.crop_scale",
    "mask.allow_overlap": "masking.allow_overlap",
    "mask.aspect_ratio": "masking.target_aspect",
    "mask.enc_mask_scale": "masking.context_scale",
    "mask.min_keep": "masking.min_keep",
    "mask.num_enc_masks": "masking.contexts",
    "mask.num_pred_masks": "masking.targets",
    "mask.patch_size": "encoder.patch_size",
    "mask.pred_mask_scale": "masking.target_scale",
    "meta.pred_depth": "predictor.depth",
    "meta.pred_emb_dim": "predictor.width",
    "optimization.epochs": "optim.epochs",
    "optimization.final_lr": "optim.final_lr",
    "optimization.final_weight_decay": "optim.final_weight_decay",
    "optimization.ipe_scale": "optim.schedule_scale",
    "optimization.lr": "optim.lr",
    "optimization.start_lr": "optim.start_lr",
    "optimization.warmup": "optim.warmup_epochs",
    "optimization.weight_decay": "optim.weight_decay",
}
# Their key: what is made of it
OTHERWISE = {
    "data.batch_size": "optim.batch_size",
    "data.image_folder": "data",
    "data.num_workers": "run.loader_threads",
    "data.root_path": "data",
    "meta.model_name": "encoder.size",
    "data.use_horizontal_flip": "images.symmetry",
    "meta.use_bfloat16": "run.precision",
    "optimization.ema": "optim.ema_momentum, optim.final_ema_momentum",
}
_SWITCHES: tuple[tuple[str, str, dict[bool, str | None]], ...] = (  # what on and off are of theirs
    ("data.use_horizontal_flip", "images.symmetry", {True: "mirror", False: None}),
    ("meta.use_bfloat16", "run.precision", {True: "bf16", False: "fp32"}),
)
# Their key: why it has no counterpart
UNMAPPED = {
    "data.color_jitter_strength": "crops are not jittered in colour here",
    "data.pin_mem": "memory is pinned wherever the device is a CUDA one",
    "data.use_color_distortion": "crops are not jittered in colour here",
    "data.use_gaussian_blur": "crops are not blurred here",
    "logging.folder": "the run goes to --out",
    "logging.write_tag": "the names of a run's files are fixed",
    "meta.copy_data": "images are read where they lie; 'jepakit data pack' copies them",
    "meta.load_checkpoint": "a run goes on with --resume RUN",
    "meta.read_checkpoint": "a run goes on with --resume RUN; jepakit.load reads released weights",
}
_WISHES = ("data.use_color_distortion", "data.use_gaussian_blur", "meta.load_checkpoint")  # switched on, they ask for something
_OPTIONAL = {"data.image_folder", "data.root_path", "data.num_workers", *UNMAPPED}  # what no result hangs on
# GPUs of the published runs, whose batch is 2048 in all, by (model, pixels, patch, images a GPU)
PUBLISHED_GPUS: dict[tuple[Any, ...], int] = {
    ("vit_huge", 224, 14, 128): 16,
    ("vit_huge", 448, 16, 16): 128,
    ("vit_huge", 224, 14, 32): 64,
    ("vit_giant", 224, 16, 16): 128,
}
_RECIPES = {"large": "ijepa_vitl16", "huge": "ijepa_vith14", "giant": "ijepa_vitg16"}  # others: ijepa_vitb16


@dataclass
class ReleasedYaml:
    """What such a file says: settings over the recipe that they name, lines on what became of its keys, and warnings."""

    where: str
    layer: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any) -> None:
        """Give our setting a value."""
        self.layer = merge(self.layer, nested(key, value))

    def say(self, log: logging.Logger) -> None:
        """Log what became of the keys."""
        log.info("%s is a configuration of the released I-JEPA code: read as %s", plain(self.where), self.layer["recipe"])
        for note in self.notes:
            log.info("  %s", plain(note))
        for warning in self.warnings:
            log.warning("%s", plain(warning))

    def in_their_words(self, sentence: str, given: Mapping[str, Any]) -> str:
        """An error about settings with the file's own key, unless its value is one that the user has `given` otherwise."""
        for theirs, ours in {**SAME, "optimization.ema": "optim.ema_momentum"}.items():
            group, _, name = ours.partition(".")
            if name not in given.get(group, {}):
                sentence = sentence.replace(f"settings: {ours}: ", f"{self.where}: {theirs} ({ours}): ")
        if str(self.layer.get("data", self.where)).rstrip("/") in sentence:
            sentence += f" (data.root_path and data.image_folder of {self.where}; --data gives your own)"
        return sentence


def has_released_groups(given: Mapping[str, Any]) -> bool:
    """Whether a file's groups are the released code's: one that only it has, and none that only our settings have."""
    ours = {key.partition(".")[0] for key in known_keys()} - {"data"}
    return any(isinstance(given.get(group), Mapping) for group in _OWN) and not ours & given.keys()


def released_yaml(given: Mapping[str, Any], where: str, *, own_data: bool) -> ReleasedYaml:
    """Read such a file. own_data: the user names images of their own.

    Raises UserError for a group or key that the released code does not have, with the nearest, and for a value that is none.
    """
    values = _values(given, where)
    file = ReleasedYaml(where)
    file.set("recipe", _model(values, file))
    file.set("method", "ijepa")
    for theirs, ours in SAME.items():
        if values.get(theirs) is not None:
            file.set(ours, values[theirs])
    _batch(values, file)
    _machine(values, file, own_data)
    if (ema := values.get("optimization.ema")) is not None:
        if not isinstance(ema, list | tuple) or len(ema) != 2:
            raise UserError(f"{where}: optimization.ema: give two numbers, as in [0.996, 1.0], not {ema!r}")
        file.set("optim.ema_momentum", ema[0])
        file.set("optim.final_ema_momentum", ema[1])
    missing = [key for key in (*SAME, *OTHERWISE) if key not in _OPTIONAL and values.get(key) is None]
    if missing:
        file.notes.append(f"not in the file, so as the recipe {file.layer['recipe']} has them: {', '.join(missing)}")
    for key, reason in UNMAPPED.items():
        if key in values:
            file.notes.append(f"{key} is not used: {reason}")
        if key in _WISHES and values.get(key):
            file.warnings.append(f"{where}: {key} is {str(values[key]).lower()}, which has no effect: {reason}")
    return file


def _values(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by dotted key. Raises UserError for an unknown group or key."""
    known, result = (*SAME, *OTHERWISE, *UNMAPPED), dict[str, Any]()
    for group, settings in grouped(given, where).items():
        if group not in RELEASED_GROUPS:
            raise UserError(f"{where}: {group}: no group of a released I-JEPA configuration{nearest(group, RELEASED_GROUPS)}")
        if not isinstance(settings, Mapping | None):
            raise UserError(f"{where}: {group}: expected settings, as in '{group}: {{{_first(group)}: ...}}', not {settings!r}")
        result |= {f"{group}.{key}": value for key, value in (settings or {}).items()}
    for key in result:
        if key not in known:
            of_name = [each for each in known if each.partition(".")[2] == key.partition(".")[2]]  # in another group
            near = f"; did you mean '{of_name[0]}'?" if of_name else nearest(key, known)
            raise UserError(f"{where}: {key}: no key of a released I-JEPA configuration{near}")
    return result


def _first(group: str) -> str:
    return next(key for key in (*SAME, *OTHERWISE, *UNMAPPED) if key.startswith(group + ".")).partition(".")[2]


def _model(values: Mapping[str, Any], file: ReleasedYaml) -> str:
    """Set the encoder's size; the recipe of the papers that is nearest."""
    names, name = [f"vit_{size}" for size in VIT_SIZES], values.get("meta.model_name")
    if name not in names:
        what = "is missing" if name is None else f"'{name}' is unknown"
        raise UserError(
            f"{file.where}: a released I-JEPA configuration by its groups, but meta.model_name {what}: "
            f"choose from {', '.join(names)}{nearest(str(name), names)}"
        )
    size = str(name).removeprefix("vit_")
    file.set("encoder.size", size)
    recipe = _RECIPES.get(size, "ijepa_vitb16")
    return "ijepa_vith16_448" if recipe == "ijepa_vith14" and values.get("data.crop_size") == 448 else recipe


def _batch(values: Mapping[str, Any], file: ReleasedYaml) -> None:
    """Set the global batch: the file's is that of a GPU, and it does not hold how many there are."""
    each = _count(values, "data.batch_size", 1, file.where)
    if each is None:
        return
    model = (values.get("meta.model_name"), values.get("data.crop_size"), values.get("mask.patch_size"), each)
    gpus = PUBLISHED_GPUS.get(model)
    if gpus:
        file.notes.append(
            f"optim.batch_size={each * gpus}: data.batch_size is {each} for a GPU, and the published run had {gpus}; "
            f"optim.accumulate={gpus} computes, and trims masks, by {each} images, as there"
        )
    else:
        file.warnings.append(
            f"{file.where}: data.batch_size {each} is for one GPU, and the file does not say how many there are: taken as the "
            "whole batch; the published runs have 2048 in all (optim.batch_size=2048)"
        )
    file.set("optim.batch_size", each * (gpus or 1))


def _machine(values: Mapping[str, Any], file: ReleasedYaml, own_data: bool) -> None:
    """Set what is on or off, and what says where the images are, and how they are read."""
    workers = _count(values, "data.num_workers", 0, file.where)
    if workers is not None:
        file.set("run.loader_threads", max(1, workers))
    for theirs, ours, made in _SWITCHES:
        on = values.get(theirs)
        if on is not None:
            if not isinstance(on, bool):
                raise UserError(f"{file.where}: {theirs}: give true or false, not {on!r}")
            file.set(ours, made[on])
    parts = [values[key] for key in ("data.root_path", "data.image_folder") if values.get(key) is not None]
    if own_data and parts:
        file.notes.append("data.root_path and data.image_folder are not used: your own data is")
    elif parts:
        for part in parts:
            if not isinstance(part, str):
                raise UserError(f"{file.where}: data.root_path and data.image_folder are paths, not {part!r}")
        file.set("data", os.path.join(*parts))
        file.notes.append(f"data={file.layer['data']}: data.root_path and data.image_folder; --data gives your own")


def _count(values: Mapping[str, Any], key: str, least: int, where: str) -> int | None:
    """A whole number, or none where it is not given. Raises UserError for anything else."""
    value = values.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UserError(f"{where}: {key}: give a whole number of {least} or more, not {value!r}")
    return value
