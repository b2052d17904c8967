"""evaluate and embed by several processes: results and files are those of one, to the bit, whatever is killed meanwhile."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepakit.core.errors import UserError
from jepakit.core.ranks import is_main
from jepakit.evaluation.embeddings import embedding
from jepakit.evaluation.embeddings.embedder import embedded
from jepakit.evaluation.embeddings.parts import EmbeddingParts
from jepakit.evaluation.tasks import evaluate_both
from jepakit.training.train import pretrain
from launch import ran, run_case
from test_dense import ade, video
from test_dense_layouts import coco
from test_resume import TINY

BROKEN = ("a/005.png", "b/270.png")  # of which each of two processes reads one: in the batches 1 and 4 of five
FEW = ["lidar.images=600", "lidar.views=2", "attentive.epochs=1"]
RUN_STEPS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images of two classes, two of them broken, and a run of two steps."""
    folder, draw = tmp_path_factory.mktemp("processes"), np.random.default_rng(0)
    for c, name in enumerate("ab"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(300):
            pixels = draw.integers(0, 120, (18, 20, 3))
            pixels[..., c] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"photos/{name}/{i:03}.png")
    for name in BROKEN:
        (folder / "photos" / name).write_bytes(b"no image")
    ade(folder / "pixels", images=20)
    coco(folder / "boxes")
    video(folder / "videos")
    words = [*TINY, f"optim.steps={RUN_STEPS}", "run.precision=fp32", "run.probe_images=0", "run.keep_every_steps=1"]
    pretrain(str(folder / "photos"), folder / "run", "small", "ec_ijepa", set=[*words, "run.timeout_seconds=60"])
    return folder


def parted(**how: Any) -> None:
    """`embed`, in parts of a batch."""
    before, embedding.PART_ROWS = embedding.PART_ROWS, 128
    try:
        embedding.embed(**how)
    finally:
        embedding.PART_ROWS = before


def killed(**how: Any) -> None:
    """`parted`, whose second process kills itself at its second batch, and which torchrun begins again."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        if os.environ["RANK"] == "0":  # before any other part can be made
            missing = EmbeddingParts(Path(f"{how['out']}.parts"), 5).missing
            Path(how["out"]).with_name("missing.txt").write_text(str(missing))
        parted(**how)
        return

    def cut(*asked: Any) -> Any:
        for number, each in enumerate(embedded(*asked)):
            if number and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            yield each

    embedding.embedded = cut
    parted(**how)


def stopped(**how: Any) -> None:
    """`parted`, which ends after the first part."""
    save = EmbeddingParts.save

    def full(self: EmbeddingParts, number: int, *rest: Any) -> None:
        if number:
            raise UserError("the disk is full")
        save(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
        patch.setattr(EmbeddingParts, "save", full)
        parted(**how)


def paired(**how: Any) -> None:
    """`evaluate_both`, whose differences are kept in a file."""
    _, found = evaluate_both(**how)
    if is_main():
        (Path(how["out"]) / "differences.json").write_text(
            json.dumps({t: {n: asdict(d) for n, d in f.items()} for t, f in found.items()})
        )


def cases(place: Path, tag: str) -> list[dict[str, Any]]:
    run, data, out = str(place / "run"), str(place / "photos"), place / tag
    tasks = "knn,attentive,lidar"
    judged = {"run": run, "data": data, "tasks": tasks, "set": FEW, "out": str(out / "judged")}
    along = {"runs": [run], "data": data, "tasks": "knn,lidar", "set": FEW, "out": str(out / "steps")}
    vectors = {"run": run, "data": data, "pool": "none", "precision": "bf16", "out": str(out / "vectors.parquet")}
    patches = {"run": run, "data": str(place / "pixels"), "out": str(out / "patches"), "set": ["segmentation.epochs=1"]}
    boxes = {"run": run, "data": str(place / "boxes"), "out": str(out / "boxes"), "set": ["segmentation.epochs=1"]}
    both = {"runs": [run, f"{run}@1"], "data": data, "tasks": "knn", "set": ["images_limit=300"], "out": str(out / "both")}
    followed = {"run": run, "data": str(place / "videos"), "out": str(out / "videos"), "set": ["davis.short_side=64"]}
    return [
        {"call": ("jepakit.evaluation.tasks", "evaluate"), **judged},
        {"call": ("jepakit.evaluation.tasks", "evaluate"), **patches, "tasks": "segmentation"},
        {"call": ("jepakit.evaluation.tasks", "evaluate"), **boxes, "tasks": "boxes"},
        {"call": ("jepakit.evaluation.tasks", "evaluate"), **followed, "tasks": "davis"},
        {"call": ("test_processes", "paired"), **both},
        {"call": ("jepakit.evaluation.steps.evaluate_steps", "evaluate_steps"), **along},
        {"call": ("test_processes", "parted"), **vectors},
    ]


@pytest.fixture(scope="module")
def said(place: Path) -> str:
    """What one process, and two, make of the same images; all that the two said."""
    for case in cases(place, "one"):
        run_case(case)
    run, data = str(place / "run"), str(place / "photos")
    singular = ["images_limit=150", "lidar.delta=0", "lidar.images=3", "lidar.views=2"]
    mistakes = [
        ["evaluate", run, "--data", str(place / "nowhere")],
        ["evaluate", run, "--data", data, "--tasks", "lidar", *singular, "--out", str(place / "bad")],
        ["evaluate", run, "--data", data, "--tasks", "segmentation", "--out", str(place / "bad")],
        ["embed", run, "--data", data, "--out", str(place / "two/vectors.parquet"), "--layer", "first"],
        ["embed", run, "--data", data, "--out", str(place / "two/vectors.parquet"), "--pool", "mean"],
    ]
    there = ["embed", run, "--data", data, "--out", str(place / "command.npz"), "--pool", "mean"]
    vectors, stop = cases(place, "broken")[-1], {"call": ("test_processes", "stopped")}
    broken, fewer = ({**vectors, "out": str(place / name)} for name in ("broken.parquet", "fewer.parquet"))
    run_case({**broken, **stop})
    again = {**broken, "call": ("test_processes", "killed")}
    asked = [{"words": there, "code": 0}, *({"words": words} for words in mistakes)]
    ran(2, [again, *cases(place, "two"), {**fewer, **stop}, *asked], place, "--max-restarts", "1")
    assert EmbeddingParts(place / "fewer.parquet.parts", 5).missing == [1, 2, 3, 4]
    run_case(fewer)
    return (place / "log.txt").read_text()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != "seconds"}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_what_two_processes_find_is_what_one_does_to_the_bit(place: Path, said: str) -> None:
    files = {path.relative_to(place / "one") for path in (place / "one").rglob("*") if path.is_file()}
    assert files == {path.relative_to(place / "two") for path in (place / "two").rglob("*") if path.is_file()}
    assert len(files) > 12 and {Path("patches/segmentation.npz"), Path("boxes/boxes.npz"), Path("videos/davis.npz")} <= files
    for name in files:
        one, two = place / "one" / name, place / "two" / name
        if name.suffix == ".json":
            assert without_times(json.loads(one.read_text())) == without_times(json.loads(two.read_text())), name
        elif name.suffix == ".npz":
            with np.load(one) as x, np.load(two) as y:
                assert x.files == y.files and all(np.array_equal(x[k], y[k], equal_nan=x[k].dtype.kind == "f") for k in x.files)
        else:
            assert one.read_bytes() == two.read_bytes(), name


def test_images_that_cannot_be_read_are_said_once_and_mistakes_once(place: Path, said: str) -> None:
    for name, both in zip(BROKEN, (2, 0), strict=True):  # two runs that are compared look at every second image
        of_one_and_of_steps = 2 + 2  # features and views
        assert said.partition("error: ")[0].count(f"left out of the evaluation: {name}: ") == of_one_and_of_steps + both
    assert (place / "two" / "vectors.parquet.bad.csv").read_text().count("\n") == 3
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    for sentence, begins in zip(sentences, ("", "", "", "layer=first: ", f"{place / 'two/vectors.parquet'} holds "), strict=True):
        assert sentence.startswith(f"error: {begins}"), sentence
    assert "nowhere" in sentences[0] and "set lidar.delta=1e-4" in sentences[1] and "images/" in sentences[2]
    assert (
        said.count("embeddings: ") == 1
        and said.count("features 127/600") <= 3
        and "Traceback" not in said.rpartition("terminated with signal SIGKILL")[2]
    )


def test_a_file_goes_on_in_another_number_of_processes_and_after_a_kill(place: Path, said: str) -> None:
    for name in ("broken.parquet", "fewer.parquet"):
        assert (place / name).read_bytes() == (place / "one" / "vectors.parquet").read_bytes()
        assert not (place / f"{name}.parts").exists()
    assert "exitcode: -9" in said
    assert (place / "missing.txt").read_text() == "[3, 4]"  # one part by one process, two by two before the kill
