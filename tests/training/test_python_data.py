"""Images that Python holds train and judge as the same files on disk do; hooks are called with what is written."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import jepakit
from jepakit.artifacts import checkpoint
from jepakit.artifacts.run import Run
from jepakit.cli import main
from jepakit.core.errors import UserError
from jepakit.data.opening import given_images, open_source
from jepakit.data.sets.held import held_source
from jepakit.data.sources import Source

STEPS = 10
TINY = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=16 "
    "masking.min_keep=2 optim.batch_size=8 optim.lr=3e-3 run.threads=1 run.log_every_steps=3 run.save_every_steps=4 "
    f"run.precision=fp32 run.probe_images=16 optim.steps={STEPS}"
).split()
SIDE, CLASSES = 20, ("ants", "bees")


class Pairs(Dataset[Any]):
    """(image, label) by index."""

    def __init__(self, images: list[Any], labels: list[Any]) -> None:
        self.images, self.labels_ = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels_[index]


class Known(Pairs):
    """As torchvision's: labels are known without reading an image."""

    def __init__(self, images: list[Any], labels: list[Any]) -> None:
        super().__init__(images, labels)
        self.targets, self.classes = labels, [*CLASSES]


@pytest.fixture(scope="module")
def array() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(array: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as PNGs, the first half in the folder of one class."""
    root = tmp_path_factory.mktemp("files")
    for i, image in enumerate(array):
        place = root / CLASSES[i // 20]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{i:02}.png")
    return root


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


LABELS = [i // 20 for i in range(40)]
HELD: dict[str, Callable[[NDArray[np.uint8], Path], Any]] = {
    "array": lambda array, folder: (array, LABELS),
    "channels first": lambda array, folder: (array.transpose(0, 3, 1, 2), np.array(LABELS)[:, None]),
    "tensor": lambda array, folder: (torch.from_numpy(array), torch.tensor(LABELS)),
    "PIL": lambda array, folder: ([Image.fromarray(image) for image in array], LABELS),
    "opened": lambda array, folder: (tuple(Image.open(file) for file in files_of(folder)), [CLASSES[i] for i in LABELS]),
    "paths": lambda array, folder: (files_of(folder), LABELS),
    "text": lambda array, folder: ([str(file) for file in files_of(folder)], LABELS),
    "Dataset": lambda array, folder: Pairs([Image.fromarray(image) for image in array], LABELS),
    "Dataset of arrays": lambda array, folder: Known([*array], LABELS),
    "TensorDataset": lambda array, folder: TensorDataset(
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(), torch.tensor(LABELS)
    ),
}


def weights(run: Run) -> dict[str, Tensor]:
    found = checkpoint.load_checkpoint(run.checkpoints / "latest")
    assert found.state["step"] == 10
    return {f"{group}.{name}": value for group, part in found.tensors.items() for name, value in part.items()}


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in run.metrics()]


@pytest.fixture(scope="module")
def on_disk(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run = jepakit.pretrain(str(folder), tmp_path_factory.mktemp("runs") / "disk", recipe="small", set=TINY)
    return run, jepakit.evaluate(run, folder, "knn,linear", set="linear.epochs=2")


def numbers(results: dict[str, Any]) -> Any:
    return {
        task: [{k: v for k, v in dict(row).items() if k not in ("seconds", "data", "source")} for row in found]
        for task, found in results.items()
    }


@pytest.mark.parametrize("kind", HELD)
def test_the_same_images_give_the_same_bits_and_numbers(
    kind: str, array: NDArray[np.uint8], folder: Path, on_disk: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    disk, judged = on_disk
    run = jepakit.pretrain(HELD[kind](array, folder), tmp_path / "run", recipe="small", set=TINY)
    ours, theirs = weights(run), weights(disk)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rows(run) == rows(disk), "the look at the encoder too: the same images, labels and part that is held out"
    results = jepakit.evaluate(run, HELD[kind](array, folder), "knn,linear", set="linear.epochs=2")
    assert numbers(results) == numbers(judged)


def test_a_run_notes_what_it_was_given_and_asks_for_it_again(
    array: NDArray[np.uint8], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class StopError(Exception):
        pass

    def stop(path: Path, step: int) -> None:
        if step == 4:
            raise StopError

    straight = jepakit.pretrain(array, tmp_path / "straight", recipe="small", set=TINY)
    with pytest.raises(StopError):
        jepakit.pretrain(array, tmp_path / "run", recipe="small", set=TINY, on_checkpoint=stop)
    run = Run.open(tmp_path / "run")
    assert run.config.data == "in memory: a NumPy array of 40 images"
    with pytest.raises(UserError, match=r"in memory: a NumPy array of 40 images: only Python.*resume='.*run', data=\.\.\."):
        jepakit.pretrain(resume=run)
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--resume", str(run.path)])
    assert left.value.code == 2 and "only Python can give them again" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(UserError, match="in Python's memory, a NumPy array of 40 images: give them again"):
        jepakit.evaluate(run)
    with pytest.raises(UserError, match="saw 40 images and in a NumPy array of 39 images now there are 39"):
        jepakit.pretrain(resume=run, data=array[:39])
    with pytest.raises(UserError, match="are not those that the run began with"):
        jepakit.pretrain(resume=run, data=255 - array)
    with pytest.raises(UserError, match="are not those that the run began with"):
        jepakit.pretrain(resume=run, data=array[::-1])
    assert run.state["step"] == 4
    jepakit.pretrain(resume=run, data=[Image.fromarray(image) for image in array])
    assert run.config.data == "in memory: a list of 40 images"
    ours, theirs = weights(run), weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and rows(run) == rows(straight)


def test_files_of_a_list_may_move_and_must_hold_the_same(folder: Path, tmp_path: Path) -> None:
    files = files_of(folder)
    run = jepakit.pretrain(files, tmp_path / "run", recipe="small", set=TINY)
    moved = tmp_path / "elsewhere"
    for file in files:
        (moved / file.parent.name).mkdir(parents=True, exist_ok=True)
        (moved / file.parent.name / file.name).write_bytes(file.read_bytes())
    assert jepakit.pretrain(resume=run, data=files_of(moved)).finished
    for file in files_of(moved):
        Image.new("RGB", (SIDE, SIDE), "red").save(file)
    with pytest.raises(UserError, match="a list of 40 paths are not those that the run began with"):
        jepakit.pretrain(resume=run, data=files_of(moved))


def test_an_evaluation_knows_images_that_python_held_by_what_they_hold(array: NDArray[np.uint8], tmp_path: Path) -> None:
    """Two arrays of one size are called the same, and are not."""
    run = jepakit.pretrain(array, tmp_path / "run", recipe="small", set=TINY)
    for images, seen in ((array, 8), ([Image.fromarray(image) for image in array], 8), (255 - array, None)):
        jepakit.evaluate(run, (images, LABELS), "knn", out=tmp_path / "out")
        assert json.loads((tmp_path / "out" / "knn.json").read_text())["seen_test"] == seen


def test_check_and_plan_take_them_too(array: NDArray[np.uint8]) -> None:
    again = np.concatenate([array, array[:1]])
    checked = jepakit.check(again)
    assert checked.samples == 41 and checked.data == "in memory: a NumPy array of 41 images"
    assert jepakit.plan("small", data=array, device="H200", set=TINY).method == "c_jepa"


def test_hooks_are_called_with_the_rows_and_the_checkpoints(array: NDArray[np.uint8], tmp_path: Path) -> None:
    logged, saved = list[dict[str, Any]](), list[tuple[Path, int]]()

    def on_log(row: dict[str, Any]) -> None:
        assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == row["step"], "written"
        logged.append(dict(row))
        row.clear()  # ours to do with as we like

    def on_checkpoint(path: Path, step: int) -> None:
        assert json.loads((path / "state.json").read_text())["step"] == step
        saved.append((path, step))

    run = jepakit.pretrain(array, tmp_path / "run", recipe="small", set=TINY, on_log=on_log, on_checkpoint=on_checkpoint)
    assert logged == run.metrics() and [row["step"] for row in logged] == [3, 6, 9, 10]
    assert [step for _, step in saved] == [0, 4, 8, 10] and saved[-1][0].parent == run.checkpoints
    assert "on_log" not in (run.path / "config.yaml").read_text()


def test_what_a_hook_raises_ends_the_run_as_it_is(array: NDArray[np.uint8], tmp_path: Path) -> None:
    def on_log(row: dict[str, Any]) -> None:
        if row["step"] == 6:
            raise OSError("the pager is full")  # not to be taken for a full disk of ours

    straight = jepakit.pretrain(array, tmp_path / "straight", recipe="small", set=TINY)
    with pytest.raises(OSError, match="the pager is full"):
        jepakit.pretrain(array, tmp_path / "run", recipe="small", set=TINY, on_log=on_log)
    run = Run.open(tmp_path / "run")
    assert run.state["step"] == 4
    jepakit.pretrain(resume=run, data=array)
    ours, theirs = weights(run), weights(straight)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and rows(run) == rows(straight)
    with pytest.raises(UserError, match="on_log: give a function, not a int"):
        jepakit.pretrain(array, tmp_path / "x", on_log=3)  # type: ignore[arg-type]


# ---- what a source makes of what is given


def test_labels_of_a_dataset(array: NDArray[np.uint8]) -> None:
    reads = list[int]()

    class Counted(Known):
        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    source = held_source(Counted([*array], LABELS))
    assert source.labels is not None and source.labels.classes == CLASSES and source.labels.values.tolist() == LABELS
    assert len({*reads}) <= 8, "with targets no more than a few samples are read"
    part = held_source(Subset(Known([*array], LABELS), [39, 0, 20, 1]))
    assert part.labels is not None and part.labels.values.tolist() == [1, 0, 1, 0] and np.array_equal(part.raw(0), array[39])
    short = Known([*array], LABELS)
    short.targets = LABELS[:9]  # not those of the samples
    part = held_source(Subset(short, [39, 0, 20, 1]))
    assert part.labels is not None and part.labels.values.tolist() == [1, 0, 1, 0], "as the samples say it"
    changed = Known([*array], [1 - label for label in LABELS])
    changed.targets, changed.target_transform = LABELS, abs  # type: ignore[attr-defined]
    other = held_source(changed)
    assert other.labels is not None and other.labels.values.tolist() == [1 - i for i in LABELS], "as the samples say it"
    words = held_source(Pairs([*array], ["cat", None, *["dog"] * 38]))
    assert words.labels is not None and words.labels.classes == ("cat", "dog") and words.labels.values[:3].tolist() == [0, -1, 1]
    none = held_source(Pairs([*array], [{"boxes": 1}] * 40))
    assert none.labels is None and "no whole number or word" in none.notes[0]
    assert held_source(TensorDataset(torch.from_numpy(array))).labels is None


def test_a_sample_that_a_dataset_cannot_give_is_a_bad_image(array: NDArray[np.uint8], tmp_path: Path) -> None:
    class Holed(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise RuntimeError("disk on fire")
            return super().__getitem__(index)

    words = [*TINY, "images.max_bad=0.2"]
    jepakit.pretrain(Holed([*array], LABELS), tmp_path / "run", recipe="small", set=words)
    state = Run.open(tmp_path / "run").state
    assert [*state["bad"]] == ["7"] and "disk on fire" in state["bad"]["7"]


def test_a_dataset_is_read_by_one_thread_at_a_time(array: NDArray[np.uint8], tmp_path: Path) -> None:
    inside = list[int]()

    class Alone(Pairs):
        def __getitem__(self, index: int) -> Any:
            inside.append(index)
            assert len(inside) == 1
            found = Image.fromarray(self.images[index]).resize((300, 300)).resize((SIDE, SIDE)), self.labels_[index]
            inside.pop()
            return found

    run = jepakit.pretrain(Alone([*array], LABELS), tmp_path / "run", recipe="small", set=[*TINY, "run.loader_threads=8"])
    assert not run.state["bad"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Noise(Pairs):
    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().integers(0, 256, (9, 9, 3), dtype=np.uint8), 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "data: give a path, .* an array .* a Dataset; .* not a int"),
        ({"a": 1}, "not a dict"),
        ([], "a list of 0 images holds none"),
        (np.zeros((0, 9, 9, 3), np.uint8), "a NumPy array of 0 images holds none"),
        (np.zeros((9, 9, 3), np.uint8), r"\(9, 9, 3\) is one image.*images\[None\]"),
        (np.zeros((9, 9), np.uint8), r"\(9, 9\): give \(N, H, W\)"),
        (np.zeros((5, 9, 9, 3), np.int64), "holds int64: give uint8, uint16 or floats"),
        (torch.zeros(5, 3, 9, 9, dtype=torch.bool), "holds bool"),
        (np.zeros((5, 3, 9, 3), np.uint8), r"in \(3, 9, 3\) channels cannot be told from rows and columns"),
        (np.zeros((5, 9, 9, 9), np.uint8), "cannot be told"),
        (np.array(["a"], object), r"\(1,\): give"),
        ([3], r"data\[0\] is a int"),
        (["no.png"], r"data\[0\]: no such file: .*no\.png"),
        ([np.zeros((9, 9, 3), np.uint8), "a.png"], r"data\[1\] is a str: give a list of one kind"),
        ((np.zeros((4, 9, 9, 3), np.uint8), [0, 1]), "2 labels for 4 images"),
        ((np.zeros((2, 9, 9, 3), np.uint8), [0, "a"]), "are numbers and words"),
        ((np.zeros((2, 9, 9, 3), np.uint8), np.zeros((2, 10))), "labels are to be a whole number or a word for each"),
        ((np.zeros((2, 9, 9, 3), np.uint8), [0.5, 1]), "labels are to be a whole number or a word for each"),
        (Stream(), "an IterableDataset has no order"),
        (Noise([0] * 4, [0] * 4), "another image each time it is read: leave out its random transforms"),
        (Pairs([{"image": 1}] * 4, [0] * 4), "no readable image in a Dataset .Pairs. of 4 images.*a dict: give PIL images"),
    ],
)
def test_what_is_no_set_of_images_is_said(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        given_images(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 20, 30), (6, 20, 30, 1), (6, 20, 30, 13), (6, 13, 20, 30), (6, 3, 20, 20)])
def test_arrays_of_any_depth_and_bands(dtype: Any, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    source: Source = held_source(array)
    pixels = source.read(4)
    expected = array[4][..., None] if len(shape) == 3 else array[4].transpose(1, 2, 0) if shape[1] < shape[3] else array[4]
    assert pixels.dtype == (np.float32 if np.dtype(dtype).kind == "f" else dtype)
    assert np.array_equal(pixels, expected.astype(pixels.dtype)) and source.title(4) == "4"


def test_numpys_own_file_is_the_same_images(array: NDArray[np.uint8], tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=array)
    there, here = open_source(tmp_path / "images.npz"), held_source(array)
    assert all(np.array_equal(there.read(i), here.read(i)) for i in range(40))
    assert re.fullmatch("a NumPy array of 40 images", here.name)


def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    names: dict[str, Any] = {"__name__": "page"}
    exec(code.replace("num_workers=2", "num_workers=0"), names)
    assert torch.cat(names["vectors"]).shape == names["encoder"].embed(names["array"]).shape == (64, names["encoder"].width)
    assert names["run"].finished


def test_importing_the_package_imports_nothing_else() -> None:
    """So it is quick; what is optional is not looked for either."""
    code = "import sys; before = {*sys.modules}; import jepakit; print(*sorted({*sys.modules} - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in found} <= {"jepakit", *sys.stdlib_module_names}
    optional = (
        "torchvision",
        "tensorboard",
        "wandb",
        "pyarrow",
        "tifffile",
        "optuna",
        "aiohttp",
        "huggingface_hub",
        "transformers",
    )
    code = f"import sys; from jepakit import *; print(*sorted({{*sys.modules}} & {{*{optional!r}}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_package_is_typed() -> None:
    assert (Path(jepakit.__file__).parent / "py.typed").is_file()
