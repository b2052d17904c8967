"""Commands to look before a run is begun: recipes, config, plan, doctor."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jepakit.cli.options import MethodOption, SettingWords, a_recipe, app


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe: all its values.", autocompletion=a_recipe)] = None,
) -> None:
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
def config(
    recipe: Annotated[str | None, typer.Argument(help="A preset; default: small.", autocompletion=a_recipe)] = None,
    method: MethodOption = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of such files, for editors.")] = False,
    settings: SettingWords = None,
) -> None:
    """All settings as YAML with comments, for 'pretrain --config'; or its JSON Schema."""
    from jepakit.config import commented
    from jepakit.config.config import overrides
    from jepakit.config.recipes import settings as resolved
    from jepakit.config.recipes import sources

    if schema:
        print(json.dumps(commented.schema(), indent=1))
        return
    whole = resolved(recipe, method, overrides(settings))
    print(commented.commented_yaml(whole, sources(whole)), end="")


@app.command()
def doctor() -> None:
    """What is there to work with, and what to install: versions, devices, memory, extras. For reports of bugs."""
    from jepakit.planning.doctor import doctor as look

    print(look())


@app.command()
def plan(
    recipe: Annotated[
        str | None,
        typer.Option(help="A preset. Default: small, fitted to --data if given, as pretrain does.", autocompletion=a_recipe),
    ] = None,
    method: MethodOption = None,
    data: Annotated[str | None, typer.Option(help="Images: for hours, and for what no recipe says.")] = None,
    device: Annotated[str, typer.Option(help="H200, A100-80, L4 ...; here: this machine, timed for 20 seconds.")] = "here",
    devices: Annotated[int, typer.Option(min=1, help="How many of them, in all.")] = 1,
    nodes: Annotated[int | None, typer.Option(min=1, help="In so many nodes. Default: of at most 8 devices.")] = None,
    interconnect: Annotated[
        str | None, typer.Option(help="In a node: GB/s each device sends, or NVLink4, PCIe4 ... Default: the device's usual.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Between nodes: Gb/s each sends, or 8xIB400, IB200, 10GbE ... Default: the device's usual.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file, too.")] = None,
    settings: SettingWords = None,
) -> None:
    """Say what a pretraining will take: parameters, FLOPs, memory, time. Nothing is trained."""
    from jepakit.planning.plan import plan as foresee
    from jepakit.planning.table import plan_table

    links: dict[str, Any] = {"nodes": nodes, "interconnect": interconnect, "network": network}
    print(plan_table(foresee(recipe, method, data=data, device=device, devices=devices, **links, json=to, set=settings)))
