"""Exports that are the computation itself: an ONNX graph, a torch.export program; for any number of images of one size.

Each writer gives the function that runs what was written: images (B, C, H, W) as they go in -> patch tokens (B, T, D).
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from jepakit.artifacts.export.dense import DenseFeatures
from jepakit.artifacts.export.exported_encoder import ExportChoice, dense_of
from jepakit.artifacts.export.folders import Runs
from jepakit.core.errors import UserError, line_of
from jepakit.model.encoder import Encoder

OPSET = 18  # of ONNX: what torch's exporter writes, without a conversion
ONE_FILE = 1 << 30  # bytes of weights; above, they lie in a file beside the graph, as a protobuf ends at 2 GiB
ALONG = "jepakit.json"  # what goes along in a file of either kind
OUTPUTS = ("patch_tokens", "embedding")


def features_of(encoder: Encoder, choice: ExportChoice) -> DenseFeatures:
    """What is traced: two outputs, float32. Raises UserError where uint8 is asked for and the encoder was trained on others."""
    images = encoder.images
    if choice.preprocess and (images.depth not in (None, "uint8") or images.white is not None):
        raise UserError(f"--preprocess takes 8-bit images, and this encoder was trained on {images.depth}: leave it out")
    normalisation = (images.mean, images.std) if choice.preprocess else None
    return DenseFeatures(dense_of(encoder).to(choice.dtype), normalisation).eval()


def about(encoder: Encoder, choice: ExportChoice) -> str:
    """What a graph alone does not say of the images that it takes, in JSON."""
    return json.dumps({"which": encoder.which, "normalises": choice.preprocess, "images": encoder.images.model_dump(mode="json")})


def _example(encoder: Encoder, choice: ExportChoice) -> Tensor:
    """Two images, as one would be taken for the only number there is."""
    shape = 2, encoder.vit.channels, *encoder.images.height_width
    return torch.zeros(shape, dtype=torch.uint8 if choice.preprocess else torch.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's account of its passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_torch(encoder: Encoder, choice: ExportChoice, folder: Path) -> list[Runs]:
    """model.pt2: torch.export.load(PATH).module()(images) -> patch tokens, embedding."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    program = torch.export.export(
        features_of(encoder, choice), (_example(encoder, choice),), dynamic_shapes={"images": {0: batch}}
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    content = io.BytesIO()  # torch's own writing to a file ends the process where the disk is full
    torch.export.save(program, content, extra_files={ALONG: about(encoder, choice)})
    (folder / "model.pt2").write_bytes(content.getbuffer())
    run = torch.export.load(folder / "model.pt2").module()
    return [("torch.export", lambda images: run(images)[0])]


def write_onnx(encoder: Encoder, choice: ExportChoice, folder: Path) -> list[Runs]:
    """model.onnx, images -> patch_tokens, embedding. Raises UserError where it cannot be made or run."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'jepakit[onnx]'")
    if choice.dtype is torch.bfloat16:
        raise UserError("--format onnx: onnxruntime has no bf16 products on a CPU, so it is not checked: take fp16 or fp32")
    model = features_of(encoder, choice)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with warnings.catch_warnings(action="ignore"), _quiet():
        program = torch.onnx.export(
            model,
            (_example(encoder, choice),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of this machine
    program.model.metadata_props[ALONG] = about(encoder, choice)
    program.save(str(folder / "model.onnx"), external_data=size > ONE_FILE)
    return [("onnxruntime", _onnxruntime(folder / "model.onnx"))]


def _onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    """What runs a graph. Raises UserError for one that onnxruntime does not take."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UserError(f"not exported: onnxruntime does not take the graph: {line_of(error)}") from None
    return lambda images: torch.from_numpy(session.run(["patch_tokens"], {"images": images.numpy()})[0])
