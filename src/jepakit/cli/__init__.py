"""The command line: parses, calls the Python function of the same name, and says errors in one sentence."""

import io
import logging
import os
import signal
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from jepakit import __version__
from jepakit.cli import mistakes
from jepakit.core.errors import UserError
from jepakit.core.signals import quiet_interrupts

ABOUT = "Pretrain image encoders without labels by predicting in latent space, see how good they are, and hand them on."
# Verbs import what they need when called, so that --help answers at once.
app = typer.Typer(
    add_completion=False,
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


data_app = typer.Typer(no_args_is_help=True, help="Look through a set of images; pack it, to decode it once.")
app.add_typer(data_app, name="data")
ImagesArgument = Annotated[str, typer.Argument(metavar="SRC", help="Images: all that pretrain's --data takes.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads that decode; default: all cores.")]
LabelsOption = Annotated[str | None, typer.Option(help="Which labels of a set that has several, such as count or distance.")]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"jepakit {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which it is.")] = False,
) -> None:
    """What stands before a verb."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    method: Annotated[str | None, typer.Option(help="ijepa, ec_ijepa, c_jepa, ec_c_jepa or mae_pixels.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
    settings: SettingWords = None,
) -> None:
    """Embedded images: pretrain, evaluate, report. CPU, minutes."""
    from jepakit.evaluation.results import results_table
    from jepakit.evaluation.tasks import evaluate
    from jepakit.reporting import report as write_report
    from jepakit.training.train import pretrain as train

    run = train(out=out, recipe="demo", method=method, overwrite=overwrite, set=settings)
    if not run.finished:
        return
    print(results_table(evaluate(run)))
    print(f"report: {write_report([run.path])}")


@app.command()
def pretrain(
    data: Annotated[
        str | None,
        typer.Option(help="A folder, a pack, tar or Parquet files (patterns, addresses), npz, a usual set; emoji."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder, a new one.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A preset; 'jepakit recipes' lists them. Default, without --config: small, fitted to the images."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="ijepa, ec_ijepa, c_jepa, ec_c_jepa or mae_pixels.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on exactly where this run stopped.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
    settings: SettingWords = None,
) -> None:
    """Pretrain an encoder on images without labels."""
    from jepakit.training.train import pretrain as train

    run = train(data, out, recipe, method, config=config, resume=resume, overwrite=overwrite, set=settings)
    if run.finished:
        print(f"encoder: {run.path / 'model'}\nnext: jepakit evaluate {run.path} --data SRC; jepakit report {run.path}")


@app.command()
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN_B] [group.key=value ...]",
            help="A run, or any encoder that jepakit.load takes; two are compared. Settings of tasks: knn.k=10 ...",
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Labelled images; default: the run's own.")] = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: rankme, lidar, knn, linear, transfer, low_shot, attentive; 'frozen' for all these; "
            "finetune; segmentation or davis, with --data of that kind."
        ),
    ] = "rankme,knn,linear",
    labels: Annotated[str | None, typer.Option(help="Which labels of a set that has several, such as count or distance.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/evaluation.")] = None,
) -> None:
    """Judge a frozen encoder beside honest baselines; writes RUN/evaluation/."""
    from jepakit.evaluation.results import as_sentences, results_table
    from jepakit.evaluation.tasks import evaluate as judge
    from jepakit.evaluation.tasks import evaluate_both

    runs = [word for word in words if "=" not in word or Path(word).exists()]
    wanted = [task.strip() for task in tasks.split(",")]
    settings = [word for word in words if word not in runs]
    if len(runs) == 1:
        print(results_table(judge(runs[0], data, wanted, labels=labels, out=out, set=settings)))
    elif len(runs) == 2:
        results, found = evaluate_both(runs, data, wanted, labels=labels, out=out, set=settings)
        for run, each in zip(runs, results, strict=True):
            print(f"{run}\n{results_table(each)}\n")
        print(as_sentences(found, *runs))
    else:
        raise UserError(f"evaluate takes one run, or two to compare, not {len(runs)}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run, or several side by side.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the first run.")] = None,
) -> None:
    """Draw a run, or several, as one HTML file."""
    from jepakit.reporting import report as write_report

    print(write_report(runs, out))


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which one: small-data.")],
    data: Annotated[str | None, typer.Option(help="Images: all that pretrain takes; default: the embedded ones.")] = None,
    labels: LabelsOption = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder; given again, it goes on. Default: runs/NAME.")] = None,
    levers: Annotated[str, typer.Option(help="Comma-separated: what is turned, one at a time; all, or none.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell.")] = 1,
    trials: Annotated[int, typer.Option(min=0, help="Runs of a search over the levers together (extra 'study').")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one a core, on CUDA one.")] = None,
    smoke: Annotated[bool, typer.Option(help="Three runs of a few steps, to see that it works.")] = False,
    settings: SettingWords = None,
) -> None:
    """Many runs that differ in one thing each, and one table of what came of them: OUT/table.md."""
    from jepakit.study import study as turn

    wanted = None if levers == "all" else [] if levers == "none" else [lever.strip() for lever in levers.split(",")]
    place, given = out or Path("runs") / name, settings or []
    if turn(
        name, data, place, labels=labels, levers=wanted, seeds=seeds, trials=trials, processes=processes, smoke=smoke, set=given
    ):
        print(f"{(place.expanduser() / 'table.md').read_text()}\ntable and curves: {place}")


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="One recipe: all its values.")] = None) -> None:
    """The presets; with a name, every value of one and where it comes from."""
    from jepakit.config.recipes import RECIPES, recipe, table

    if name is None:
        for each, chosen in RECIPES.items():
            print(f"{each:20}{chosen.about}")
        return
    print("\n".join([f"{name}: {recipe(name).about}", *recipe(name).reached]))
    for key, value, source in table(name):
        print(f"{key:31} {value:27} {source}")


@app.command()
def plan(
    recipe: Annotated[
        str | None, typer.Option(help="A preset. Default: small, fitted to --data if given, as pretrain does.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="ijepa, ec_ijepa, c_jepa, ec_c_jepa or mae_pixels.")] = None,
    data: Annotated[str | None, typer.Option(help="Images: for hours, and for what no recipe says.")] = None,
    device: Annotated[str, typer.Option(help="H200, A100-80, L4 ...; here: this machine, timed for 20 seconds.")] = "here",
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the plan to this file, too.")] = None,
    settings: SettingWords = None,
) -> None:
    """Say what a pretraining will take: parameters, FLOPs, memory, time. Nothing is trained."""
    from jepakit.planning.plan import plan as foresee
    from jepakit.planning.table import plan_table

    print(plan_table(foresee(recipe, method, data=data, device=device, devices=devices, json=json, set=settings)))


@data_app.command()
def check(
    data: ImagesArgument,
    recipe: Annotated[str | None, typer.Option(help="The preset that shall fit. Default: what pretrain would choose.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all that was found to this file, too.")] = None,
    labels: LabelsOption = None,
    threads: ThreadsOption = None,
    settings: SettingWords = None,
) -> None:
    """Read every image: what is there, what is broken or double, and whether a recipe fits. Exit code 1 where it does not."""
    from jepakit.planning.check import check as look
    from jepakit.planning.check_results import check_table

    checked = look(data, recipe, labels=labels, json=json, threads=threads, set=settings)
    print(check_table(checked))
    if checked.stops:
        sys.exit(1)


@data_app.command()
def pack(
    data: ImagesArgument,
    out: Annotated[Path, typer.Option(help="The pack's folder; given again, packing goes on where it was stopped.")],
    size: Annotated[int, typer.Option(min=1, help="Pixels of the shorter side; smaller images stay as they are.")] = 256,
    labels: LabelsOption = None,
    threads: ThreadsOption = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image; more are taken for a bomb.")] = 100_000_000,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of unreadable images at which packing stops.")] = 0.01,
    overwrite: Annotated[bool, typer.Option(help="Replace a pack that is there.")] = False,
) -> None:
    """Decode and shrink every image once, into files that training crops without decoding."""
    from jepakit.data.formats.pack import pack as write

    root = write(data, out, size, labels=labels, threads=threads, max_pixels=max_pixels, max_bad=max_bad, overwrite=overwrite)
    print(f"packed: {root}\nnext: jepakit pretrain --data {quote(str(root))} --out RUN")


_UsageError: Any = typer.BadParameter.__base__  # click's; newer typer carries a click of its own and installs none


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one sentence and exit code 2."""
    # torch's threads spin for long while they wait; where another program wants the cores, each wait then costs a time
    # slice, and a step 50 times its time (measured: 0.3 s -> 16 s). Spin briefly. It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):  # a name that is no text in this encoding is printed as its bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")
    if arguments is None:
        quiet_interrupts()
    words = sys.argv[1:] if arguments is None else arguments
    words = [*words[1:], "--help"] if words[:1] == ["help"] else words
    try:
        code = app(words, standalone_mode=False, prog_name="jepakit")  # typer makes of Ctrl-C a code that it gives back
        if code == 130:
            print("stopped", file=sys.stderr)
        if isinstance(code, int) and code:
            sys.exit(code)
    except _UsageError as error:
        needs_help = type(error).__name__ == "NoArgsIsHelpError"  # its message is the help
        print(error.format_message() if needs_help else f"error: {mistakes.usage_sentence(error, words)}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a disk that is full or read-only, a name that is too long
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own; torch is not imported here
            raise
        print("error: the device's memory is too small: raise optim.accumulate, or lower optim.batch_size", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said; while Python ends it would print a traceback
