"""The program's groups of commands, and the options that several commands share."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from jepakit import __version__
from jepakit.cli import mistakes
from jepakit.core import progress, ranks

ABOUT = "Pretrain image encoders without labels by predicting in latent space, see how good they are, and hand them on."
# Verbs import what they need when called, so that --help answers at once.
app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
SettingWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[group.key=value ...]",
        help="Any setting, as in optim.lr=5e-4; 'jepakit recipes NAME' lists them.",
        callback=mistakes.settings_only,
    ),
]
# Names that a shell completes: to ask the modules that define them would import torch, seconds at each press of the key
METHOD_CHOICES = ("ijepa", "ec_ijepa", "c_jepa", "ec_c_jepa", "mae_pixels")
RECIPE_CHOICES = (
    *("demo", "small", "ijepa_vitb16", "ijepa_vitl16", "ijepa_vith14", "ijepa_vith16_448", "ijepa_vitg16"),
    *("ec_ijepa_vitl16", "ec_ijepa_vith14", "c_jepa_vitb16", "c_jepa_vitl16"),
)


def among(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes a word to one of these names."""

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return completed


a_recipe = among(RECIPE_CHOICES)
MethodOption = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(METHOD_CHOICES[:-1])} or {METHOD_CHOICES[-1]}.", autocompletion=among(METHOD_CHOICES)),
]
data_app = typer.Typer(no_args_is_help=True, help="Look through a set of images; pack it, to decode it once.")
app.add_typer(data_app, name="data")
ImagesArgument = Annotated[str, typer.Argument(metavar="SRC", help="Images: all that pretrain's --data takes.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads that decode; default: all cores.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(help="Which labels of a set that has several, such as count; of a table its column, or several: a,b,c."),
]
_TABLE_OPTIONS: dict[str, Any] = {  # by the names of their parameters
    "table": Annotated[str | None, typer.Option(help="A .csv, .tsv or .parquet file with a row for each image.")],
    "labels": LabelsOption,
    "groups": Annotated[
        str | None, typer.Option(help="The table's column of what belongs together (patient, slide): no split divides it.")
    ],
    "splits": Annotated[str | None, typer.Option(help="The table's column of words for train, validation and test.")],
    "image": Annotated[str | None, typer.Option(help="The table's column of the images' paths, names or stems.")],
    "as_": Annotated[str | None, typer.Option("--as", metavar="KIND", help="What labels are: class, number or multi.")],
    "listed": Annotated[
        bool, typer.Option("--listed", help="The images are those that the table names, as paths below --data, and no others.")
    ],
}


def takes_table(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a table's options in the place of its parameter `told`, which gets them as Python's keywords."""

    @wraps(command)
    def packing(**given: Any) -> None:
        command(told={name: given.pop(name) for name in _TABLE_OPTIONS}, **given)

    parameters: list[Parameter] = []
    for name, own in signature(command).parameters.items():
        options = [
            own.replace(name=each, annotation=kind, default=False if each == "listed" else None)
            for each, kind in _TABLE_OPTIONS.items()
        ]
        parameters += options if name == "told" else [own.replace(kind=Parameter.KEYWORD_ONLY)]
    packing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    packing.__annotations__ = {each.name: each.annotation for each in parameters}
    return packing


def print_once(words: str) -> None:
    """Print it, of several processes the first."""
    if ranks.is_main():
        print(words)


EvaluateWords = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN [RUN_B] [group.key=value ...]",
        help="A run, or any encoder that jepakit.load takes; two are compared. Settings of tasks: knn.k=10 ...",
    ),
]
TasksOption = Annotated[
    str,
    typer.Option(
        help="Comma-separated: rankme, lidar, knn, linear, transfer, low_shot, attentive; 'frozen' for all these; "
        "finetune; segmentation, boxes or davis, with --data of that kind."
    ),
]
StepsOption = Annotated[
    str | None,
    typer.Option(
        metavar="all|N,M,...",
        help="Judge the encoder of each of these steps of a run, or of several (run.keep_every_steps keeps them): metric against "
        "images seen, and which step is best.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        help="What counts and chooses settings on the validation fifth: accuracy, balanced_accuracy, macro_f1, auroc, "
        "average_precision; of numbers r2, mae, spearman. Several, with commas: two runs are compared by each."
    ),
]
AggregateOption = Annotated[
    str | None,
    typer.Option(metavar="group", help="group: one answer for each group (slices of a volume): features averaged."),
]
ShortcutsOption = Annotated[
    str | None,
    typer.Option(
        metavar="COL",
        help="Other labels of the images, such as site or scanner: whether features tell it, and whether the label holds "
        "on one that training did not see.",
    ),
]
ANYWHERE = ("--quiet", "--log-json")  # options of the program that may stand after its verb


def _say_version(asked: bool) -> None:
    if asked:
        print(f"jepakit {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which it is.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say results, warnings and mistakes alone.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Say what happens as an object of JSON a line.")] = False,
) -> None:
    """What stands before a verb, or after it (`jepakit.cli.main` moves it)."""
    progress.say(quiet=quiet, as_json=log_json)
