"""Exports beside timm, in an environment of its own (make parity): the same function, by the lines that README.md gives."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jepakit
from exported import made_run, photos
from jepakit.artifacts.export.exported_encoder import at_size
from jepakit.artifacts.export.verify import real_images
from jepakit.artifacts.run import Run

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is in the parity environment alone", allow_module_level=True)
try:
    import torchvision  # noqa: F401
except RuntimeError:  # built for another torch: it then imports once two operators are declared, and timm uses neither
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
timm: Any = importlib.import_module("timm")

SETTINGS = {
    "ijepa": ("ijepa",),
    "learnt": ("ijepa", "encoder.learned_positions=true"),
    "unconditioned": ("ec_ijepa", "conditioning.inference=false"),
    "gray": ("ijepa", "images.channels=1"),
    "ratio": ("ijepa", "encoder.mlp_ratio=2.7"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    return {name: made_run(data, root / name, *settings) for name, settings in SETTINGS.items()}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [(16, 16), (24, 32)], ids=str)
def test_timm_runs_the_same_by_the_lines_of_the_readme(
    name: str, size: tuple[int, int], runs: dict[str, Run], data: Path, tmp_path: Path
) -> None:
    made = jepakit.export(runs[name], "timm", tmp_path / "out", images_size=size)
    assert "timm" in {check.by for check in made.checks} and made.largest < 1e-5
    encoder = at_size(jepakit.load(runs[name]), size)
    normalised = [torch.randn(n, encoder.vit.channels, *size) for n in (1, 3)] + [
        encoder.normalise(real_images(encoder, str(data)))
    ]
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    assert code
    first, second = code[1].replace("FOLDER", str(tmp_path / "out")).split("# the same by the state dict alone")
    for images in normalised:
        known: dict[str, Any] = {"images": images}
        exec(first, known)
        torch.testing.assert_close(known["vectors"], encoder.embed(images), rtol=0, atol=1e-5)
        exec(second, known)  # loads strictly
        model = known["model"].eval()
        with torch.no_grad():
            torch.testing.assert_close(model.forward_features(images), encoder(images), rtol=0, atol=1e-5)
            torch.testing.assert_close(model(images), encoder.embed(images), rtol=0, atol=1e-5)


def test_timms_own_configuration_is_that_of_the_run(runs: dict[str, Run], tmp_path: Path) -> None:
    jepakit.export(runs["ijepa"], "timm", tmp_path / "out")
    encoder = jepakit.load(runs["ijepa"])
    found = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True))
    assert found["input_size"] == (3, 16, 16) and found["crop_pct"] == 1 and found["interpolation"] == "bilinear"
    assert tuple(found["mean"]) == encoder.images.mean and tuple(found["std"]) == encoder.images.std
