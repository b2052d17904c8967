"""Files that should not be in a folder of images, each with what must be said of it; and good ones that only look bad."""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from bomb import Bomb

TRACE = Path("ran")  # would be made in the working folder by a pickle that is run
BOMB, BROKEN, OTHER = "decompression bomb", "broken or cut", "none of JPEG, PNG"


@dataclass(frozen=True)
class BadFile:
    """reason: a pattern of what must be said of it; "" where it is good, and None where it may be either."""

    name: str
    data: bytes
    reason: str | None


@cache
def bad_files() -> tuple[BadFile, ...]:
    made = [*_cut(), *_other_things(), *_pngs(), *_jpegs(), *_exif(), *_tiffs(), *_tiff_bombs(), *_others()]
    assert len({Path(file.name).stem for file in made}) == len(made)  # in a shard a sample is what has one stem
    return tuple(made)


def pixels(side: int = 24, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (side, side, bands), np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(pixels())).save(file, kind, **options)
    return file.getvalue()


def _cut() -> Iterator[BadFile]:
    for kind, header in (("JPEG", 30), ("PNG", 20), ("WEBP", 20), ("BMP", 20), ("GIF", 8), ("TIFF", 20), ("PPM", 6)):
        whole = encoded(kind)
        yield BadFile(f"{kind} cut in its header.{kind.lower()}", whole[:header], f"{BROKEN}|no pixels")
        yield BadFile(f"{kind} cut in the middle.{kind.lower()}", whole[: len(whole) // 2], BROKEN)
        yield BadFile(f"{kind} cut near its end.{kind.lower()}", whole[:-60], BROKEN)


def _other_things() -> Iterator[BadFile]:
    yield BadFile("zero bytes.png", b"", "empty file")
    yield BadFile("one byte.jpg", b"\xff", OTHER)
    yield BadFile("text.jpg", b"this is no image\n", OTHER)
    yield BadFile("error page.jpg", b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>", OTHER)
    yield BadFile("only zeros.webp", bytes(5000), OTHER)
    yield BadFile("a PNG.jpg", encoded("PNG"), "")  # a file is what it holds, not what it is called
    yield BadFile("a JPEG.png", encoded("JPEG"), "")
    yield BadFile("a TIFF.gif", encoded("TIFF"), "")
    yield BadFile("icon.png", encoded("ICO"), OTHER)
    yield BadFile("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n", OTHER)
    yield BadFile("document.jpg", encoded("PDF"), OTHER)
    yield BadFile("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", OTHER)
    yield BadFile("photoshop.png", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(40), OTHER)
    yield BadFile("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), OTHER)
    yield BadFile("pickle.png", pickle.dumps(Bomb(TRACE)), OTHER)
    for name, mode in (("archive.png", "w"), ("archive gz.png", "w:gz")):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
            tar.addfile(tarfile.TarInfo("x.png"))
        yield BadFile(name, file.getvalue(), OTHER)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("x.png", encoded("PNG"))
    yield BadFile("zip.png", file.getvalue(), OTHER)


# ---- PNG


def png(*chunks: tuple[bytes, bytes], end: bool = True) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in (*chunks, *(((b"IEND", b""),) if end else ())):
        parts += [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
    return b"".join(parts)


def head(width: int, height: int, bits: int = 8, colour: int = 2, interlace: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)


def _pngs() -> Iterator[BadFile]:
    good, rows = head(24, 24), (b"IDAT", zlib.compress(bytes(24 * 73)))
    inflating = zlib.compress(bytes(100_000_000), 9)  # 100 kB
    yield BadFile("PNG bomb.png", png(head(60_000, 60_000), rows), BOMB)
    yield BadFile("PNG of 2 billion squared.png", png(head(2**31 - 1, 2**31 - 1), rows), BOMB)
    yield BadFile("PNG without pixels.png", png(head(0, 24), rows), f"no pixels|{BROKEN}")
    broken = bytearray(png(good, rows))
    broken[broken.index(b"IDAT") + 9] ^= 255
    yield BadFile("PNG with a broken sum in its pixels.png", bytes(broken), BROKEN)
    broken = bytearray(png(good, rows))
    broken[30] ^= 255
    yield BadFile("PNG with a broken sum in its header.png", bytes(broken), "PNG, broken or cut")
    yield BadFile("PNG without an end.png", png(good, rows, end=False), "")
    yield BadFile("PNG without rows.png", png(good), BROKEN)
    yield BadFile("PNG of no zlib.png", png(good, (b"IDAT", b"no zlib" * 20)), BROKEN)
    yield BadFile("PNG of 3 bits.png", png(head(24, 24, 3), rows), BROKEN)
    yield BadFile("PNG with more rows than it says.png", png(good, (b"IDAT", inflating)), "")
    yield BadFile("PNG with a huge profile.png", png(good, (b"iCCP", b"x\0\0" + inflating), rows), None)
    yield BadFile("PNG with a huge text.png", png(good, (b"zTXt", b"x\0\0" + inflating), rows), None)
    megabytes = (b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    yield BadFile("PNG with a hundred long texts.png", png(good, *[megabytes] * 100, rows), BROKEN)
    frames = [Image.fromarray(pixels()[::-1]), Image.fromarray(pixels()[:, ::-1])]
    yield BadFile("animated PNG.png", encoded("PNG", save_all=True, append_images=frames), "")
    actl = (b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield BadFile("PNG that claims 2 billion frames.png", png(good, actl, rows), None)
    nonsense = PngImagePlugin.PngInfo()
    nonsense.add_text("Raw profile type exif", "\nexif\n  9\nnot hexadecimal")
    yield BadFile("PNG with a broken profile of EXIF.png", encoded("PNG", pnginfo=nonsense), "")


# ---- JPEG


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose scans say "nothing changes" over and over: a kilobyte each, and work for every pixel."""
    runs = -(-((side // 8) ** 2) // 32767)
    bits = ("0" + "1" * 14) * runs  # 32767 blocks without a change
    bits += "1" * (-len(bits) % 8)
    scan = segment(0xDA, b"\1\1\0\1\x3f\x10") + int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    return b"\xff\xd8" + tables + frame + scan * scans + b"\xff\xd9"


def _jpegs() -> Iterator[BadFile]:
    whole = encoded("JPEG")
    frame, table = whole.index(b"\xff\xc0"), whole.index(b"\xff\xc4")

    def changed(at: int, new: bytes) -> bytes:
        return whole[:at] + new + whole[at + len(new) :]

    yield BadFile("JPEG bomb.jpg", changed(frame + 5, b"\xff\xdc\xff\xdc"), BOMB)
    yield BadFile("JPEG begun twice.jpg", whole[:2] + whole, None)
    yield BadFile("JPEG begun twice later.jpg", whole[:frame] + b"\xff\xd8" + whole[frame:], BROKEN)
    yield BadFile("JPEG with a broken Huffman table.jpg", changed(table + 5, b"\xff" * 16), BROKEN)
    yield BadFile("JPEG of other Huffman codes.jpg", changed(table + 21, bytes(range(12))), None)
    yield BadFile("JPEG of 12 bits.jpg", changed(frame + 1, b"\xc1\0\x11\x0c"), BROKEN)
    yield BadFile("JPEG said to be lossless.jpg", changed(frame + 1, b"\xc3"), None)
    yield BadFile("JPEG said to be arithmetic.jpg", changed(frame + 1, b"\xc9"), None)
    yield BadFile("JPEG said to be hierarchical.jpg", changed(frame + 1, b"\xc5"), BROKEN)
    yield BadFile("JPEG of no height.jpg", changed(frame + 5, b"\0\0"), BROKEN)  # a DNL marker would tell it at the end
    yield BadFile("JPEG without scans.jpg", whole[: whole.index(b"\xff\xda")] + b"\xff\xd9", BROKEN)
    yield BadFile("JPEG that ends at once.jpg", b"\xff\xd8\xff\xd9", BROKEN)
    yield BadFile("JPEG of a thousand scans.jpg", many_scans(8000, 1000), "scans: taken for a bomb")
    yield BadFile("JPEG with rubbish after it.jpg", whole + b"\xff\xda" * 100_000, "")  # a phone's film


def exif_of(*entries: bytes, first: int = 8) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", first, len(entries)) + b"".join(entries) + bytes(4)


def _exif() -> Iterator[BadFile]:
    """A broken EXIF says nothing, and its image is good."""
    exifs = {
        "points at itself": exif_of(struct.pack("<HHII", 0x8769, 4, 1, 8), struct.pack("<HHII", 0x8825, 4, 1, 8)),
        "is rubbish": b"Exif\0\0" + bytes(range(256)) * 4,
        "is cut": b"Exif\0\0II*",
        "begins nowhere": exif_of(first=0xFFFFFFFF),
        "reads the file 4000 times": exif_of(*(struct.pack("<HHII", 1000 + i, 7, 50_000, 0) for i in range(4000))),
        "has a huge count": exif_of(struct.pack("<HHII", 274, 3, 0xFFFFFFFF, 0)),
        "turns by 99": exif_of(struct.pack("<HHII", 274, 3, 1, 99)),
    }
    for name, exif in exifs.items():
        for kind in ("JPEG", "PNG", "WEBP"):
            yield BadFile(f"{kind} whose EXIF {name}.{kind.lower()}", encoded(kind, exif=exif), "")


# ---- TIFF


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "metadata": None, **options})  # type: ignore[arg-type]
    return file.getvalue()


Entry = tuple[int, int, int, int]  # tag, type, count, value or offset
PLAIN: dict[int, Entry] = {
    256: (256, 4, 1, 16),  # width
    257: (257, 4, 1, 16),  # length
    258: (258, 3, 1, 8),  # bits
    259: (259, 3, 1, 1),  # compression: none
    262: (262, 3, 1, 1),  # black is zero
    273: (273, 4, 1, 8),  # strips begin at the first byte after the header
    277: (277, 3, 1, 1),  # samples
    278: (278, 4, 1, 16),  # rows of a strip
    279: (279, 4, 1, 256),  # bytes of a strip
}


def directory(strip: bytes, *entries: Entry, without: tuple[int, ...] = (), following: int | None = 0) -> bytes:
    """A gray TIFF of 16x16 with entries changed; following: where the next directory is, None for this one again."""
    tags = {**PLAIN, 279: (279, 4, 1, len(strip)), **{entry[0]: entry for entry in entries}}
    chosen = [tags[tag] for tag in sorted(tags) if tag not in without]
    at = 8 + len(strip)
    table = b"".join(struct.pack("<HHII", *entry) for entry in chosen)
    following = at if following is None else following
    return b"II*\0" + struct.pack("<I", at) + strip + struct.pack("<H", len(chosen)) + table + struct.pack("<I", following)


def _tiffs() -> Iterator[BadFile]:
    rows = bytes(range(256))
    deep = {"photometric": "minisblack", "planarconfig": "contig"}
    yield BadFile("TIFF whose directory points at itself.tif", directory(rows, following=None), "")
    yield BadFile("deep TIFF whose directory points at itself.tif", directory(rows * 2, (258, 3, 1, 16), following=None), "")
    yield BadFile("TIFF whose directory is nowhere.tif", b"II*\0\xff\xff\xff\xff" + rows, BROKEN)
    yield BadFile("TIFF of 65535 tags.tif", b"II*\0" + struct.pack("<IH", 8, 65535) + rows, "65535 tags")
    yield BadFile("BigTIFF of many tags.tif", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + rows, "tags")
    yield BadFile("BigTIFF whose directory is nowhere.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1) + rows, BROKEN)
    yield BadFile("TIFF of 65535 bits.tif", directory(rows, (258, 3, 1, 65535)), "65535 bits")
    yield BadFile("TIFF of 65535 samples.tif", directory(rows, (277, 3, 1, 65535)), f"{BROKEN}|{BOMB}")
    yield BadFile("TIFF of 4 billion samples.tif", directory(rows, (277, 4, 1, 2**32 - 1)), BOMB)
    yield BadFile("TIFF of 4 billion bits.tif", directory(rows, (258, 3, 2**32 - 1, 0)), "4294967295 values")
    yield BadFile("TIFF without a width.tif", directory(rows, without=(256,)), "no pixels")
    yield BadFile("TIFF of no width.tif", directory(rows, (256, 4, 1, 0)), "no pixels")
    tile = ((322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 1, 8), (325, 4, 1, 512), (258, 3, 1, 16))
    narrow = directory(rows * 2, *tile, (256, 4, 1, 0), without=(273, 278, 279))
    yield BadFile("deep TIFF of tiles and no width.tif", narrow, "no pixels")
    yield BadFile("deep TIFF of no samples.tif", directory(rows * 2, (258, 3, 1, 16), (277, 3, 1, 0)), "no pixels")
    yield BadFile("TIFF without strips.tif", directory(rows, without=(273, 279)), "0 of 1 strips")
    yield BadFile("TIFF whose strip is nowhere.tif", directory(rows, (273, 4, 1, 10**9)), BROKEN)
    yield BadFile("deep TIFF whose strip is nowhere.tif", directory(rows * 2, (273, 4, 1, 10**9), (258, 3, 1, 16)), BROKEN)
    yield BadFile("TIFF of an unknown compression.tif", directory(rows, (259, 3, 1, 999)), BROKEN)
    yield BadFile("TIFF of a thousand planes.tif", directory(rows * 2, (258, 3, 1, 32), (32997, 4, 1, 1000)), "axes ZYX")
    yield BadFile("TIFF of a number that is none.tif", tiff(np.full((8, 8, 2), np.nan, np.float32), **deep), "not finite")
    yield BadFile("TIFF of an infinite number.tif", tiff(np.full((8, 8), np.inf, np.float32)), "not finite")
    yield BadFile("TIFF past float32.tif", tiff(np.full((8, 8), 1e300)), "not finite")
    yield BadFile("TIFF of complex numbers.tif", tiff(np.ones((8, 8), np.complex64)), "bands of complex64")
    yield BadFile("TIFF of heights.tif", tiff(np.full((8, 8), -5, np.int16)), "bands of int16")
    yield BadFile("TIFF of 64 bits.tif", tiff(np.ones((8, 8), np.uint64)), "bands of uint64")
    yield BadFile("TIFF by LZW of 16 bits.tif", directory(rows * 2, (258, 3, 1, 16), (259, 3, 1, 5), (277, 3, 1, 2)), None)
    short = ((277, 3, 1, 2), (278, 4, 1, 1))
    yield BadFile(
        "deep TIFF that lacks strips.tif", directory(rows * 2, *short, (258, 3, 1, 16), (259, 3, 1, 8)), "1 of 16 strips"
    )
    yield BadFile("TIFF that lacks strips.tif", directory(rows, (278, 4, 1, 1)), "1 of 16 strips")


def _tiff_bombs() -> Iterator[BadFile]:
    rows = bytes(range(256))
    two = ((277, 3, 1, 2), (258, 3, 1, 16))  # two bands of 16 bits: not Pillow's
    claims = ((256, 4, 1, 60_000), (257, 4, 1, 60_000))
    yield BadFile("TIFF bomb.tif", directory(rows, *claims), BOMB)
    yield BadFile("deep TIFF bomb.tif", directory(rows, *claims, *two), BOMB)
    yield BadFile("deep TIFF bomb of bands.tif", directory(rows, (258, 3, 1, 16), (277, 3, 1, 60_000), *_claims(4000)), BOMB)
    yield BadFile("BigTIFF bomb.tif", tiff(pixels(16)[..., 0], bigtiff=True).replace(_long(16), _long(60_000)), BOMB)
    tile = ((322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 256))
    yield BadFile("TIFF bomb of a tile.tif", directory(rows, *tile, without=(273, 278, 279)), BOMB)
    yield BadFile("deep TIFF bomb of a tile.tif", directory(rows, *tile, *two, without=(273, 278, 279)), BOMB)
    inflating = zlib.compress(bytes(300_000_000), 9)  # 300 kB
    yield BadFile("TIFF bomb of deflate.tif", directory(inflating, (259, 3, 1, 8)), None)
    yield BadFile("deep TIFF bomb of deflate.tif", directory(inflating, (259, 3, 1, 8), *two), f"inflates.*{BOMB}")
    lzma = b"\x5d\0\0\0\x80" + b"\xff" * 8 + bytes(300)  # a dictionary of 2 GiB
    for name, kind, strip in (("LZMA", 34925, lzma), ("PackBits", 32773, b"\x81\0" * 100_000), ("nothing known", 999, rows)):
        yield BadFile(f"TIFF bomb of {name}.tif", directory(strip, (259, 3, 1, kind)), None)
        yield BadFile(f"deep TIFF bomb of {name}.tif", directory(strip, (259, 3, 1, kind), *two), None)
    thin = ((256, 4, 1, 1), (257, 4, 1, 90_000_000), (278, 4, 1, 1))  # a strip a row
    yield BadFile("TIFF of 90 million strips.tif", directory(rows, *thin), f"side of more.*{BOMB}")
    yield BadFile("deep TIFF of 90 million strips.tif", directory(rows, *thin, two[0]), f"side of more.*{BOMB}")
    dots = ((322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 1, 8), (325, 4, 1, 1), *_claims(9000))  # a tile a pixel
    yield BadFile("TIFF of 81 million tiles.tif", directory(rows, *dots, without=(273, 278, 279)), "1 of 81000000 strips")
    few = directory(rows, *dots, *two, without=(273, 278, 279))
    yield BadFile("deep TIFF of 81 million tiles.tif", few, "1 of 81000000 strips")
    table = directory(rows, (273, 4, 10**6, 8), (279, 4, 10**6, 8))
    yield BadFile("TIFF with a million strips.tif", table + bytes(4_000_000), "1000000 values")
    many = [(1000 + i, 7, 900_000, 0) for i in range(4000)]
    yield BadFile("TIFF that reads itself 4000 times.tif", directory(rows, *many) + bytes(900_000), "")
    within = [(0x8769, 4, 1, 8 + 256 + 2 + 12 * 10 + 4)]  # an EXIF directory right after the first
    table = struct.pack("<H", 4000) + b"".join(struct.pack("<HHII", *entry) for entry in many) + bytes(4)
    yield BadFile("TIFF whose EXIF reads it 4000 times.tif", directory(rows, *within) + table + bytes(900_000), "")


def _claims(side: int) -> tuple[Entry, Entry]:
    return (256, 4, 1, side), (257, 4, 1, side)


def _long(value: int) -> bytes:
    return struct.pack("<HQ", 4, 1) + struct.pack("<Q", value)


# ---- other formats


def _others() -> Iterator[BadFile]:
    screen = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, 16, 16, 0) + b"\2\2\x4c\1\0"
    far = b"," + struct.pack("<HHHHB", 60_000, 60_000, 16, 16, 0) + b"\2\2\x4c\1\0"
    yield BadFile("GIF bomb.gif", b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + image + b";", BOMB)
    yield BadFile("GIF bomb by its frame.gif", screen + far + b";", BOMB)
    yield BadFile("GIF without frames.gif", screen + b";", BROKEN)
    yield BadFile("GIF of a remark without end.gif", screen + b"!\xfe" + (b"\xff" + b"x" * 255) * 20_000, BROKEN)
    frames = [Image.fromarray(pixels()[::-1]), Image.fromarray(pixels()[:, ::-1])]
    yield BadFile("animated GIF.gif", encoded("GIF", save_all=True, append_images=frames), "")
    yield BadFile("animated WEBP.webp", encoded("WEBP", save_all=True, append_images=frames, lossless=True), "")
    still = encoded("WEBP", lossless=True)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (59_999).to_bytes(3, "little") * 2
    extended = b"RIFF" + struct.pack("<I", len(still) + 10) + b"WEBP" + canvas + still[12:]
    yield BadFile("WebP bomb.webp", extended, f"{BOMB}|{BROKEN}")
    wide = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    yield BadFile("WebP bomb without loss.webp", still[:21] + wide + still[25:], f"{BOMB}|{BROKEN}")
    bmp = encoded("BMP")
    yield BadFile("BMP bomb.bmp", bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:], BOMB)
    yield BadFile(
        "BMP of negative size.bmp", bmp[:18] + struct.pack("<ii", -24, -(2**31)) + bmp[26:], f"{BOMB}|{BROKEN}|no pixels"
    )
    runs = struct.pack("<IiiHHIIiiII", 40, 90_000_000, 1, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(8) + b"\0\2\xff\xff" * 50 + b"\0\1"
    yield BadFile(
        "BMP that leaps.bmp", b"BM" + struct.pack("<IHHI", 14 + len(runs), 0, 0, 14 + 48) + runs, f"side of more.*{BOMB}"
    )
    rows = struct.pack("<IiiHHIIiiII", 40, 9900, 9900, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(8) + b"\1\1\0\0" * 9900 + b"\0\1"
    yield BadFile("BMP of empty rows.bmp", b"BM" + struct.pack("<IHHI", 14 + len(rows), 0, 0, 14 + 48) + rows, "bomb of time")
    yield BadFile("PPM bomb.ppm", b"P6 60000 60000 255\n" + bytes(100), BOMB)
    yield BadFile("PPM without pixels.ppm", b"P3 0 0 255\n", f"no pixels|{BROKEN}")
    yield BadFile("PPM of a long number.ppm", b"P6 " + b"1" * 5000 + b" 9 255\n", BROKEN)
    yield BadFile("PPM of a long remark.ppm", b"P6 #" + b"x" * 500_000, BROKEN)
    yield BadFile("PFM of a number that is none.ppm", b"Pf 2 1 -1.0\n" + np.array([1, np.nan], "<f4").tobytes(), "not finite")
