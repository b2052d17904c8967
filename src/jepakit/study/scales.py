"""How large a study's runs are: some steps to see that it works, minutes on a CPU, hours on a GPU, or as in the papers."""

from collections.abc import Iterator, Sequence
from shlex import join
from typing import Literal

from jepakit.config.config import overrides
from jepakit.config.recipes import IMAGENET_IMAGES
from jepakit.planning.plan import run_hours
from jepakit.study.cells import Cell, configuration, words
from jepakit.study.panels import PaperStudy, commands, layout

Scale = Literal["smoke", "cpu", "gpu", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "gpu", "paper")

_TINY = ("encoder.width=16", "encoder.depth=1", "encoder.heads=2", "predictor.width=8", "predictor.depth=1")
# Seconds instead of hours: settings of small-data's base, of the other studies', and of an evaluation.
SMOKE = [*_TINY, "optim.steps=6", "optim.batch_size=32", "optim.warmup_steps=2", "run.log_every_steps=1", "run.probe_images=60"]
_SMOKE_PAPERS = (
    *("data=emoji", "images.size=16", "encoder.patch_size=2", "images.mean=[0.5,0.5,0.5]", "images.std=[0.3,0.3,0.3]", *_TINY),
    *("encoder.depth=2", "optim.steps=4", "optim.batch_size=16", "optim.warmup_steps=1", "run.probe_images=0"),
)
SMOKE_EVALUATION = ["images_limit=300", "linear.epochs=2"]
SMOKE_LOOKS = ["images_limit=60", "linear.epochs=2", "lidar.images=10", "lidar.views=2", "low_shot.draws=2"]
# Where training is healthy, so that differences mean something: recipe small with the demo's encoder (docs/small-data.md)
_CPU = (
    *("encoder.width=128", "encoder.depth=4", "encoder.heads=4", "predictor.width=64", "predictor.depth=2"),
    *("images.crop_scale=[0.06,0.25]", "optim.steps=800", "optim.warmup_steps=80"),
)
_BASES: dict[Scale, tuple[str, ...]] = {"smoke": _SMOKE_PAPERS, "cpu": _CPU, "gpu": ()}
RECIPE_OF_PAPERS, BASE_METHOD = "small", "c_jepa"

DEVICE, DEVICES = "A100-80", 16  # the papers' (I-JEPA, section 5)


def base_words(scale: Scale) -> list[str]:
    """Settings of the base of a study that repeats a paper's table, over recipe `small`; of a method that is healthy there."""
    # so short, plain I-JEPA loses directions of its features (docs/study.md)
    return [f"method={BASE_METHOD}", *_BASES[scale]]


def about_base(scale: str, method: str | None) -> str:
    """A paragraph for the page: what the base's method is, so that nobody reads more into the numbers."""
    if scale == "smoke":
        return "Some steps of tiny encoders: these numbers say nothing; the table is complete, which is the point."
    healthy = (
        "C-JEPA by recipe `small`, which is healthy at this length: plain I-JEPA loses directions of its features, "
        "and differences mean nothing where it does (docs/study.md; `method=ijepa` makes it the base all the same)"
    )
    asked = f"`{method}`, as asked, not C-JEPA, the study's own: differences mean nothing where features lose their directions"
    return (
        f"The base is {healthy if method == BASE_METHOD else asked}. "
        "The published numbers are of ImageNet and of encoders a hundred times as large: compare their order and their "
        "distances, not their height. "
        "Mean ± half of the 95 % interval over seeds; in brackets, the same of each seed's difference from the first line."
    )


def at_paper_scale(name: str, study: PaperStudy, seeds: int, given: Sequence[str], evaluation: Sequence[str]) -> Iterator[str]:
    """The command lines of a study as large as in its paper, with what `plan` forecasts for each run; nothing is run.

    given: the user's words. Raises UserError.
    """
    own = ["method=ijepa", *study.words, *given]
    base = {"recipe": study.recipe, **overrides(own)}
    config = configuration(base, {})
    steps = config.optim.steps or int(config.optim.epochs * IMAGENET_IMAGES / config.optim.batch_size)
    judged = ["--data", "IMAGENET", "--tasks", study.tasks, *evaluation]
    made = layout(base, study.panels(config), seeds, steps, judged, study.also)
    start = ["--data", "IMAGENET", "--recipe", study.recipe, *own]
    yield f"# {name}: {study.asks}\n# IMAGENET is the folder that holds train/ and val/. Nothing is run."
    hours: dict[str, float] = {}
    for cell in made.cells:
        hours[cell.called] = hours.get(cell.called) or _hours(study.recipe, own, cell)
        yield f"# {cell.name}: {hours[cell.called]:,.0f} hours on {DEVICES} {DEVICE}, as jepakit plan forecasts"
        yield from (join(["jepakit", *command]) for command in commands(cell, start, f"runs/{name}", judged))
    total = sum(hours[cell.called] for cell in made.cells)
    yield f"# {len(made.cells)} runs, {total:,.0f} hours on {DEVICES} {DEVICE} in all"


def _hours(recipe: str, given: Sequence[str], cell: Cell) -> float:
    """What `plan` forecasts for a cell on the recipe's own data set."""
    return run_hours(recipe, [*given, *words(cell.change)], DEVICE, DEVICES)
