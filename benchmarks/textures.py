"""A labelled set with room above raw pixels: which texture is this 64-pixel crop? Probed from left halves to right halves.

    python benchmarks/textures.py OUT                     # fetches two Debian packages with apt-get (430 MB)
    python benchmarks/textures.py OUT --data FILE ...     # .deb files, a tar, or a folder of images

OUT/left holds the left halves of all textures, to pretrain on; OUT/probe/train/ID eight 64-pixel crops of the left half and
OUT/probe/test/ID four of the right half of 400 of them. The two halves share no pixel.
"""

import argparse
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = ("ufoai-textures", "openarena-081-textures")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tga")
LONG, IDS, CROP, TRAIN, TEST = 384, 400, 64, 8, 4


def prepare(out: Path, data: list[Path]) -> None:
    """Write the set to `out`, whole or not at all."""
    if (out / "probe").is_dir():
        if any((out / "left").glob("t*-*.jpg")):
            raise SystemExit(f"{out} holds tiles, as an older version of this script made them: remove it")
        return
    draft = out.with_name(out.name + ".part")
    textures = distinct(data or fetch(draft / "packages"))
    chosen = set(np.random.default_rng(0).permutation(len(textures))[:IDS].tolist())
    (draft / "left").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(textures):
        half = image.width // 2
        left, right = image.crop((0, 0, half, image.height)), image.crop((half, 0, image.width, image.height))
        left.save(draft / "left" / f"t{number:04d}.jpg", quality=95)
        if number in chosen:
            for split, part, count in (("train", left, TRAIN), ("test", right, TEST)):
                folder = draft / "probe" / split / f"t{number:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                for k, crop in enumerate(crops(part, count, number)):
                    crop.save(folder / f"{k}.png")
    draft.rename(out)


def crops(image: Image.Image, count: int, number: int) -> Iterator[Image.Image]:
    """Crops at random places, a function of the texture's number."""
    draw = np.random.default_rng([1, number, count])
    for _ in range(count):
        x, y = (int(draw.integers(0, n - CROP + 1)) for n in image.size)
        yield image.crop((x, y, x + CROP, y + CROP))


def distinct(data: list[Path]) -> list[Image.Image]:
    """Colour images with halves of a crop at least, long side at most LONG, not flat, no two alike; in order of name."""
    found: dict[bytes, Image.Image] = {}
    for _, raw in sorted(files(data)):
        try:
            image = Image.open(io.BytesIO(raw)).convert("RGB")
        except (OSError, ValueError):
            continue
        image.thumbnail((LONG, LONG), Image.Resampling.LANCZOS)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) // 8
        if image.width >= 2 * CROP and image.height >= CROP and np.asarray(image).std() > 8:
            found.setdefault(small.tobytes(), image)
    return list(found.values())


def files(data: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the image files in folders, tars and Debian packages (whose .pk3 files are zips)."""
    for path in data:
        if path.is_dir():
            yield from ((str(p), p.read_bytes()) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            continue
        opened = io.BytesIO(subprocess.check_output(["dpkg-deb", "--fsys-tarfile", path])) if path.suffix == ".deb" else None
        stream = opened or path.open("rb")
        with stream, tarfile.open(fileobj=stream) as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                suffix = Path(member.name).suffix.lower()
                content = tar.extractfile(member)
                if content and suffix in SUFFIXES:
                    yield member.name, content.read()
                elif content and suffix == ".pk3":
                    with zipfile.ZipFile(io.BytesIO(content.read())) as archive:
                        yield from ((n, archive.read(n)) for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES)


def fetch(folder: Path) -> list[Path]:
    """The packages, by the machine's own apt-get."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    return sorted(folder.glob("*.deb"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    prepare(arguments.out, arguments.data)
