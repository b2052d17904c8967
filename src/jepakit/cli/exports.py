"""Commands that hand an encoder on to other programs: export, push."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from jepakit.cli.options import app
from jepakit.core.errors import UserError

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, RUN@step, or any other encoder that jepakit.load takes.")]
PrecisionOption = Annotated[str, typer.Option(help="fp32, fp16 or bf16: of the weights, and of a graph's arithmetic.")]
WhichOption = Annotated[str | None, typer.Option(help="target_encoder or encoder. Default: the one that the run is judged by.")]
CustomOption = Annotated[
    bool, typer.Option("--custom-code", help="hf: a model with code of its own, where transformers has none (EC-IJEPA).")
]


@app.command()
def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="hf (transformers), timm, onnx, or torch (torch.export).")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    precision: PrecisionOption = "fp32",
    images_size: Annotated[str | None, typer.Option(metavar="H[,W]", help="Pixels of images. Default: as in training.")] = None,
    which: WhichOption = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where a file of weights does not say.")] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="onnx, torch: uint8 images go in, scaled and normalised inside.")
    ] = False,
    custom_code: CustomOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
) -> None:
    """Write a run's encoder for transformers, timm, onnxruntime or torch, checked against the run before it is done."""
    from jepakit.artifacts.export.exporting import export as write

    made = write(
        run,
        format,
        out,
        precision=precision,
        images_size=_size(images_size),
        which=which,
        heads=heads,
        preprocess=preprocess,
        custom_code=custom_code,
        overwrite=overwrite,
    )
    print(f"exported: {made.path} (largest difference {made.largest:.1e})\nhow to use it: {quote(str(made.path / 'README.md'))}")


@app.command()
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name on the Hugging Face Hub.")],
    precision: PrecisionOption = "fp32",
    which: WhichOption = None,
    custom_code: CustomOption = False,
    public: Annotated[bool, typer.Option("--public", help="For all to see. Default: private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="A new commit of a model that is there.")] = False,
) -> None:
    """Upload a run's encoder, or an hf export that is there, to the Hugging Face Hub (extra 'hub')."""
    from jepakit.artifacts.export.pushing import push as upload

    address = upload(run, repo, precision=precision, which=which, custom_code=custom_code, public=public, overwrite=overwrite)
    print(f"pushed: {address}")


def _size(words: str | None) -> tuple[int, int] | None:
    """H or H,W in pixels. Raises UserError."""
    if words is None:
        return None
    parts = words.replace("x", ",").split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--images-size {words}: give pixels, a side or height,width, as in 224 or 224,448")
    return int(parts[0]), int(parts[-1])
