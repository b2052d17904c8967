"""MAE's recipe for fine-tuning (arXiv 2111.06377, table 9): its settings by size of the encoder, learning rates, layer decay."""

import math
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from jepakit.core.settings import Settings
from jepakit.model.images import Symmetry


class FineTuning(Settings):
    """The recipe; the defaults are MAE's for ViT-B.

    I-JEPA's on 1 % of ImageNet (arXiv 2301.08243, appendix A.2, ViT-L/16; ViT-H/14 has weight_decay=0.4), without mixup,
    cutmix and drop path, is typed as: finetune.epochs=50 finetune.batch_size=512 finetune.base_lr=1.5e-5
    finetune.layer_decay=0.75 finetune.weight_decay=0.05 finetune.drop_path=0 finetune.mixup=0 finetune.cutmix=0 (its rate 3e-5
    read as that of 512 images; its warm-up is not told, so MAE's stays).
    """

    epochs: int = Field(100, ge=1, description="passes over the training samples")
    batch_size: int = Field(1024, ge=1, description="images a step, about; all of them where there are fewer")
    base_lr: float = Field(5e-4, gt=0, description="learning rate of 256 images: the rate is base_lr * images a step / 256")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end")
    warmup_epochs: float = Field(5, ge=0, description="passes over which the learning rate rises")
    layer_decay: float = Field(0.65, gt=0, le=1, description="each block's rate over the next one's")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's, of matrices")
    drop_path: float = Field(0.1, ge=0, lt=1, description="chance that the last block's branches are left out")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the label spread over all classes")
    mixup: float = Field(0.8, ge=0, description="of the Beta law that lambda is drawn from; 0: none")
    cutmix: float = Field(1.0, ge=0, description="the same")
    switch: float = Field(0.5, ge=0, le=1, description="how often cutmix where both are on")
    head_std: float = Field(2e-5, ge=0, description="deviation of the head's first weights: as good as none (MAE's code)")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of a training crop over the image's")
    symmetry: Symmetry = Field("mirror", description="how training images are turned: mirror, d4 or none, as images.symmetry")

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "FineTuning":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} of {self.epochs} epochs leave none to learn in")
        return self


# MAE's by size of the encoder.
MAE = {
    "base": FineTuning(),
    "large": FineTuning(epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.2),
    "huge": FineTuning(epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.3),
}


def recipe_for(width: int, depth: int) -> FineTuning:
    """MAE's recipe for an encoder of a shape: the base's up to ViT-B's width, then the large's, then the huge's.

    By width alone, in which ViT-S, B, L, H and g differ; depth does not tell them apart any better.
    """
    return MAE["base" if width <= 768 else "large" if width <= 1024 else "huge"]


def layer_scales(depth: int, decay: float) -> list[float]:
    """Factors (L + 2) of the learning rate: patch embedding (0), blocks (1 to L), head (L + 1), which has 1 (BEiT, MAE)."""
    return [decay ** (depth + 1 - layer) for layer in range(depth + 2)]


def parameter_groups(model: nn.Module, depth: int, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: "params", "scale" of the rate, "weight_decay". Biases and other vectors do not decay.

    A parameter's layer is told by its name: patch_embed, blocks.i, and all else is the head's.
    """
    scales = layer_scales(depth, decay)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        layer = depth + 1
        if "blocks" in words:
            layer = int(words[words.index("blocks") + 1]) + 1
        elif "patch_embed" in words:
            layer = 0
        groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": found, "scale": scales[layer], "weight_decay": weight_decay * decays}
        for (layer, decays), found in sorted(groups.items(), key=lambda item: item[0])
    ]


def steps_an_epoch(n: int, settings: FineTuning) -> int:
    """Steps of a pass over n images, in batches of nearly equal size: as many as bring that size nearest to batch_size."""
    return max(1, round(n / settings.batch_size))


def peak_rate(n: int, settings: FineTuning) -> float:
    """The highest learning rate on n images: base_lr times the true images a step over 256 (arXiv 1706.02677)."""
    return settings.base_lr * n / steps_an_epoch(n, settings) / 256


def rate(epoch: float, top: float, settings: FineTuning) -> float:
    """The learning rate after a number of epochs, not only whole ones: linear from 0 to `top`, then half a cosine (MAE)."""
    s = settings
    if epoch < s.warmup_epochs:
        return top * epoch / s.warmup_epochs
    gone = (epoch - s.warmup_epochs) / (s.epochs - s.warmup_epochs)
    return s.min_lr + (top - s.min_lr) * 0.5 * (1 + math.cos(math.pi * gone))


def drop_rates(depth: int, most: float) -> list[float]:
    """Drop path's rate of each block, from 0 in the first to `most` in the last (arXiv 1603.09382)."""
    return [most * i / max(1, depth - 1) for i in range(depth)]
