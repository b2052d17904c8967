"""Small good files of every kind that each format has, for fuzz.py to break: {path: bytes}, of an image {"": bytes}."""

import io
import json
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

Files = dict[str, bytes]


def pixels(bands: int = 3, side: int = 20, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """Blocks, with a little noise: (side + 3, side, bands)."""
    draw = np.random.default_rng(seed)
    shape = (side + 3, side, bands)
    blocks = np.kron(draw.integers(0, 200, (side // 4 + 1, side // 4, bands)), np.ones((4, 4, 1), int))[: side + 3, :side]
    values = blocks + draw.integers(0, 3, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * (np.iinfo(dtype).max // 255)).astype(dtype)


def image(mode: str = "RGB", side: int = 20, seed: int = 0) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(pixels(1, side, np.uint16, seed)[..., 0])
    colour = Image.fromarray(pixels(3, side, seed=seed))
    if mode == "P":
        return colour.quantize(30)
    if mode in ("LA", "RGBA"):
        colour.putalpha(Image.fromarray(pixels(1, side, seed=seed + 1)[..., 0]))
    return colour.convert(mode)


def encoded(kind: str, made: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (made or image()).save(file, kind, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    said = Image.Exif()
    said[0x0112], said[0x010E] = 6, "a text"
    said.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    return said


def jpegs() -> Iterator[bytes]:
    for options in (
        *({"subsampling": s, "quality": q} for s, q in ((0, 95), (1, 75), (2, 30))),
        {"progressive": True},
        {"progressive": True, "subsampling": 0, "quality": 95},
        {"optimize": True, "restart_marker_blocks": 1},
        {"exif": exif(), "icc_profile": bytes(200), "comment": "a remark", "xmp": b"<x:xmpmeta/>"},
    ):
        yield encoded("JPEG", **options)
    for mode in ("L", "CMYK"):
        yield encoded("JPEG", image(mode))
        yield encoded("JPEG", image(mode), progressive=True, exif=exif())
    ycck = bytearray(encoded("JPEG", image("CMYK")))
    ycck[ycck.find(b"Adobe") + 11] = 2
    yield bytes(ycck)
    yield encoded("MPO", save_all=True, append_images=[image(seed=1)])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def plain_png(bits: int, colour: int, interlaced: bool = False, side: int = 16) -> bytes:
    """What Pillow does not write: 16 bits of several channels, and Adam7."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = steps if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        (b"\0" + bytes(-(-len(range(x, side, dx)) * channels * bits // 8))) * len(range(y, side, dy)) for x, y, dx, dy in passes
    )
    head = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pngs() -> Iterator[bytes]:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        yield encoded("PNG", image(mode))
    yield encoded("PNG", image("P"), transparency=3, bits=8)
    yield encoded("PNG", image("L"), transparency=9)
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b")
    text.add_text("c", "d" * 99, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    text.add_text("Raw profile type exif", "\nexif\n  8\n" + exif().tobytes().hex())
    yield encoded("PNG", pnginfo=text, icc_profile=bytes(200), dpi=(72, 72))
    yield encoded("PNG", exif=exif())
    yield encoded("PNG", save_all=True, append_images=[image(seed=1), image(seed=2)], default_image=False)
    for bits, colour, interlaced in ((16, 2, False), (16, 6, True), (8, 2, True), (1, 0, True), (4, 3, True), (16, 0, True)):
        yield plain_png(bits, colour, interlaced)


def webps() -> Iterator[bytes]:
    for mode in ("RGB", "RGBA"):
        for options in ({"quality": 20}, {"quality": 90, "method": 6}, {"lossless": True}, {"lossless": True, "exact": True}):
            yield encoded("WEBP", image(mode), **options)
    yield encoded("WEBP", exif=exif(), icc_profile=bytes(200), xmp=b'<x tiff:Orientation="3"/>')
    for lossless in (False, True):
        yield encoded("WEBP", image("RGBA"), save_all=True, append_images=[image("RGBA", seed=1)], lossless=lossless)


def bmps() -> Iterator[bytes]:
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        yield encoded("BMP", image(mode))
    row, leap, end = b"\x08\x12\0\0", b"\0\2\0\1", b"\0\1"
    runs = {k: row + b"\4\x21\0\4" + four + b"\0\0" + leap + 3 * row + end for k, four in ((1, b"\1\2\3\4"), (2, b"\x12\x34"))}
    for kind, bits in ((1, 8), (2, 4)):
        head = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, bits, kind, len(runs[kind]), 0, 0, 16, 0) + bytes(range(64))
        yield b"BM" + struct.pack("<IHHI", 14 + len(head) + len(runs[kind]), 0, 0, 14 + len(head)) + head + runs[kind]
    masks = struct.pack("<IiiHHIIiiIIIII", 40, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    yield b"BM" + struct.pack("<IHHI", 14 + len(masks) + 128, 0, 0, 14 + len(masks)) + masks + bytes(range(128))


def gifs() -> Iterator[bytes]:
    more = [image("P", seed=s) for s in (1, 2)]
    for options in (
        {},
        {"interlace": 1, "comment": b"a remark"},
        {"interlace": 0, "transparency": 3},
        {"save_all": True, "append_images": more, "loop": 0, "duration": 40, "disposal": 2},
        {"save_all": True, "append_images": more, "disposal": 3, "transparency": 1, "optimize": False},
    ):
        yield encoded("GIF", image("P"), **options)
    yield encoded("GIF", image("L"))
    yield encoded("GIF", image("1"))
    yield encoded("GIF", image("RGBA"), save_all=True, append_images=[image("RGBA", seed=3)])


def tiffs() -> Iterator[bytes]:
    for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "jpeg"):
        yield encoded("TIFF", compression=kind)
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16", "LA", "YCbCr", "LAB"):
        yield encoded("TIFF", image(mode))
        if mode not in ("YCbCr", "LAB"):
            yield encoded("TIFF", image(mode), compression="tiff_lzw")
    for kind in ("group3", "group4", "tiff_ccitt"):
        yield encoded("TIFF", image("1"), compression=kind)
    yield encoded("TIFF", exif=exif())
    yield encoded("TIFF", save_all=True, append_images=[image(seed=1)])
    rgb: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    for options in (
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"byteorder": ">", "rowsperstrip": 5},
        {"bigtiff": True, "compression": "zlib"},
    ):
        yield tiff(pixels(), **rgb, **options)
    yield tiff(pixels().transpose(2, 0, 1), **rgb, planarconfig="separate", rowsperstrip=7)


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def bands() -> Iterator[bytes]:
    many: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
    for dtype in (np.uint8, np.uint16, np.float32, np.float64, np.float16):
        yield tiff(pixels(5, 12, dtype), **many, metadata=None)
    for options in (
        {"byteorder": ">"},
        {"bigtiff": True, "byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 4, "bigtiff": True},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib", "predictor": True, "byteorder": ">"},
        {"rowsperstrip": 3, "extratags": [(42113, 2, 4, "-99", True), (33550, 12, 3, (1.0, 1.0, 0.0), True)]},
    ):
        yield tiff(pixels(5, 12, np.uint16), **many, **options)
    yield tiff(pixels(5, 12, np.float32), **many, compression="zlib")
    apart = pixels(4, 12, np.uint16).transpose(2, 0, 1)
    yield tiff(apart, photometric="minisblack", planarconfig="separate", rowsperstrip=5)
    yield tiff(apart, photometric="minisblack", planarconfig="separate", compression="zlib", tile=(16, 16))
    yield tiff(pixels(3, 12, np.uint16), photometric="rgb", compression="zlib")
    yield tiff(pixels(1, 12, np.float32)[..., 0], imagej=True)
    yield tiff(apart, ome=True, photometric="minisblack")


def ppms() -> Iterator[bytes]:
    for mode in ("RGB", "L", "1", "I;16"):
        yield encoded("PPM", image(mode, 12))
    words = b" ".join(b"%d" % v for v in range(48))
    yield b"P1\n# a remark\n4 4\n" + b"0 1 1 0 " * 4
    yield b"P2 4 4 99 " + words
    yield b"P3 4 4\n255\n" + words
    yield b"P2 4 4 65535 " + words
    yield b"P6 4 4 100\n" + bytes(range(48))
    yield b"P6 4 4 65535\n" + bytes(96)
    yield b"P5 4 4 1000\n" + bytes(32)
    yield b"Pf 4 4 -1.0\n" + np.arange(16, dtype="<f4").tobytes()
    yield b"P0CMYK 4 4 255\n" + bytes(64)
    yield b"PyRGBA 4 4 255\n" + bytes(64)


# ---- containers: four images of two classes


def four() -> list[bytes]:
    return [encoded(kind, image(side=12, seed=i)) for i, kind in enumerate(("PNG", "JPEG", "PNG", "WEBP"))]


def tars() -> Iterator[Files]:
    long = "a/very/long/folder/" * 9
    for kind, names in (
        (tarfile.USTAR_FORMAT, "{}"),
        (tarfile.GNU_FORMAT, long + "{}"),
        (tarfile.PAX_FORMAT, "ä" * 60 + "/{}"),
    ):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for i, data in enumerate(four()):
                said = json.dumps({"label": i % 2}).encode()
                for ending, body in (("png", data), ("cls", b"%d" % (i % 2)), ("json", said)):
                    member = tarfile.TarInfo(names.format(f"{i}.{ending}"))
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
            link = tarfile.TarInfo("5.png")
            link.type, link.linkname = tarfile.SYMTYPE, "0.png"
            tar.addfile(link)
        yield {"set/a-0.tar": file.getvalue()}


def tables(save: Callable[[Any, Any], None], ending: str) -> Iterator[Files]:
    import pyarrow as pa

    for plain in (False, True):
        images: list[Any] = four() if plain else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(four())]
        table = pa.table({"image": images, "label": [0, 1, 0, 1], "name": ["a", "b", "a", None]})
        said = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(said).encode()})
        file = io.BytesIO()
        save(table, file)
        yield {f"set/train-0.{ending}": file.getvalue()}


def parquets() -> Iterator[Files]:
    from pyarrow import parquet

    for options in ({}, {"compression": "zstd"}, {"row_group_size": 2, "use_dictionary": False}, {"data_page_version": "2.0"}):
        yield from tables(lambda table, file, options=options: parquet.write_table(table, file, **options), "parquet")


def arrows() -> Iterator[Files]:
    import pyarrow as pa

    def save(table: Any, file: Any, writer: Any, size: int) -> None:
        with writer(file, table.schema) as out:
            out.write_table(table, max_chunksize=size)

    for writer in (pa.ipc.new_stream, pa.ipc.new_file):
        for size in (1, 4):
            yield from tables(lambda table, file, w=writer, s=size: save(table, file, w, s), "arrow")


def npzs() -> Iterator[Files]:
    arrays = {"train_images": np.stack([pixels(side=8, seed=i) for i in range(4)]), "train_labels": np.arange(4)[:, None] % 2}
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        yield {"set.npz": file.getvalue()}
    for name, values in (("images", arrays["train_images"]), ("images", arrays["train_images"].astype(np.float32))):
        file, labels = io.BytesIO(), io.BytesIO()
        np.save(file, values)
        np.save(labels, np.array(["cat", "dog", "cat", "dog"]))
        yield {f"set/{name}.npy": file.getvalue(), "set/labels.npy": labels.getvalue()}


def packs() -> Iterator[Files]:
    from jepakit.data.formats.pack import pack

    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "set", Path(place) / "packed"
        for i, data in enumerate(four()):
            (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            (folder / "ab"[i % 2] / f"{i}.png").write_bytes(data)
        pack(str(folder), out)
        yield {f"set/{path.name}": path.read_bytes() for path in sorted(out.iterdir())}
