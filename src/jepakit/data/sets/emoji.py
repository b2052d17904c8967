"""The embedded emoji set: real colour images to try a method on without a download (see emoji32/LICENSES.md)."""

import io
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

from jepakit.core.rng import uniform
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.sources import Labels, Source

SIDE = 32


@dataclass(frozen=True)
class Emoji:
    """Emoji in four drawing styles, 32 px, on white. The arrays are shared by all callers: do not write to them."""

    images: np.ndarray  # (n, 32, 32, 3) uint8
    group: np.ndarray  # (n,) int64, index into groups
    identity: np.ndarray  # (n,) int64, index into identities
    style: np.ndarray  # (n,) int64, index into styles
    groups: tuple[str, ...]
    identities: tuple[str, ...]
    styles: tuple[str, ...]


@cache
def emoji() -> Emoji:
    """The whole set, read from package data once per process."""
    folder = resources.files("jepakit.data.sets") / "emoji32"
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    identity = np.array(labels["identity"], np.int64)
    with Image.open(io.BytesIO((folder / "emoji32.webp").read_bytes())) as file:
        sheet = np.asarray(file.convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return Emoji(
        images=tiles[: len(identity)],  # the sheet's last row may be part empty
        group=np.array(list(labels["identities"].values()), np.int64)[identity],
        identity=identity,
        style=np.repeat(np.arange(len(labels["styles"]), dtype=np.int64), list(labels["styles"].values())),
        groups=tuple(labels["groups"]),
        identities=tuple(labels["identities"]),
        styles=tuple(labels["styles"]),
    )


def held_out_identities(identity: np.ndarray, share: float = 0.2) -> np.ndarray:
    """(n,) bool, True = test, for (n,) identity indices: all images of an identity fall on the same side.

    An identity is held out when the first SplitMix64 number of its index, uniform in [0, 1), is below share.
    """
    return uniform(identity.astype(np.uint64), 1)[:, 0] < share


class EmojiSource(Source):
    """The embedded set, labelled by emoji group; test identities are on no other side."""

    name = "emoji"

    def __init__(self) -> None:
        self._set: Emoji = emoji()
        identity = self._set.identity
        self.labels: Labels | None = Labels("group", self._set.groups, self._set.group, held_out_identities(identity), identity)

    def __len__(self) -> int:
        return len(self._set.images)

    def raw(self, index: int) -> Pixels:
        pixels: Pixels = self._set.images[index]
        return pixels

    def title(self, index: int) -> str:
        return self._set.identities[int(self._set.identity[index])]
