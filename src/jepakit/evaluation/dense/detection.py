"""An encoder as the backbone of a kept library's detector: a feature pyramid that torchvision's Mask R-CNN takes.

The detector, its losses and COCO's metric are the libraries', which are held to published numbers. Here is how patch tokens
become feature maps, as in BEiT and iBOT (evaluation/object_detection; the protocol that C-JEPA's COCO numbers fit): the outputs
of four blocks become maps of strides 4, 8, 16 and 32, then a feature pyramid (Lin et al. 2017).
B images, D encoder width.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepakit.core.errors import UserError, line_of
from jepakit.model.encoder import Encoder

STRIDES = (4, 8, 16, 32)  # pixels between neighbours of a map: what detectors' anchors and region poolers are laid out for


def pyramid_blocks(depth: int) -> tuple[int, int, int, int]:
    """Blocks, from 0, after which maps are taken: 1/3, 1/2, 2/3 and the whole of the depth.

    (3, 5, 7, 11) for 12 blocks as iBOT, (7, 11, 15, 23) for 24 as BEiT; a very shallow encoder gives some block twice.
    """
    a, b, c, d = (max(0, round(depth * share) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1))
    return a, b, c, d


class Pyramid(nn.Module):
    """Normalised floats (B, 3, H, W) of any size -> {"0": (B, out_channels, H/4, W/4), "1": H/8, "2": H/16, "3": H/32}.

    Images are first padded with zeros (the mean colour), right and below, to multiples of 32, as detectors do. The maps are
    `Encoder.layers`: outputs of blocks after the encoder's last norm (iBOT takes them before it), conditioned as at inference.
    They are upsampled by transposed 2x2 convolutions (layer norm and GELU between two) or downsampled by max-pooling. Then
    follow 1x1 convolutions, the sum from coarse to fine, and 3x3 convolutions.

    For a patch size that is no power of two (14), images are resized as if it were the nearest one (16). pool: add a fifth map
    "pool" of stride 64, for anchors alone, as torchvision's own backbones have. The encoder is not copied; its weights are
    trained too unless `frozen`.
    """

    def __init__(self, encoder: Encoder, out_channels: int = 256, *, frozen: bool = False, pool: bool = False) -> None:
        super().__init__()
        self.encoder, self.out_channels, self.pool = encoder.requires_grad_(not frozen), out_channels, pool
        self.blocks = pyramid_blocks(encoder.vit.config.depth)
        self.stride = 2 ** round(math.log2(encoder.vit.config.patch_size))
        self.rescale = nn.ModuleList(_rescale(encoder.width, math.log2(self.stride / stride)) for stride in STRIDES)
        self.lateral = nn.ModuleList(nn.Conv2d(encoder.width, out_channels, 1) for _ in STRIDES)
        self.smooth = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in STRIDES)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        tokens = self._tokens(images)
        laterals = zip(tokens, self.rescale, self.lateral, strict=True)
        maps = [lateral(rescale(x)) for x, rescale, lateral in laterals]
        for fine in (2, 1, 0):
            maps[fine] = maps[fine] + F.interpolate(maps[fine + 1], maps[fine].shape[2:], mode="nearest")
        out = OrderedDict((str(i), smooth(x)) for i, (x, smooth) in enumerate(zip(maps, self.smooth, strict=True)))
        if self.pool:
            out["pool"] = F.max_pool2d(out["3"], 1, 2)
        return out

    def _tokens(self, images: Tensor) -> list[Tensor]:
        """(B, D, rows, columns) of each of the four blocks."""
        side = max(self.stride, STRIDES[-1])
        images = F.pad(images, (0, -images.shape[3] % side, 0, -images.shape[2] % side))
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        patch = self.encoder.vit.config.patch_size
        if patch != self.stride:
            size = (grid[0] * patch, grid[1] * patch)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        first = self.blocks[0]
        layers = self.encoder.layers(images, last=self.blocks[-1] - first + 1)
        return [layers[block - first].transpose(1, 2).unflatten(2, grid) for block in self.blocks]


def mask_rcnn(encoder: Encoder, classes: int, out_channels: int = 256, *, frozen: bool = False, **settings: Any) -> nn.Module:
    """torchvision's Mask R-CNN with `Pyramid(encoder)` as its backbone, for images of floats in [0, 1].

    classes: their number, the background included. Anchors, losses and image sizes are torchvision's defaults; `settings` go to
    its `MaskRCNN` (min_size, box_score_thresh, ...). The usual training is AdamW, lr 1e-4, weight decay 0.05, 12 epochs; C-JEPA's
    numbers fit Cascade Mask R-CNN, which torchvision does not have. Raises UserError where torchvision is not installed or was
    built for another torch.
    """
    try:
        from torchvision.models.detection import MaskRCNN  # type: ignore[import-not-found, import-untyped]
    except Exception as error:  # built for another torch, it fails with whatever its operators provoke
        raise UserError(
            f"Mask R-CNN is torchvision's, which does not load beside torch {torch.__version__} ({line_of(error)}): "
            "install the torchvision release built for it"
        ) from None
    backbone = Pyramid(encoder, out_channels, frozen=frozen, pool=True)
    images = encoder.images
    size = {"size_divisible": max(backbone.stride, STRIDES[-1])}
    colours = {"image_mean": list(images.mean), "image_std": list(images.std)}
    return MaskRCNN(backbone, classes, **{**colours, **size, **settings})  # type: ignore[no-any-return]


def _rescale(width: int, doublings: float) -> nn.Module:
    """Maps 2^doublings times as fine: (B, D, h, w) -> (B, D, h * 2^doublings, ...)."""
    if doublings < 0:
        return nn.MaxPool2d(2 ** round(-doublings))
    layers: list[nn.Module] = []
    for _ in range(round(doublings)):
        layers += [_Norm(width), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(width, width, 2, 2))
    return nn.Sequential(*layers)


class _Norm(nn.LayerNorm):
    """Over channels, at each place: batch norm, iBOT's, needs larger batches than a detector has."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
