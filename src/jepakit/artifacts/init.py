"""A new run's weights from others: the settings that follow from them, what is put in, and the list of what was not."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from jepakit.artifacts.checkpoint import load_state
from jepakit.artifacts.load import Weights, absolute_weights, read_weights
from jepakit.artifacts.resample import change_channels, resize_patches
from jepakit.config.config import Config, validation_sentence
from jepakit.config.init import USUAL_PARTS, Init, InitPart
from jepakit.config.sizes import size_for
from jepakit.core.errors import UserError
from jepakit.core.files import save_json
from jepakit.model.jepa import JEPA
from jepakit.model.method import Method
from jepakit.model.vit import NORM_EPS, SHAPE, VIT_SIZES, ViT, resample_positions

PREDICTOR = {"width": 384, "depth": 6}  # the released predictors' width, and the depth beside ViT-B; the most for other encoders
FILE = "init.json"
RANDOM_TARGETS = "the target encoder is fresh beside an encoder that is not: targets are at first those of random weights"


@dataclass(frozen=True)
class Taken:
    """What a run began with: settings that followed, parts and how many tensors of each, what was changed (sentences), names
    that were left out, fresh parts, and a warning where targets are of random weights at first."""

    path: str
    settings: dict[str, Any]
    taken: dict[str, int]
    changed: tuple[str, ...]
    left_out: tuple[str, ...]
    fresh: tuple[str, ...]
    warning: str = ""

    def say(self, log: logging.Logger) -> None:
        """Log it, a line each."""
        parts = ", ".join(f"{part} ({count} tensors)" for part, count in self.taken.items())
        log.info("begins with weights of %s: %s; fresh: %s", self.path, parts, ", ".join(self.fresh) or "nothing")
        words = [f"{group}.{name}={value}" for group, values in self.settings.items() for name, value in values.items()]
        if words:
            log.info("  %s: to fit the weights (your own settings win)", " ".join(words))
        for sentence in self.changed:
            log.info("  %s", sentence)
        if self.warning:
            log.warning(self.warning)

    def save(self, run: Path) -> None:
        """Write it into the run's folder."""
        save_json(run / FILE, asdict(self))


@dataclass(frozen=True)
class Start:
    """Weights that a run begins from, their path and parts as they are recorded, and the settings that follow from them."""

    weights: Weights
    path: str
    parts: tuple[InitPart, ...]
    settings: dict[str, Any]


def read_start(layers: Iterable[Mapping[str, Any]], *, sizes_are_chosen: bool) -> Start | None:
    """The weights that a user's layers of settings name in init.path; None where they name none. Raises UserError.

    sizes_are_chosen: images.size is, by the images, where the user does not say it.
    """
    groups: dict[str, dict[str, Any]] = {"init": {}, "encoder": {}, "predictor": {}, "images": {}}
    for layer in layers:
        for name, values in groups.items():
            values |= given if isinstance(given := layer.get(name), Mapping) else {}
    if groups["init"].get("path") is None:
        return None
    try:
        init = Init.model_validate(groups["init"])
    except ValidationError as error:
        raise UserError(validation_sentence(error, "settings: init", Init)) from None
    assert init.path is not None
    heads = groups["encoder"].get("heads")  # they count where the file does not say
    found = read_weights(
        init.path, heads=heads if type(heads) is int else None, give_heads="say how many heads with encoder.heads=N"
    )
    _require_shape(found, groups["encoder"])
    settings = {**_encoder_layer(found, groups["encoder"]), **_predictor_layer(found, groups["predictor"])}
    vit = found.encoders[found.which]
    own = (vit.grid[0] * vit.config.patch_size, vit.grid[1] * vit.config.patch_size)
    if sizes_are_chosen and not groups["images"].keys() & {"size"} and not size_for(1 << 20, 1 << 20, vit.config.patch_size):
        settings["images"] = {"size": own[0] if own[0] == own[1] else own}  # as none that is chosen is of such patches
    return Start(found, absolute_weights(init.path), init.parts or USUAL_PARTS, settings)


def _encoder_layer(found: Weights, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The weights' shape as settings, but for what the user asked. Positions are learnt where a run of ours learnt them."""
    own = found.encoders[found.which].config
    named = {*asked, *(SHAPE if asked.get("size") else ())}
    names = (*SHAPE, "patch_size", *(("learned_positions",) if isinstance(found.method, Config) else ()))
    return {"encoder": {name: getattr(own, name) for name in names if name not in named}}


def _predictor_layer(found: Weights, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of the predictor that the weights were trained with, else half as wide as the encoder; less what is asked."""
    shape = found.encoders[found.which].config
    width = min(PREDICTOR["width"], shape.width // 2)
    layer: dict[str, Any] = {"width": width, "depth": PREDICTOR["depth"] if width == PREDICTOR["width"] else 4}
    if found.method is not None and found.predictor is not None:
        own = found.method.predictor
        layer = {"width": own.width, "depth": own.depth, "heads": own.heads}
    elif width % shape.heads or width % 4:
        layer = {}
    return {"predictor": {name: value for name, value in layer.items() if name not in asked}}


def _require_shape(found: Weights, asked: Mapping[str, Any]) -> None:
    """Raises UserError where the user asks for an encoder of another shape than the weights'."""
    own = found.encoders[found.which].config
    size = VIT_SIZES.get(asked["size"], ()) if isinstance(asked.get("size"), str) else ()
    for name, given in {**dict(zip(SHAPE, size, strict=False)), **asked}.items():
        has = getattr(own, name) if name in SHAPE else given
        same = abs(given - has) * own.width < 0.5 if name == "mlp_ratio" and isinstance(given, int | float) else given == has
        if isinstance(given, int | float) and not same:  # of what is no number the settings say so
            raise UserError(
                f"encoder.{name}={given:g} is asked for, and the weights in {found.where} have {has:g}: leave the "
                f"encoder's shape out, as a run takes it from its weights, or begin from others"
            )


def require_fits(found: Weights, method: Method, channels: int) -> None:
    """Raises UserError where a run's encoder, of the weights' shape, cannot begin with them all the same."""
    vit = found.encoders[found.which]
    own, ours = vit.config, method.encoder
    if own.learned_positions and not ours.learned_positions:
        raise UserError(
            f"{found.where} has learnt positions, and this run's are the fixed sin-cos ones, with which its weights are of no "
            f"use: set encoder.learned_positions=true to begin with them and learn on"
        )
    if vit.activation is not F.gelu:
        raise UserError(f"{found.where} was trained with another activation than our runs have, which is gelu: begin from others")
    change_channels(vit.patch_embed.proj.weight[:1].detach(), channels, found.where)


def put_in(jepa: JEPA, start: Start) -> Taken:
    """Put weights into a fresh model; parts that are not named stay as the seed made them.

    Both encoders begin as the one that the weights are known by (`Method.which`), as where no average gave the targets it is
    of no use; but an encoder whose predictor comes with it is that predictor's. The weights are such as `require_fits` let
    pass. Raises UserError for a predictor that is not there or does not fit.
    """
    parts, found = start.parts, start.weights
    changed, taken = list(found.notes), dict[str, int]()
    if found.conditioning != jepa.method.conditioning:
        changed.append("the weights were trained with other conditioning tokens than this run has (conditioning.*)")
    both = {"encoder": "encoder" if "predictor" in parts else found.which, "target_encoder": found.which}
    for part, source in both.items():
        if part in parts:
            vit = found.encoders.get(source, found.encoders[found.which])  # type: ignore[call-overload]
            state, changes = _fitted(vit, getattr(jepa, part), found.where)
            load_state(getattr(jepa, part), state, f"{found.where}: {part}")
            taken[part] = len(state)
            changed += [sentence for sentence in changes if sentence not in changed]
    if "predictor" in parts:
        taken["predictor"] = _put_predictor(jepa, found)
    fresh = [name for name, module in jepa.named_children() if name not in taken and any(True for _ in module.parameters())]
    lone = "encoder" in taken and "target_encoder" in fresh and jepa.method.target.learned  # else it gives no targets
    warning = RANDOM_TARGETS if lone else ""
    return Taken(start.path, start.settings, taken, tuple(changed), found.left_out, tuple(fresh), warning)


def _fitted(vit: ViT, ours: ViT, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's state with patches, channels and positions as ours are; and what was changed."""
    state, changes = dict(vit.state_dict()), []
    weight = change_channels(state["patch_embed.proj.weight"], ours.channels, where)
    if vit.channels != ours.channels:
        rule = "summed over channels" if ours.channels == 1 else "shared out over channels"
        changes.append(f"patch embedding {rule}: {ours.channels} now, {vit.channels} in the weights")
    old, new = vit.config.patch_size, ours.config.patch_size
    state["patch_embed.proj.weight"] = resize_patches(weight, new)
    if old != new:
        changes.append(f"patch embedding resized from {old}x{old} to {new}x{new} pixels (pseudo-inverse, FlexiViT)")
    grids = f"for {ours.grid[0]}x{ours.grid[1]} patches ({vit.grid[0]}x{vit.grid[1]} in the weights)"
    if vit.config.learned_positions:
        state["positions"] = resample_positions(state["positions"], vit.grid, ours.grid)
        changes += [f"positions interpolated {grids}"] if vit.grid != ours.grid else []
    else:
        if ours.config.learned_positions:
            state["positions"] = ours.positions.detach()  # sin-cos ones, of whatever grid
        changes += [f"sin-cos positions computed {grids}"] if vit.grid != ours.grid else []
    if vit.eps != NORM_EPS:
        changes.append(f"layer norm's epsilon is {NORM_EPS:g} now, {vit.eps:g} in the weights")
    return state, changes


def _put_predictor(jepa: JEPA, found: Weights) -> int:
    """Put the predictor in. Raises UserError where there is none, or one of another shape."""
    if found.predictor is None or found.method is None:
        raise UserError(f"{found.where} holds no predictor: leave it out of init.parts")
    ours, own = jepa.predictor.state_dict(), found.predictor.state_dict()
    heads = [method.predictor.heads or method.encoder.heads for method in (jepa.method, found.method)]
    shapes, others = ({name: value.shape for name, value in state.items()} for state in (ours, own))
    other = next((name for name in {**shapes, **others} if shapes.get(name) != others.get(name)), "")
    if other or heads[0] != heads[1]:
        last = other.startswith("predictor_proj")  # to as many numbers as a target has
        what = "says another number of values of a patch than this run's targets have" if last else "is of another shape"
        mend = "begin with the same target.* and images" if last else "leave predictor.* out"
        raise UserError(
            f"the predictor in {found.where} {what} ({other or 'another number of heads'}): {mend}, or leave predictor out of "
            f"init.parts"
        )
    load_state(jepa.predictor, own, f"{found.where}: predictor")
    return len(own)
