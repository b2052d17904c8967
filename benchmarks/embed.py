"""embed: its speed over that of the encoder alone, its memory by the number of images, and a search's time and memory.

    python benchmarks/embed.py                   # speed and search; five minutes on two quiet cores
    python benchmarks/embed.py --memory 100000   # resident memory at a tenth of the images, and at all of them
    python benchmarks/embed.py --smoke           # seconds: that it runs

Speed: rounds of `encoder(images)` over tensors that are ready, of `embed` over as many JPEGs in a folder (decoded, cropped,
resized, normalised, pooled, written and synced), and of `embed` over as many images that are pixels of the encoder's size, in
turn, in one process; ratios are of each round's own times, the figure their median: wall seconds, and the CPU seconds of the
whole process, which other work on the cores changes less. In those decoding counts, though a free core may do it.
Memory: what a process of its own has resident at most, sampled each 10 ms once 4,096 images are done. The images are drawn
when read. Writes docs/evidence/embed.json.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jepakit.artifacts.load import build_jepa
from jepakit.config.recipes import settings
from jepakit.core.device import configure_cpu
from jepakit.core.files import save_json
from jepakit.data.decoding.pixels import Pixels
from jepakit.data.opening import open_source
from jepakit.data.sources import ArraySource
from jepakit.evaluation.embeddings import embedding
from jepakit.evaluation.embeddings.embedder import Embedder
from jepakit.evaluation.embeddings.embedding import embed_source
from jepakit.evaluation.embeddings.files import ArrayEmbeddings, open_embeddings
from jepakit.evaluation.embeddings.index import Index, nearest_rows
from jepakit.model.encoder import Encoder

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence" / "embed.json"
SETTLED = 4096  # images after which what is resident counts


class Drawn(ArraySource):
    """n images of a side that are drawn when they are read."""

    def __init__(self, n: int, side: int) -> None:
        self.name, self.labels, self.n, self.side, self.read_so_far = "drawn", None, n, side, 0

    def __len__(self) -> int:
        return self.n

    def raw(self, index: int) -> Pixels:
        self.read_so_far += 1
        return np.random.default_rng(index).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)


def encoder_of(side: int, **shape: Any) -> Encoder:
    """An encoder of random weights with patches of 16 pixels, for square images."""
    config = settings(
        "small", "ijepa", {"encoder": {"patch_size": 16, **shape}, "images": {"size": side}, "masking": {"min_keep": 1}}
    )
    return Encoder(build_jepa(config).encoder, config.images, config.conditioning).requires_grad_(False).eval()


def speed(encoder: Encoder, n: int, rounds: int, photo: tuple[int, int]) -> dict[str, Any]:
    """Median ratios of embed's images a second over the encoder's, over JPEGs of (height, width) and over pixels."""
    side, draw = encoder.images.height_width, np.random.default_rng(0)
    ready = [torch.randn(len(part), 3, *side) for part in torch.arange(n).split(128)]
    times: dict[str, list[NDArray[np.float64]]] = {"encoder": [], "jpeg": [], "pixels": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for i in range(n):
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize(photo[::-1], Image.Resampling.BICUBIC).save(root / f"photos/{i:05}.jpg", quality=90)
        pixels = ArraySource("pixels", draw.integers(0, 256, (n, *side, 3), dtype=np.uint8), None)
        sources = {"jpeg": open_source(root / "photos"), "pixels": pixels}

        def run(kind: str, k: int) -> None:
            if kind == "encoder":
                with torch.inference_mode():
                    for batch in ready:
                        encoder(batch)
            else:
                embed_source(Embedder(encoder), sources[kind], root / f"{kind}{k}.parquet", encoder="", data="")

        run("encoder", 0)
        for k in range(rounds):
            for kind, found in times.items():
                began = np.array([time.monotonic(), time.process_time()])
                run(kind, k)
                found.append(np.array([time.monotonic(), time.process_time()]) - began)
    alone = np.array(times["encoder"])
    result: dict[str, Any] = {"images": n, "jpeg": photo, "encoder_images_per_cpu_second": n / float(np.median(alone[:, 1]))}
    for kind in sources:
        ratios = alone / np.array(times[kind])
        for column, unit in enumerate(("wall", "cpu")):
            result[f"{kind}_{unit}_ratio"] = float(np.median(ratios[:, column]))
            result[f"{kind}_{unit}_ratios"] = ratios[:, column].round(4).tolist()
    return result


def resident() -> int:
    """Bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _embed_drawn(n: int, ending: str, queue: Any) -> None:
    torch.set_num_threads(1)
    encoder = encoder_of(32, width=384, depth=1, heads=6)
    source, after, stop = Drawn(n, 32), [], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            if source.read_so_far >= min(SETTLED, n):
                after.append(resident())

    with tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=watch, daemon=True).start()
        out = embed_source(Embedder(encoder), source, Path(folder) / f"a.{ending}", encoder="", data="")
        stop.set()
        rows, size = len(open_embeddings(out)), out.stat().st_size
        seconds, peak = _search_file(out, stop=threading.Event())
    queue.put({"images": n, "file": ending, "rows": rows, "file_MiB": size >> 20, "first_MiB": after[0] >> 20,
               "peak_MiB": max(after) >> 20, "search_seconds": seconds, "search_peak_MiB": peak >> 20})  # fmt: skip


def _search_file(path: Path, stop: threading.Event) -> tuple[float, int]:
    found = [resident()]

    def watch() -> None:
        while not stop.wait(0.01):
            found.append(resident())

    index = Index(path)
    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    index.search(np.ones(int(np.prod(index.about["shape"])), np.float32), 10)
    seconds = time.monotonic() - started
    stop.set()
    return seconds, max(found)


def memory(n: int, ending: str) -> dict[str, Any]:
    """What a process of its own has resident at most while it embeds n drawn images, and then searches them."""
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_embed_drawn, args=(n, ending, queue))
    process.start()
    result: dict[str, Any] = queue.get()
    process.join()
    return result


def search_time(n: int, width: int, queries: int) -> dict[str, Any]:
    """Seconds for one query, and for several, among n vectors in memory, beside NumPy's product and sort of one query."""
    draw = np.random.default_rng(0)
    vectors: NDArray[np.float32] = draw.standard_normal((n, width), dtype=np.float32)
    rows, asked = ArrayEmbeddings({"vector": vectors}, {}), draw.standard_normal((queries, width), dtype=np.float32)
    times = {}
    for name, few in (("one", asked[:1]), ("all", asked)):
        started = time.monotonic()
        nearest_rows(rows, few, 10)
        times[name] = time.monotonic() - started
    started = time.monotonic()
    np.argsort(-(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ asked[0])[:10]
    return {"vectors": n, "width": width, "one_query_seconds": times["one"], "queries": queries,
            "all_queries_seconds": times["all"], "numpy_one_query_seconds": time.monotonic() - started}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--size", default="small")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0)
    args = parser.parse_args()
    configure_cpu(args.threads)
    found: dict[str, Any] = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {}
    if args.smoke:
        embedding.PART_ROWS = 128
        print(json.dumps(speed(encoder_of(64, size="tiny"), 64, 1, (96, 128)), indent=1))
        print(json.dumps(memory(256, "parquet"), indent=1))
        print(json.dumps(search_time(20_000, 64, 4), indent=1))
        return
    if args.memory:
        found["memory"] = [memory(n, ending) for ending in ("parquet", "npz") for n in (args.memory // 10, args.memory)]
        save_json(EVIDENCE, found)
    else:
        case = {"encoder": f"{args.size}, patches of 16, at 224", "threads": torch.get_num_threads()}
        found["speed"] = case | speed(encoder_of(224, size=args.size), args.images, args.rounds, (375, 500))
        found["search"] = search_time(1_000_000, 384, 32)
    save_json(EVIDENCE, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
