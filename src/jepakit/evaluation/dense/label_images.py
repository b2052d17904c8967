"""Images whose values are labels, and lists that name these values.

K classes, H, W rows and columns of pixels.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jepakit.core.errors import UserError, line_of, plain
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.opening import SECONDS
from jepakit.data.threads import time_limited
from jepakit.evaluation.dense.pairs import IGNORED, PixelClasses
from jepakit.model.images import MOST_PIXELS

VALUES = 1 << 16  # of a label image of 16 bits
_KINDS = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}  # none of them loses a value
LABEL_SUFFIXES = tuple(_KINDS)
_MODES = ("1", "L", "P", "I;16")
_NUMBERED = re.compile(r"(\d+)\s*[:;,\t ]\s*(\S.*)")
_UNLISTED = -2


@dataclass(frozen=True)
class LabelValues:
    """Which values of label images are which class.

    zero_is_other: 0 is no class, and 1 is the first, as in ADE20K. ignore: values that are no class; None: the largest of the
    file's depth (255, 65535). listed: the value of each class (K,), where a list names them; no others may occur then.
    """

    zero_is_other: bool = True
    ignore: tuple[int, ...] | None = None
    listed: tuple[int, ...] = ()

    def classes(self, values: NDArray[np.uint8 | np.uint16], where: str) -> PixelClasses:
        """The class of each pixel (H, W), from 0, IGNORED for none. Raises UserError for a value that the list has not."""
        ignored = {*(self.ignore if self.ignore is not None else {np.iinfo(values.dtype).max} - {*self.listed})}
        if not self.listed:
            classes = values.astype(np.int32) - int(self.zero_is_other)  # 0 becomes IGNORED
        else:
            table = np.full(VALUES, _UNLISTED, np.int32)
            table[list(self.listed)] = np.arange(len(self.listed), dtype=np.int32)
            classes = table[values]
            ignored |= {0} if self.zero_is_other and 0 not in self.listed else set()
        classes[np.isin(values, list(ignored))] = IGNORED
        if (classes == _UNLISTED).any():
            value = int(values[classes == _UNLISTED][0])
            given = "" if self.ignore is None else f"{','.join(map(str, self.ignore))},"
            mend = f"name it there, or give segmentation.ignore=[{given}{value}]"
            raise UserError(f"{where} has the value {value}, which the list of classes has not: {mend}")
        return classes


def read_labels(path: Path, values: LabelValues) -> PixelClasses:
    """The class of each pixel of a label image, (H, W). Raises UserError."""
    return values.classes(label_image(path), str(path))


def label_image(path: Path) -> NDArray[np.uint8 | np.uint16]:
    """The values (H, W) of a PNG, BMP, GIF or TIFF, gray or of a palette, of 8 or 16 bits. Raises UserError for another."""
    try:
        return time_limited(SECONDS, lambda: _labels_of(path))
    except BadImageError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _labels_of(path: Path) -> NDArray[np.uint8 | np.uint16]:
    kind = _KINDS.get(path.suffix.lower(), "PNG")
    try:
        with Image.open(path, formats=(kind,)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"{path}: more than {MOST_PIXELS:,} pixels: taken for a decompression bomb")
            if image.mode not in (*_MODES, "RGB", "RGBA"):
                raise UserError(f"{path}: labels must be a {kind} with one channel, this one is {image.mode}")
            labels = np.array(image)
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a {kind} of labels: {line_of(error)}") from None
    if labels.ndim > 2:
        if (labels[..., :3] != labels[..., :1]).any():
            raise UserError(f"{path}: labels must be a {kind} with one channel, this one has the colours of {mode}")
        labels = labels[..., 0]
    return labels.astype(np.uint16 if labels.dtype.itemsize > 1 else np.uint8)


def read_class_list(path: Path, zero_is_other: bool | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Values and names of the classes, in the order of a list's lines.

    Lines are 'VALUE NAME' (a blank, tab, colon, semicolon or comma between; of several tabs the name is the last cell), after
    a heading or none; or names alone, from 0, or from 1 if zero_is_other. Raises UserError where these are mixed, where it is
    not said which of the two, and for values that stand twice or are none of a label image.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list of classes {path}: {line_of(error)}") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 2 and not numbered[0] and all(numbered[1:]):
        numbered = numbered[1:]
    if not lines or (any(numbered) and not all(numbered)):
        said = "is empty" if not lines else "has lines with a number and lines without"
        raise UserError(f"list of classes {path} {said}: write 'VALUE NAME' in each line, or names alone")
    if all(numbered):
        values = tuple(int(match[1]) for match in numbered if match)
        names = tuple(match[2].rpartition("\t")[2].strip() for match in numbered if match)
    elif zero_is_other is None:
        raise UserError(
            f"list of classes {path} has names without values: is '{plain(lines[0])}' the class of 0 or of 1? Say "
            "segmentation.zero_is_other=false (0) or =true (1), or write 'VALUE NAME' in each line"
        )
    else:
        values, names = tuple(range(int(zero_is_other), len(lines) + int(zero_is_other))), tuple(lines)
    if twice := next((value for place, value in enumerate(values) if value in values[:place] or value >= VALUES), None):
        raise UserError(f"list of classes {path}: the value {twice} stands there twice, or is above {VALUES - 1}")
    return values, names
