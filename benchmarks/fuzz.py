"""Breaks good files in many ways and reads them: nothing may crash, hang, take the memory, or fail in another way than it should.

    python benchmarks/fuzz.py                                  # 20,000 files of each format
    python benchmarks/fuzz.py --formats png,tiff --files 100000 --seed 1 --json fuzz.json
    python benchmarks/fuzz.py --smoke                          # a few hundred of each: some seconds

File i of a format is a function of (seed, format, i). A worker process reads one after the other, so that it may die: the file
that it died of is saved below --out, and another goes on. Exit code 1 if anything was found. Only on Linux.
"""

import argparse
import gc
import json
import logging
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import fuzz_seeds as seeds
import numpy as np
from fuzz_seeds import Files

from jepakit.core.errors import UserError
from jepakit.data.decoding.decode import decode
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.opening import open_source

FILES, SMOKE = 20_000, 300
LONGEST = 10  # seconds that a file may take
MOST = 2 << 30  # bytes that a file may take: 20 for each of the 100 million pixels that an image may have
LEAK = 100 << 20  # bytes that all of them may leave
ROOM = 4 << 30  # bytes that a worker can have
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


# ---- breaking


def broken(files: list[Files], mend: Callable[[bytearray], None] | None, draw: Random) -> Files:
    """One of the files with one to eight changes to one of its parts; mend: makes sums fit again, three times in four."""
    chosen = dict(draw.choice(files))
    part = draw.choice(sorted(chosen))
    data = bytearray(chosen[part])
    for _ in range(min(8, 1 + int(draw.expovariate(0.7)))):
        change(data, draw, lambda: draw.choice([other[part] for other in files if part in other]))
    if mend and draw.random() < 0.75:
        mend(data)
    return {**chosen, part: bytes(data)}


def change(data: bytearray, draw: Random, other: Callable[[], bytes]) -> None:
    """One change in place, where headers and directories lie more often than elsewhere."""
    n, kind, at = len(data), draw.randrange(10), draw.random()
    if n < 9:
        data += draw.randbytes(16)
        return
    start, stop = ((0, 96) if at < 0.4 else (n - 400, n)) if at < 0.6 else (0, n)
    place = draw.randrange(max(0, start), min(n, stop))
    length = min(n - place, 1 + int(draw.expovariate(1 / 20)))
    if kind == 0:
        data[place] ^= 1 << draw.randrange(8)
    elif kind in (1, 2):
        data[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    elif kind in (3, 4, 5):
        value = draw.choice(EXTREMES) if draw.random() < 0.8 else draw.randrange(2 ** draw.choice((8, 16, 24, 32)))
        size = draw.choice((2, 4, 4, 8))
        data[place : place + size] = (value & (1 << 8 * size) - 1).to_bytes(size, draw.choice(("little", "big")))
    elif kind == 6:
        del data[place if draw.random() < 0.5 else n - length :]
    elif kind == 7:
        del data[place : place + length]
    elif kind == 8:
        there = draw.randrange(n)
        data[there:there] = data[place : place + length] * draw.choice((1, 1, 1, 2, 50))
    else:
        given = other()
        data[place:] = given[place:] if draw.random() < 0.5 else given[int(draw.random() * len(given)) :]


def mend_png(data: bytearray) -> None:
    """The sums of its chunks."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def mend_tar(data: bytearray) -> None:
    """The sums of its headers."""
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


# ---- reading


def read_image(files: Files, _: Path) -> bool:
    """Whether it decodes. Raises what should not be."""
    try:
        pixels = decode(files[""], findings=[])
    except BadImageError as error:
        require_reason(str(error))
        return False
    assert pixels.ndim == 3 and pixels.size and pixels.dtype in (np.uint8, np.uint16, np.float32), (pixels.shape, pixels.dtype)
    assert pixels.flags.writeable and pixels.flags.c_contiguous and (pixels.dtype.kind == "u" or np.isfinite(pixels).all())
    return True


def read_source(files: Files, place: Path) -> bool:
    """Whether it opens and an image of it decodes. Raises what should not be."""
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    read = 0
    try:
        source = open_source(str(place / next(iter(files)).split("/")[0]))
        for index in range(min(len(source), 16)):
            try:
                read += bool(source.read(index).size and source.title(index))
            except BadImageError as error:
                require_reason(str(error))
    except UserError as error:
        require_reason(str(error))
    return read > 0


def require_reason(reason: str) -> None:
    assert reason.strip() and "\n" not in reason and "more memory than there is" not in reason, reason


class Format(NamedTuple):
    seeds: Callable[[], list[Files]]
    read: Callable[[Files, Path], bool]
    mend: Callable[[bytearray], None] | None = None


def images(made: Callable[[], object]) -> Callable[[], list[Files]]:
    return lambda: [{"": data} for data in made()]  # type: ignore[attr-defined]


FORMATS = {
    "jpeg": Format(images(seeds.jpegs), read_image),
    "png": Format(images(seeds.pngs), read_image, mend_png),
    "webp": Format(images(seeds.webps), read_image),
    "bmp": Format(images(seeds.bmps), read_image),
    "gif": Format(images(seeds.gifs), read_image),
    "tiff": Format(images(seeds.tiffs), read_image),
    "bands": Format(images(seeds.bands), read_image),
    "ppm": Format(images(seeds.ppms), read_image),
    "tar": Format(lambda: list(seeds.tars()), read_source, mend_tar),
    "parquet": Format(lambda: list(seeds.parquets()), read_source),
    "arrow": Format(lambda: list(seeds.arrows()), read_source),
    "npz": Format(lambda: list(seeds.npzs()), read_source),
    "pack": Format(lambda: list(seeds.packs()), read_source),
}


# ---- working


@dataclass
class Found:
    """What became of the files of a format."""

    files: int = 0
    decoded: int = 0
    refused: int = 0
    wrong: int = 0  # another exception than the ones that are allowed, or no image
    crashes: int = 0
    hangs: int = 0
    memory: int = 0  # files that took more than MOST
    leak_mb: float = 0
    slowest_ms: float = 0  # of CPU
    peak_mb: float = 0
    seconds: float = 0

    @property
    def clean(self) -> bool:
        return not (self.wrong or self.crashes or self.hangs or self.memory or self.leak_mb * 2**20 > LEAK)


NEXT, BEGAN, DECODED, REFUSED, WRONG, MEMORY, LEFT, SLOWEST, PEAK = range(9)  # what worker and watcher share, as floats


def work(name: str, files: list[Files], seed: int, count: int, shared: np.ndarray, out: Path) -> None:
    """Read files from shared[NEXT] on, to the end or to one that takes too much."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C write what they think of a file
    logging.disable()
    warnings.simplefilter("ignore")
    place = Path(os.environ["XDG_CACHE_HOME"])
    base, began = resident(), int(shared[NEXT])
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + ROOM,) * 2)
    for index in range(began, count):
        given = broken(files, FORMATS[name].mend, Random(f"{seed}/{name}/{index}"))
        shared[NEXT], shared[BEGAN], started = index, time.monotonic(), time.process_time()
        at = place / str(index)
        try:
            read = FORMATS[name].read(given, at)
            shared[DECODED if read else REFUSED] += 1
        except Exception as error:
            shared[WRONG] += 1
            save(out / f"{name}-{index}-{type(error).__name__}", given, traceback.format_exc())
        shared[SLOWEST] = max(shared[SLOWEST], 1e3 * (time.process_time() - started))
        shutil.rmtree(at, ignore_errors=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
        shared[PEAK] = max(shared[PEAK], peak)
        if index == began + (count - began) // 10:  # caches are full
            base = resident() if peak < MOST else base
        if peak > MOST:
            shared[MEMORY] += 1
            save(out / f"{name}-{index}-memory", given, f"{peak / 2**20:.0f} MB")
            shared[NEXT] = index + 1
            os._exit(0)  # the peak is that of the process: another begins anew
    gc.collect()
    shared[NEXT], shared[LEFT] = count, max(shared[LEFT], resident() - base)


def pages(field: int) -> int:
    """Bytes of this process: 0 of addresses, 1 resident."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def resident() -> int:
    return pages(1)


def save(place: Path, files: Files, words: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "why.txt").write_text(words)
    for name, data in files.items():
        path = place / (name or "image")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def fuzz(name: str, count: int, seed: int, out: Path) -> Found:
    """Read so many broken files of a format, whatever happens to the processes that do."""
    files, found, began = FORMATS[name].seeds(), Found(files=count), time.monotonic()
    for given in files:
        with tempfile.TemporaryDirectory() as place:
            assert FORMATS[name].read(given, Path(place)), f"a seed of {name} is not read"
    shared = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.float64)
    while shared[NEXT] < count:
        shared[BEGAN] = time.monotonic()
        child = os.fork()
        if not child:
            try:
                work(name, files, seed, count, shared, out)
                os._exit(0)
            except BaseException:
                (out / "worker.txt").write_text(traceback.format_exc())
                os._exit(1)
        status, hung = watched(child, shared)
        if status:
            index = int(shared[NEXT])
            found.hangs, found.crashes = found.hangs + hung, found.crashes + (not hung)
            given = broken(files, FORMATS[name].mend, Random(f"{seed}/{name}/{index}"))
            save(out / f"{name}-{index}-{'hang' if hung else 'crash'}", given, f"status {status}")
            shared[NEXT] = index + 1
    found.decoded, found.refused, found.wrong, found.memory = (int(shared[i]) for i in (DECODED, REFUSED, WRONG, MEMORY))
    found.leak_mb, found.peak_mb = (round(float(shared[i]) / 2**20, 1) for i in (LEFT, PEAK))
    found.slowest_ms, found.seconds = round(float(shared[SLOWEST]), 1), round(time.monotonic() - began, 1)
    return found


def watched(child: int, shared: np.ndarray) -> tuple[int, bool]:
    """How a worker ended, and whether it had to be ended."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        if time.monotonic() - shared[BEGAN] > LONGEST:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(0.02)


COLUMNS = ("files", "decoded", "refused", "wrong", "crashes", "hangs", "memory", "slowest ms", "peak MB", "leak MB", "files/s")


def row(found: Found) -> tuple[object, ...]:
    rate = round(found.files / max(found.seconds, 0.1))
    return (*list(asdict(found).values())[:7], found.slowest_ms, found.peak_mb, found.leak_mb, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS), help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--files", type=int, default=FILES, help="broken files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the files that something was found with")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE} files of each format")
    given = parser.parse_args()
    names = given.formats.split(",")
    if unknown := set(names) - set(FORMATS):
        parser.error(f"no such format: {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    print("".join(f"{word:>12}" for word in ("", *COLUMNS)))
    results = {}
    memory = "/dev/shm"  # many small files
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for name in names:
            results[name] = fuzz(name, SMOKE if given.smoke else given.files, given.seed, given.out)
            print("".join(f"{word:>12}" for word in (name, *row(results[name]))), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "formats": {k: asdict(v) for k, v in results.items()}}, indent=1))
    if not all(found.clean for found in results.values()):
        sys.exit(f"found something: see {given.out}")


if __name__ == "__main__":
    main()
