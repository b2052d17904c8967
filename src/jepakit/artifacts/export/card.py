"""The README.md of an export: what it is, how it is loaded, what it was trained on, how good it is, how it was checked."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from jepakit.artifacts.export.exported_encoder import ExportChoice
from jepakit.artifacts.export.folders import timm_call
from jepakit.artifacts.export.graphs import OPSET
from jepakit.artifacts.processor import processor
from jepakit.config.config import Config
from jepakit.core.counted import FIGURE_OF_TASK, METRIC_NAMES, counted_figure
from jepakit.core.errors import plain
from jepakit.core.files import load_json
from jepakit.data.formats.remote import is_remote, shown
from jepakit.model.encoder import Encoder
from jepakit.model.method import encoder_label

PAPERS = {
    "ijepa": "[I-JEPA](https://arxiv.org/abs/2301.08243)",
    "ec_ijepa": "[EC-IJEPA](https://arxiv.org/abs/2410.10773)",
    "c_jepa": "[C-JEPA](https://arxiv.org/abs/2410.19560)",
    "ec_c_jepa": "[EC-IJEPA](https://arxiv.org/abs/2410.10773) with [C-JEPA](https://arxiv.org/abs/2410.19560)'s regulariser",
    "mae_pixels": "[I-JEPA](https://arxiv.org/abs/2301.08243), table 7: pixels as targets",
}
_HF = """from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModel.from_pretrained("FOLDER"{trust}).eval()
vectors = model(**processor(images, return_tensors="pt")).last_hidden_state.mean(1)  # (B, D)"""
_TIMM = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
vectors = model(images)  # normalised floats (B, C, H, W) -> (B, D): the mean over patch tokens

# the same by the state dict alone
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

model = {call}
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""
_TORCH = """import torch

model = torch.export.load("FOLDER/model.pt2").module()
patch_tokens, vectors = model(images)  # {takes} -> (B, T, D), (B, D)"""
_ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
patch_tokens, vectors = session.run(None, {{"images": images}})  # {takes} -> (B, T, D), (B, D)"""


def card(encoder: Encoder, choice: ExportChoice, config: Config | None, results: Path | None, notes: Sequence[str]) -> str:
    """The text of README.md; config and results (a folder of JSON files) are the run's, None where there is none."""
    parts = [
        _front(choice),
        f"# {_title(config, encoder)}",
        _what(encoder, choice, config),
        f"## How to use it\n\n```python\n{_use(encoder, choice)}\n```\n\n{_images(encoder, choice)}",
        f"## What it was trained on\n\n{_training(config)}",
        f"## How good it is\n\n{_table(results, encoder, config)}",
        "## How the export was checked\n\n" + "\n".join(f"- {note}" for note in notes),
        "## Licence\n\nNot stated: `license` at the top of this file is for whoever publishes it to fill in.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(choice: ExportChoice) -> str:
    library = {"hf": "transformers", "timm": "timm", "onnx": "onnx", "torch": "pytorch"}[choice.format]
    lines = ["license: unknown", f"library_name: {library}", "pipeline_tag: image-feature-extraction"]
    return "\n".join(["---", *lines, "tags:", "- self-supervised", "- i-jepa", "- jepakit", "---"])


def _title(config: Config | None, encoder: Encoder) -> str:
    kind = (config.method if config else None) or "image encoder"
    shape = encoder.vit.config
    return f"{kind}: ViT of width {shape.width}, depth {shape.depth}, patches of {shape.patch_size}"


def _what(encoder: Encoder, choice: ExportChoice, config: Config | None) -> str:
    paper = PAPERS.get(config.method or "", "") if config else ""
    height, width = encoder.images.height_width
    count = sum(p.numel() for p in encoder.vit.parameters())
    said = [
        f"An image encoder pretrained without labels{f' by {paper}' if paper else ''}: its {encoder_label(encoder.which)}, "
        f"{count:,} parameters, for images of {height}x{width} pixels in {encoder.vit.channels} channels, "
        f"as {choice.format} in {str(choice.dtype).removeprefix('torch.')}.",
        "It has no class token; a vector of an image is the mean over its patch tokens.",
    ]
    if encoder.conditioning is not None:
        said.append("The conditioning tokens that it was trained with (EC-IJEPA, section 3) are held as constants.")
    return " ".join(said)


def _use(encoder: Encoder, choice: ExportChoice) -> str:
    takes = "uint8 (B, C, H, W)" if choice.preprocess else "normalised float32 (B, C, H, W)"
    if choice.format == "hf":
        return _HF.format(trust=", trust_remote_code=True" if encoder.conditioning is not None else "")
    if choice.format == "timm":
        return _TIMM.format(call=timm_call(encoder))
    return (_TORCH if choice.format == "torch" else _ONNX).format(takes=takes)


def _images(encoder: Encoder, choice: ExportChoice) -> str:
    images = encoder.images
    height, width = images.height_width
    cut = f"the largest centre crop of the aspect {width}:{height}, resized to it (bilinear, with antialias)"
    white = 255 if images.depth in (None, "uint8") and images.white is None else images.white or "white (65535, or 1 for floats)"
    scaled = f"divided by {white}, less {list(images.mean)}, over {list(images.std)} ({images.depth or 'uint8'} images)"
    inside = " The model scales and normalises them itself." if choice.preprocess else ""
    opset = f" ONNX opset {OPSET}; any number of images." if choice.format == "onnx" else ""
    why = processor(images).get("why_not_resized") if choice.format == "hf" else None
    uncut = f" The processor above does not do all of that: {why}." if why else ""
    return f"Images were shown as: {cut}; values {scaled}.{inside}{opset}{uncut}"


def _training(config: Config | None) -> str:
    if config is None:
        return "Not known: these weights are not of a run of jepakit."
    data = config.data or "not said"
    name = shown(data) if is_remote(data) else PurePath(data).name  # where it lies on this machine is nobody's business
    optim = config.optim
    length = f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs:g} epochs"
    lines = [
        f"- images: {plain(name)}",
        f"- method: {config.method or 'one of its own'}; recipe: {config.recipe or 'none'}; seed {config.seed}",
        f"- length: {length} of batches of {optim.batch_size}, learning rate {optim.lr:g}",
        f"- begun from: {plain(PurePath(config.init.path).name) if config.init.path else 'random weights'}",
    ]
    return "\n".join(lines)


def _table(results: Path | None, encoder: Encoder, config: Config | None) -> str:
    found = {path.stem: _rows(path) for path in sorted(results.glob("*.json"))} if results and results.is_dir() else {}
    found = {task: rows for task, rows in found.items() if rows}
    if not found:
        return "Not evaluated: `jepakit evaluate RUN` before `jepakit export` fills this in."
    names = list(dict.fromkeys(row["name"] for rows in found.values() for row in rows))
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name in names:
        cells = (_cell(task, next((row for row in rows if row["name"] == name), {})) for task, rows in found.items())
        bold = "**" if name == encoder_label(encoder.which) else ""
        lines.append(f"| {bold}{name}{bold} | " + " | ".join(cells) + " |")
    about = "This export is the row in bold. Accuracies in per cent with 95 % intervals, on the images that RUN was evaluated on."
    if config is not None and config.images.height_width != encoder.images.height_width:
        height, width = config.images.height_width
        about += f" They were measured at {height}x{width} pixels; at the size of this export they may be others."
    return "\n".join([*lines, "", about])


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = load_json(path).get("rows", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]


def _cell(task: str, row: Mapping[str, Any]) -> str:
    figure = counted_figure(task, row)
    if not math.isfinite(figure.value):
        return ""
    span = f" ({figure.told(figure.low)}-{figure.told(figure.high)})" if math.isfinite(figure.low) else ""
    named = f" {METRIC_NAMES[figure.metric]}" if figure.metric in METRIC_NAMES and task not in FIGURE_OF_TASK else ""
    return f"{figure.told(figure.value)}{named}{span}"
