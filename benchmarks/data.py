"""CPU time an image: our loader beside the usual pipeline of Pillow and DataLoader, from files and from a packed cache.

    python benchmarks/data.py                          # photographs of scikit-learn; five minutes on two cores
    python benchmarks/data.py --photos FOLDER_OR_TAR   # photographs of your own to cut the images from
    python benchmarks/data.py --smoke                  # seconds: that it runs

JPEGs of 500 x 375 are cut from the photographs at many scales. Each way gives crops of 224 pixels, interleaved, several
rounds; a figure is the median of the CPU seconds of the process and of its workers over the images. Ours leaves the
normalisation to the device; the rows 'and normalised' do it on the CPU too, as the usual pipeline does.
Writes docs/evidence/data.json.
"""

import argparse
import io
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from jepakit.core.device import configure_cpu
from jepakit.core.files import save_json
from jepakit.data.crops import Crops, crop_boxes, resize
from jepakit.data.decoding.decode import SUFFIXES, read_image
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.formats.pack import pack
from jepakit.data.loader import Loader
from jepakit.data.opening import open_source
from jepakit.data.sources import Source
from jepakit.model.images import IMAGENET, ImageSettings, normalise, turned
from jepakit.model.masking.masks import MultiBlock

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "data.json"
WIDTH, HEIGHT, SIDE = 500, 375, 224
IMAGES = ImageSettings(size=SIDE, mean=IMAGENET[0], std=IMAGENET[1])
Row = dict[str, Any]


class Usual(Dataset[torch.Tensor]):
    """ImageFolder's loader, RandomResizedCrop(224, scale=(0.3, 1)), ToTensor, Normalize: what most pretraining code has."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.mean, self.std = files, *(torch.tensor(v)[:, None, None] for v in IMAGENET)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        size = np.array([[image.height, image.width]])
        top, left, h, w = crop_boxes(IMAGES, size, np.array([index]), int(torch.randint(1 << 30, ())), 0)[0].tolist()
        image = image.crop((left, top, left + w, top + h)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return x.sub_(self.mean).div_(self.std)


def usual(files: list[Path], workers: int) -> Callable[[], int]:
    def epoch() -> int:
        return sum(len(x) for x in DataLoader(Usual(files), 64, shuffle=True, num_workers=workers, drop_last=True))

    return epoch


def ours(data: str, threads: int, *, on_cpu: bool = False) -> Callable[[], int]:
    loader = Loader(open_source(data), IMAGES, MultiBlock(), (14, 14), 64, 0, threads=threads)
    epochs = iter(range(10**6))

    def epoch() -> int:
        first = next(epochs) * loader.steps_per_epoch
        seen = 0
        for batch in loader(first, first + loader.steps_per_epoch):
            seen += len(batch.images)
            if on_cpu:
                normalise(turned(batch.images, batch.turns[0]), IMAGES)
        return seen

    return epoch


def cost(epoch: Callable[[], int]) -> tuple[float, float]:
    """CPU milliseconds and wall milliseconds an image, workers included."""

    def spent() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(used.ru_utime + used.ru_stime for used in both)

    cpu, wall = spent(), time.perf_counter()
    n = epoch()
    return 1e3 * (spent() - cpu) / n, 1e3 * (time.perf_counter() - wall) / n


def photographs(place: Path | None) -> list[Image.Image]:
    """Those of a folder or a tar, else scikit-learn's two."""
    if place is None:
        return [Image.fromarray(image) for image in load_sample_images().images]
    if place.is_dir():
        return [Image.fromarray(read_image(path)) for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES]
    with tarfile.open(place) as archive:
        names = [m for m in archive.getmembers() if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
        return [Image.open(io.BytesIO(archive.extractfile(m).read())).convert("RGB") for m in names]  # type: ignore[union-attr]


def write_jpegs(photos: list[Image.Image], folder: Path, count: int) -> list[Path]:
    """Images of 500 x 375: crops of the photographs at random places and scales, so that each is as rich as a photograph."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        photo = photos[i % len(photos)]
        fit = min(photo.width / WIDTH, photo.height / HEIGHT)
        scale = fit * draw.uniform(0.7, 1)
        w, h = int(WIDTH * scale), int(HEIGHT * scale)
        x, y = (int(draw.integers(0, n - m + 1)) for n, m in ((photo.width, w), (photo.height, h)))
        cut = photo.crop((x, y, x + w, y + h)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        cut.save(folder / f"{i:05}.jpg", quality=90)
    return sorted(folder.iterdir())


def differences(files: list[Path]) -> dict[str, float]:
    """Levels between our crops and Pillow's: the largest and the mean."""
    found = []
    for i, path in enumerate(files):
        with Image.open(path) as image:
            top, left, h, w = Crops.draw(IMAGES, np.array([i]), 0, 0).box(0, image.height, image.width)
            theirs = image.crop((left, top, left + w, top + h)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        mine = resize(read_image(path)[top : top + h, left : left + w], SIDE, SIDE).permute(1, 2, 0).numpy()
        found.append(np.abs(mine.astype(int) - np.asarray(theirs).astype(int)))
    return {"most": int(max(d.max() for d in found)), "mean": float(np.mean([d.mean() for d in found]))}


class Numbers(Source):
    """Any number of images that nobody stored."""

    name = "numbers"

    def __init__(self, count: int) -> None:
        self.count, self.image = count, np.zeros((8, 8, 3), np.uint8)

    def __len__(self) -> int:
        return self.count

    def raw(self, index: int) -> Pixels:
        return self.image

    def title(self, index: int) -> str:
        return str(index)


def memory(count: int) -> dict[str, float]:
    """Megabytes in memory after a tenth of an epoch, and at its end."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

    loader = Loader(Numbers(count), ImageSettings(size=8), MultiBlock(min_keep=1), (4, 4), 1000, 0)
    early = 0.0
    for batch in loader(0, loader.steps_per_epoch):
        if batch.step == loader.steps_per_epoch // 10:
            early = resident()
    return {"entries": count, "early_mb": early, "end_mb": resident()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="ours, and workers of the usual pipeline")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.images, arguments.rounds, arguments.entries = 128, 1, 20_000
    configure_cpu(1)  # as a run does
    threads = arguments.threads
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = write_jpegs(photographs(arguments.photos), folder / "images", arguments.images)
        pack(str(folder / "images"), folder / "packed", size=256)
        ways = {
            f"Pillow, DataLoader of {threads} workers": usual(files, threads),
            "Pillow, no workers": usual(files, 0),
            "ours, files": ours(str(folder / "images"), threads),
            "ours, files, and normalised": ours(str(folder / "images"), threads, on_cpu=True),
            "ours, packed": ours(str(folder / "packed"), threads),
            "ours, packed, and normalised": ours(str(folder / "packed"), threads, on_cpu=True),
        }
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, epoch in ways.items():
                costs[name].append(cost(epoch))
                print(f"round {number + 1}: {name}: {costs[name][-1][0]:.3f} CPU ms an image", file=sys.stderr)
        kilobytes = statistics.mean(path.stat().st_size for path in files) / 1e3
        crops = differences(files[:200])
    rows = table(costs)
    held = memory(arguments.entries)
    print(f"JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} kB on average; crops of {SIDE}; {threads} threads; medians of", end=" ")
    print(f"{arguments.rounds} rounds")
    for row in rows:
        print(f"{row['way']:38} {row['cpu_ms']:7.3f} CPU ms  {row['times']:5.1f} x  {row['wall_ms']:7.3f} ms wall")
    print(f"crops beside Pillow's: at most {crops['most']} levels apart, {crops['mean']:.4f} on average")
    print(
        f"{held['entries']:,} entries: {held['early_mb']:.0f} MB after a tenth of the epoch, {held['end_mb']:.0f} MB at its end"
    )
    if not arguments.smoke:
        photos = str(arguments.photos.name) if arguments.photos else "scikit-learn's"
        about = {"photos": photos, "images": arguments.images, "rounds": arguments.rounds, "threads": threads}
        save_json(EVIDENCE, {**about, "kilobytes": kilobytes, "rows": rows, "crops": crops, "memory": held})


def table(costs: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Medians over rounds; the ratio is the median of each round's own, to the first way."""
    first = next(iter(costs.values()))
    return [
        {
            "way": name,
            "cpu_ms": statistics.median(cpu for cpu, _ in found),
            "wall_ms": statistics.median(wall for _, wall in found),
            "times": statistics.median(base / cpu for (base, _), (cpu, _) in zip(first, found, strict=True)),
        }
        for name, found in costs.items()
    ]


if __name__ == "__main__":
    main()
