"""Recipes: presets, every value with where it comes from. A recipe is a flat map from a setting to (value, source)."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from jepakit.config.config import Config, fields, merge, method_layer, nested, resolve
from jepakit.core.errors import UserError, nearest
from jepakit.model.images import IMAGENET
from jepakit.model.method import method_name
from jepakit.model.vit import SHAPE

_Values = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Recipe:
    """What a recipe is for, in a line; the method it starts from; its values with their sources; what it reached, and where;
    how many images its data set has, where that is known."""

    about: str
    method: str
    values: _Values
    reached: tuple[str, ...] = ()
    images: int | None = None


IMAGENET_IMAGES = 1_281_167  # of training: ILSVRC 2012
IMAGENET_22K_IMAGES = 14_197_122  # of the release of autumn 2011
PAPER, CONFIG = "I-JEPA paper, appendix A.1", "I-JEPA released config"

# What all of the papers' runs share. They keep the released mask law, with which they were tuned.
_PAPERS: _Values = {
    "images.size": (224, PAPER),
    "images.crop_scale": ((0.3, 1.0), CONFIG),
    "images.mean": (IMAGENET[0], "ImageNet's, as in the released code"),
    "images.std": (IMAGENET[1], "ImageNet's, as in the released code"),
    "masking.kind": ("multi_block", "I-JEPA paper, section 3"),
    "masking.compat": ("released", "the law of the released collator, with which the papers' values were tuned"),
    "masking.targets": (4, "I-JEPA paper, section 3"),
    "masking.target_scale": ((0.15, 0.2), "I-JEPA paper, section 3"),
    "masking.target_aspect": ((0.75, 1.5), "I-JEPA paper, section 3"),
    "masking.context_scale": ((0.85, 1.0), "I-JEPA paper, section 3"),
    "masking.min_keep": (10, CONFIG),
    "loss": ("smooth_l1", "I-JEPA released code (the paper's formula is l2)"),
    "predictor.width": (384, "I-JEPA paper, table 14"),
    "optim.batch_size": (2048, PAPER),
    "optim.lr": (1e-3, PAPER),
    "optim.start_lr": (1e-4, PAPER),
    "optim.final_lr": (1e-6, PAPER),
    "optim.warmup_epochs": (15, PAPER),
    "optim.weight_decay": (0.04, PAPER),
    "optim.final_weight_decay": (0.4, PAPER),
    "optim.weight_decay_schedule": ("cosine", "I-JEPA released code (the paper says linear)"),
    "optim.ema_momentum": (0.996, PAPER),
    "optim.final_ema_momentum": (1.0, PAPER),
    "run.precision": ("bf16", CONFIG),
}


def _vit(size: str, patch: int, predictor_depth: int, epochs: int, source: str, of_predictor: str | None = None) -> _Values:
    return {
        "encoder.size": (size, source),
        "encoder.patch_size": (patch, source),
        "predictor.depth": (predictor_depth, of_predictor or source),
        "optim.epochs": (epochs, source),
    }


_WARMUP_40: _Values = {"optim.warmup_epochs": (40, CONFIG), "optim.start_lr": (2e-4, CONFIG)}
_AS_IJEPA = "as I-JEPA's; the C-JEPA paper names none"
_C_JEPA: _Values = {
    "regularizer.kind": ("vicreg", "C-JEPA paper, equation 21"),
    "regularizer.weight": (0.001, "C-JEPA paper, equation 21"),
    "regularizer.sim": (25.0, "C-JEPA paper, equation 22"),
    "regularizer.std": (25.0, "C-JEPA paper, equation 22"),
    "regularizer.cov": (1.0, "C-JEPA paper, equation 22"),
    "regularizer.tensor": ("pred_blocks", "C-JEPA paper, appendix algorithm 1"),
    "regularizer.projector": ((3072, 3072, 3072), "DSeq-JEPA's public C-JEPA (the paper names no widths)"),
}

# What the methods share on a small set (docs/small-data.md). The papers' weight .001 of VICReg lets them collapse there.
_SMALL_DATA: _Values = {
    "regularizer.kind": ("vicreg", "C-JEPA paper, equation 21"),
    "regularizer.tensor": ("context_pooled", "trial on the emoji: keeps the rank of features up"),
    "regularizer.sim": (0.0, "trial on the emoji: the prediction term already compares"),
    "regularizer.std": (25.0, "C-JEPA paper, equation 22"),
    "regularizer.cov": (1.0, "C-JEPA paper, equation 22"),
    "regularizer.projector": ((), "trial on the emoji: statistics on the features themselves"),
    "optim.ema_momentum": (0.99, "trial on the emoji: in some hundred steps an average from .996 lags behind"),
    "optim.final_ema_momentum": (0.999, "the same"),
    "optim.weight_decay": (0.04, PAPER),
    "optim.final_weight_decay": (0.04, "trial on the emoji: constant"),
    "optim.batch_size": (64, "trial on the emoji"),
}


def _of_imagenet(about: str, method: str, values: _Values, images: int = IMAGENET_IMAGES) -> Recipe:
    """One of the papers' runs, with the values that it has beside those of all."""
    return Recipe(about, method, {**_PAPERS, **values}, images=images)


RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        "the embedded emoji on two CPU cores in minutes",
        "ec_c_jepa",
        {
            "data": ("emoji", "embedded"),
            "images.size": (32, "the embedded images"),
            "images.mean": (IMAGENET[0], "ImageNet's: the trials were made with it"),
            "images.std": (IMAGENET[1], "ImageNet's: the trials were made with it"),
            "encoder.patch_size": (4, "8x8 patches"),
            "encoder.width": (128, "trial on the emoji"),
            "encoder.depth": (4, "docs/small-data.md: in the same minutes as good as 6, better than 3 of width 192"),
            "encoder.heads": (4, "32 features a head"),
            "predictor.width": (64, "trial on the emoji"),
            "predictor.depth": (2, "trial on the emoji"),
            "masking.min_keep": (6, "about a tenth of the patches"),
            **_SMALL_DATA,
            "regularizer.weight": (0.015, "docs/small-data.md: better than .04 on the emoji; not so on textures"),
            "optim.lr": (1e-3, "trial on the emoji"),
            "optim.epochs": (9, "a minute or two on two quick cores, five on slow ones"),
            "optim.warmup_epochs": (1, "a ninth of the run"),
        },
        (
            "reached: kNN of emoji groups 57.5 % (56.8-58.5, seeds 0-2), raw pixels 55.1 %: jepakit demo seed=0",
            "  with other methods (benchmarks/quality.py, seeds 0-2): c_jepa 57.6, mae_pixels 42.2, ec_ijepa 40.7, ijepa 40.3;",
            "  untrained 42.3: the last three fail",
        ),
    ),
    "small": Recipe(
        "your own images on one GPU, in hours: thousands to a few hundred thousand of 64 px",
        "c_jepa",
        {
            "images.size": (64, "small domain images"),
            "encoder.patch_size": (8, "8x8 patches"),
            "encoder.size": ("tiny", "I-JEPA released table of sizes"),
            "predictor.width": (96, "half of the encoder's"),
            "predictor.depth": (4, "between the demo's and ViT-B's"),
            "masking.min_keep": (6, "about a tenth of the patches"),
            **_SMALL_DATA,
            "images.target_crop": ("own", "docs/small-data.md: what two crops of an image share is what it is an image of"),
            "target.norm": ("batch", "docs/small-data.md: no worse than layer norm, and ijepa keeps its rank with it"),
            "regularizer.weight": (0.003, "docs/small-data.md: more spreads features that no other crop confirms"),
            "optim.lr": (5e-4, "docs/small-data.md"),
            "optim.epochs": (100, "hours on one GPU"),
            "optim.warmup_epochs": (5, "a twentieth of the run"),
        },
        (
            "reached, with the demo's encoder on one core (docs/small-data.md has the commands): which of 400 textures, kNN",
            "  73.7, 74.8 % in 16,000 updates, an hour (two seeds; 47.4-49.9 in 3,000, three), untrained 31.5, raw pixels 12.1;",
            "  in 800 updates (benchmarks/quality.py, seeds 0-2): mae_pixels 42.6, c_jepa 39.1, ec_c_jepa 38.6, ec_ijepa 31.6,",
            "  ijepa 31.1; untrained 31.4;",
            "  groups of emoji 60.7 % in 3,000 updates (60.4-61.4, seeds 0-2), untrained 42.3, raw pixels 55.1; 66.1 % in 25,740",
            "  (80 minutes of one core, one seed; pretraining saw the test's images, without labels)",
            "  whole, on a GPU for 100 passes: not measured",
        ),
    ),
    "ijepa_vitb16": _of_imagenet("I-JEPA ViT-B/16", "ijepa", _vit("base", 16, 6, 600, PAPER)),
    "ijepa_vitl16": _of_imagenet("I-JEPA ViT-L/16", "ijepa", _vit("large", 16, 12, 600, PAPER)),
    "ijepa_vith14": _of_imagenet("I-JEPA ViT-H/14", "ijepa", {**_vit("huge", 14, 12, 300, PAPER), **_WARMUP_40}),
    "ijepa_vith16_448": _of_imagenet(
        "I-JEPA ViT-H/16 at 448 px", "ijepa", {**_vit("huge", 16, 12, 300, PAPER), **_WARMUP_40, "images.size": (448, PAPER)}
    ),
    "ijepa_vitg16": _of_imagenet(
        "I-JEPA ViT-G/16, ImageNet-22k",
        "ijepa",
        {**_vit("giant", 16, 16, 44, CONFIG), "optim.warmup_epochs": (3, CONFIG), "optim.start_lr": (2e-4, CONFIG)},
        IMAGENET_22K_IMAGES,
    ),
    "ec_ijepa_vitl16": _of_imagenet(
        "EC-IJEPA ViT-L/16", "ec_ijepa", _vit("large", 16, 12, 600, "EC-IJEPA paper, tables 4 and 6")
    ),
    "ec_ijepa_vith14": _of_imagenet(
        "EC-IJEPA ViT-H/14",
        "ec_ijepa",
        {
            **_vit("huge", 14, 12, 300, "EC-IJEPA paper, tables 5 and 7"),
            "optim.warmup_epochs": (40, "EC-IJEPA paper, table 7"),
        },
    ),
    "c_jepa_vitb16": _of_imagenet(
        "C-JEPA ViT-B/16", "c_jepa", {**_vit("base", 16, 6, 600, "C-JEPA paper, appendix", _AS_IJEPA), **_C_JEPA}
    ),
    "c_jepa_vitl16": _of_imagenet(
        "C-JEPA ViT-L/16", "c_jepa", {**_vit("large", 16, 12, 600, "C-JEPA paper, appendix", _AS_IJEPA), **_C_JEPA}
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UserError, with the nearest name."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}': choose from {', '.join(RECIPES)}{nearest(name, RECIPES)}")
    return RECIPES[name]


def recipe_layer(name: str) -> dict[str, Any]:
    """A recipe as nested settings, before a method is laid over it."""
    layer: dict[str, Any] = {"recipe": name}
    for key, (value, _) in recipe(name).values.items():
        layer = merge(layer, nested(key, value))
    return layer


def settings(recipe_name: str | None, method: str | None, *layers: dict[str, Any]) -> Config:
    """A recipe (default: small), a method (default: the recipe's) and further layers, resolved. Raises UserError."""
    name = recipe_name or "small"
    chosen = method or recipe(name).method
    config = resolve(recipe_layer(name), method_layer(chosen), *layers)
    return config.model_copy(update={"method": method_name(config)})  # a layer may have added or taken a part


_CHOICE = {"method": "the recipe's method", "recipe": "this recipe"}


def table(name: str) -> list[tuple[str, str, str]]:
    """Every setting of a recipe as (key, value, source), groups left out."""
    config, chosen = settings(name, None), recipe(name)
    rows = []
    for key in dict.fromkeys(key for key, _ in fields()):
        value = _value(config, key)
        present = value is not None or key in chosen.values
        if isinstance(value, BaseModel) or not present:
            continue
        source = chosen.values[key][1] if key in chosen.values else "default"
        if "encoder.size" in chosen.values and key.removeprefix("encoder.") in SHAPE:
            source = f"the table of sizes: {config.encoder.size}"
        rows.append((key, str(value), _CHOICE.get(key, source)))
    return rows


def sources(config: Config) -> dict[str, str]:
    """Where values of its recipe come from, by dotted key; of those that are the recipe's still."""
    if config.recipe not in RECIPES:
        return {}
    return {key: of for key, value, of in table(config.recipe) if of != "default" and str(_value(config, key)) == value}


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None) if value is not None else None
    return value
