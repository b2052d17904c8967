"""Commands that make runs, and that read them: demo, pretrain, evaluate, report, runs, study."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from jepakit.cli.options import (
    AggregateOption,
    EvaluateWords,
    MethodOption,
    MetricOption,
    SettingWords,
    ShortcutsOption,
    StepsOption,
    TasksOption,
    a_recipe,
    among,
    app,
    print_once,
    takes_table,
)
from jepakit.core.errors import UserError
from jepakit.core.files import finite

log = logging.getLogger("jepakit")
STUDY_NAMES = (
    *("methods", "context-scale", "sample-efficiency", "pooling", "masking", "vicreg", "targets", "predictor", "ema", "theory"),
    "small-data",
)
WHICH_STUDY = f"Which one: {', '.join(STUDY_NAMES[:-1])} (papers' tables and figures), or {STUDY_NAMES[-1]}."
NEXT = """next, with images of your own: jepakit pretrain --data FOLDER --out runs/mine; --dry-run says what it would do
nearest images: jepakit embed {run} --data emoji --out emoji.npz && jepakit search emoji.npz --row 0 --html nearest.html
in Python: encoder = jepakit.load("{run}"); encoder.embed(["a.jpg"])"""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    method: MethodOption = None,
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
    _make_pictures([run.path])
    print(f"report: {write_report([run.path])}\n{NEXT.format(run=run.path)}")


@app.command()
@takes_table
def pretrain(
    data: Annotated[
        str | None,
        typer.Option(help="A folder, a pack, tar or Parquet files (patterns, addresses), npz, a usual set; emoji."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder, a new one.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A preset; 'jepakit recipes' lists them. Default, without --config: small, fitted to the images.",
            autocompletion=a_recipe,
        ),
    ] = None,
    method: MethodOption = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on exactly where this run stopped.")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Begin from these weights: a run, RUN@step, an export, released, timm's or transformers'; a hub id."),
    ] = None,
    *,
    told: dict[str, Any],
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings that it would have, and what it would take; write nothing.")
    ] = False,
    settings: SettingWords = None,
) -> None:
    """Pretrain an encoder on images without labels."""
    from jepakit.training.train import pretrain as train

    begin = {"config": config, "resume": resume, "init_from": init_from, "overwrite": overwrite}
    if dry_run:
        from jepakit.planning.dry_run import dry_run as look

        print(look(data, out, recipe, method, **begin, **told, set=settings))  # type: ignore[arg-type]
        return
    run = train(data, out, recipe, method, **begin, **told, set=settings)  # type: ignore[arg-type]
    if run.finished:
        print_once(f"encoder: {run.path / 'model'}\nnext: jepakit evaluate {run.path} --data SRC; jepakit report {run.path}")


@app.command()
@takes_table
def evaluate(
    words: EvaluateWords,
    data: Annotated[str | None, typer.Option(help="Labelled images; default: the run's own.")] = None,
    tasks: TasksOption = "rankme,knn,linear",
    steps: StepsOption = None,
    *,
    told: dict[str, Any],
    metric: MetricOption = None,
    aggregate: AggregateOption = None,
    shortcuts: ShortcutsOption = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: RUN/evaluation.")] = None,
) -> None:
    """Judge a frozen encoder beside honest baselines; writes RUN/evaluation/."""
    runs = [word for word in words if "=" not in word or Path(word).exists()]
    asked = {"metric": metric, "aggregate": aggregate, "shortcuts": shortcuts}
    settings = [word for word in words if word not in runs] + [f"{key}={value}" for key, value in asked.items() if value]
    told |= {"out": out, "set": settings, "data": data, "tasks": tasks}
    if steps is not None:
        _judge_steps(runs, steps, told)
    else:
        _judge(runs, told)


def _judge(runs: list[str], told: dict[str, Any]) -> None:
    from jepakit.evaluation.results import as_sentences, results_table
    from jepakit.evaluation.tasks import evaluate as judge
    from jepakit.evaluation.tasks import evaluate_both

    if len(runs) == 1:
        print_once(results_table(judge(runs[0], **told)))
    elif len(runs) == 2:
        results, found = evaluate_both(runs, **told)
        for run, each in zip(runs, results, strict=True):
            print_once(f"{run}\n{results_table(each)}\n")
        print_once(as_sentences(found, *runs))
    else:
        raise UserError(f"evaluate takes one run, or two to compare (with --steps any number), not {len(runs)}")


def _judge_steps(runs: list[str], steps: str, told: dict[str, Any]) -> None:
    from jepakit.evaluation.steps.evaluate_steps import evaluate_steps
    from jepakit.evaluation.steps.step_results import steps_table

    if not runs:
        raise UserError("evaluate --steps takes a run, or several, and got none")
    results, figure = evaluate_steps(runs, steps, **told)
    for run, each in zip(runs, results, strict=True):
        print_once(f"{run}\n{steps_table(each)}\n")
    shown = "" if told["out"] else f"; jepakit report {' '.join(runs)} shows it"  # which reads RUN/evaluation alone
    print_once(f"metric against images seen: {figure}{shown}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One run, or several side by side.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default: report.html in the first run.")] = None,
    data: Annotated[str | None, typer.Option(help="Images that the pictures are of; default: each run's own.")] = None,
    decoder: Annotated[
        str, typer.Option(help="What paints predictions: ridge, or diffusion besides, trained for it (a GPU, or hours).")
    ] = "ridge",
    figures: Annotated[Path | None, typer.Option(help="A folder for each figure too: PNG, SVG, and its data as CSV.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the page of a run in progress to this machine's browser.")] = False,
    host: Annotated[str, typer.Option(help="With --live: the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --live: default any that is free.")] = 0,
) -> None:
    """Draw a run, or several, as one HTML file; or serve a run as it goes."""
    if live:
        from jepakit.reporting.live import serve

        if out or figures or data:
            raise UserError("--live writes no file: leave out --out, --figures and --data")
        return serve(runs, host, port, lambda address, _: print(f"live at {address} (Ctrl-C ends it)", flush=True))
    from jepakit.reporting import report as write_report

    _make_pictures(runs, data, decoder)
    print(write_report(runs, out, figures))
    return None


def _make_pictures(runs: list[Path], data: str | None = None, decoder: str = "ridge") -> None:
    """What each run's encoder sees, for the report, which says what is missing; and so it comes whatever is."""
    from jepakit.pictures.run_pictures import make_pictures

    for run in runs:
        try:
            make_pictures(run, data, decoder=decoder)
        except UserError as error:
            log.warning("no pictures of %s: %s", run, error)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that holds runs, at any depth.")] = Path("runs"),
    sort: Annotated[
        str, typer.Option(help="A column, or any metric of a run, such as linear, knn, loss or effective_rank; the best first.")
    ] = "age",
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of each, for programs.")] = False,
) -> None:
    """All runs below a folder, a line each: state, steps, method, data, last probe, alarms, age."""
    from jepakit.reporting.run_table import runs as find
    from jepakit.reporting.run_table import runs_as_json, runs_table

    found = find(folder, sort)
    print(json.dumps(finite(runs_as_json(found)), indent=1) if as_json else runs_table(found, sort))


@app.command()
@takes_table
def study(
    name: Annotated[str, typer.Argument(help=WHICH_STUDY, autocompletion=among(STUDY_NAMES))],
    data: Annotated[
        str | None,
        typer.Option(help="Images: all that pretrain takes, or a folder with left/ to train on and probe/ to judge on."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: some steps. cpu: 800 updates, 3 minutes of a core a run. gpu: recipe small whole, hours. "
            "paper: prints command lines and forecasts, runs nothing."
        ),
    ] = "cpu",
    *,
    told: dict[str, Any],
    out: Annotated[Path | None, typer.Option(help="The study's folder; given again, it goes on. Default: runs/NAME.")] = None,
    levers: Annotated[str, typer.Option(help="Comma-separated: levers, or panels of a paper's study; all, or none.")] = "all",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each cell; default 3, of small-data and at smoke 1.")] = None,
    trials: Annotated[int, typer.Option(min=0, help="Runs of a search over the levers together (extra 'study').")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one a core, on CUDA one.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="As --scale smoke.", hidden=True)] = False,
    settings: SettingWords = None,
) -> None:
    """Many runs that differ in one thing each, and one table of what came of them: OUT/table.md."""
    from jepakit.study import study as turn

    wanted = None if levers == "all" else [] if levers == "none" else [lever.strip() for lever in levers.split(",")]
    place, given = out or Path("runs") / name, settings or []
    how = {"levers": wanted, "seeds": seeds, "trials": trials, "processes": processes}
    size = "smoke" if smoke else scale
    if turn(name, data, place, scale=size, set=given, **how, **told):  # type: ignore[arg-type]
        print(f"{(place.expanduser() / 'table.md').read_text(encoding='utf-8')}\ntable and figures: {place}")
