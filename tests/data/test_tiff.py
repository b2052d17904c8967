"""Every kind of a TIFF is read rightly, or refused as what it is: written here by hand, so that no reader is its own judge."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import BadImageError

Array = NDArray[Any]
UNSIGNED, SIGNED, REAL = 1, 2, 3
WORDS = {3: "H", 4: "I"}


def packed(rows: Array, bits: int, order: str, kind: int) -> bytes:
    """Rows (H, n) of values, each row from a byte on."""
    if bits in (8, 16, 32):
        return rows.astype(f"{order}{' uif'[kind]}{bits // 8}").tobytes()
    ones = rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(ones.astype(np.uint8).reshape(len(rows), -1), axis=1).tobytes()


def written(
    values: Array,
    bits: int,
    photometric: int | None,
    order: str = "<",
    kind: int = UNSIGNED,
    planes: int = 1,
    extra: tuple[int, ...] = (),
    compression: int = 1,
    fill: int = 1,
) -> bytes:
    """A TIFF of values (H, W, samples)."""
    height, width, samples = values.shape
    strips = [packed(plane, bits, order, kind) for plane in (np.split(values, samples, 2) if planes == 2 else [values])
              for plane in [plane.reshape(height, -1)]]  # fmt: skip
    if fill == 2:  # bits from right to left
        strips = [np.packbits(np.unpackbits(np.frombuffer(s, np.uint8), bitorder="little")).tobytes() for s in strips]
    strips = [zlib.compress(strip) if compression == 8 else strip for strip in strips]
    tags: dict[int, tuple[int, list[int]]] = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples)}
    tags |= {259: (3, [compression]), 266: (3, [fill]), 273: (4, [0] * len(strips)), 277: (3, [samples]), 278: (4, [height])}
    tags |= {279: (4, [*map(len, strips)]), 284: (3, [planes]), 339: (3, [kind] * samples)}
    tags |= {262: (3, [photometric])} if photometric is not None else {}
    tags |= {338: (3, [*extra])} if extra else {}
    for _ in range(2):  # once for the places of the strips
        body, entries, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
        for tag, (word, numbers) in sorted(tags.items()):
            raw = struct.pack(f"{order}{len(numbers)}{WORDS[word]}", *numbers)
            entries += struct.pack(f"{order}HHI", tag, word, len(numbers))
            entries += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", start + len(body))
            body += raw if len(raw) > 4 else b""
        tags[273] = (4, [start + len(body) + sum(map(len, strips[:i])) for i in range(len(strips))])
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + body + b"".join(strips)


def kinds() -> Iterator[tuple[str, int, int, int, int, int, tuple[int, ...], int]]:
    """Order, photometric, bits, sample format, planes, samples, extra ones, compression."""
    bands = ((1, ()), (2, ()), (2, (0,)), (2, (1,)), (2, (2,)), (3, ()), (4, ()), (4, (0,)), (4, (1,)), (4, (2,)), (5, (1, 2)))
    for order, photometric, bits, kind, planes, (samples, extra), compression in itertools.product(
        "<>", (0, 1, 2, 3, 5, 6, 8), (1, 2, 4, 6, 8, 12, 16, 32), (UNSIGNED, SIGNED, REAL), (1, 2), bands, (1, 8)
    ):
        common = kind == UNSIGNED or bits in ((8, 16, 32) if kind == SIGNED else (16, 32))
        if common and photometric != 3 and (photometric != 6 or samples > 1) and (compression == 1 or bits in (8, 16)):
            yield order, photometric, bits, kind, planes, samples, extra, compression


def expected(values: Array, photometric: int, bits: int, kind: int, extra: tuple[int, ...]) -> Array:
    """Gray or colour, the least black."""
    colours = values.shape[2] - len(extra)
    if photometric == 0 and kind == UNSIGNED:
        values = np.concatenate([(1 << bits) - 1 - values[..., :colours], values[..., colours:]], 2)
    if bits < 8 and kind == UNSIGNED:
        values = values * 255 // ((1 << bits) - 1)
    return values


def test_every_kind_is_read_rightly_or_refused_as_what_it_is() -> None:
    rng, read, refused = np.random.default_rng(0), set(), dict[str, int]()
    for order, photometric, bits, kind, planes, samples, extra, compression in kinds():
        values = rng.integers(0, 1 << min(bits, 10 if kind == REAL else 31), (5, 11, samples))
        data = written(values, bits, photometric, order, kind, planes, extra, compression)
        what = (order, photometric, bits, kind, planes, samples, extra, compression)
        try:
            got = decode(data)
        except BadImageError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            can = bits in (8, 16) or (bits == 1 == samples and (photometric, planes) != (0, 2))
            assert not (photometric < 2 and kind == UNSIGNED and can), (what, error)
            assert not (photometric == 2 and kind == UNSIGNED and bits in (8, 16)), (what, error)
            continue
        read.add((photometric, bits, kind))
        if photometric > 2 or (got.dtype == np.uint8 and got.shape[2] == 3 and set(extra) & {1, 2}):
            continue  # colours of other kinds, and what lies on white
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if bits in (8, 16, 32):  # the judge reads what was meant
                page = file.pages[0].asarray()
                page = page.transpose(1, 2, 0) if page.ndim == 3 and planes == 2 else page
                np.testing.assert_array_equal(page.reshape(values.shape), values)
        want = expected(values, photometric, bits, kind, extra)
        want = np.broadcast_to(want, (5, 11, 3)) if got.shape[2] == 3 and samples == 1 else want
        np.testing.assert_array_equal(got, want, str(what))
    assert not [words for words in refused if "broken" in words], refused
    assert {(0, 16, UNSIGNED), (1, 16, UNSIGNED), (2, 16, UNSIGNED), (0, 1, UNSIGNED), (0, 32, REAL)} <= read


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
def test_gray_of_16_bits_whose_least_is_white_in_any_order_of_bytes(order: str, compression: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 30, 1))
    got = decode(written(values, 16, 0, order, compression=compression))
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, 65535 - values)


def test_one_sample_in_planes_bits_from_right_to_left_and_no_photometric() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 13, 1))
    np.testing.assert_array_equal(decode(written(values, 8, 0, planes=2))[..., :1], 255 - values)
    np.testing.assert_array_equal(decode(written(values, 8, 1, fill=2))[..., :1], values)
    for order, photometric, bits in itertools.product("<>", (0, 1), (1, 2, 4, 8, 16)):
        few = values % (1 << bits)
        want = expected(few, photometric, bits, UNSIGNED, ())
        np.testing.assert_array_equal(decode(written(few, bits, photometric, order, fill=2))[..., :1], want)
    for bits in (8, 16):  # as libtiff guesses: the least is black
        np.testing.assert_array_equal(decode(written(values, bits, None))[..., :1], values)


@pytest.mark.parametrize("photometric, name", [(3, "a palette"), (6, "YCbCr"), (8, "L\\*a\\*b\\*")])
def test_colours_that_are_no_bands_are_not_taken_for_bands(photometric: int, name: str) -> None:
    values = np.zeros((4, 4, 1 if photometric == 3 else 3), int)
    with pytest.raises(BadImageError, match=f"whose colours are {name}"):
        decode(written(values, 16, photometric))
