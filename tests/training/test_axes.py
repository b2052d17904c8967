"""What is off unless chosen: a run with it trains, goes on after a kill in the same bits, and can be planned."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepakit.artifacts import checkpoint
from jepakit.artifacts.run import Run
from jepakit.planning.plan import plan
from jepakit.training.train import pretrain
from test_phases import STEPS, TINY, same, tensors

CHOSEN = {
    "layers": ["method=ijepa", "target.layers=[0,1]"],
    "layers, EC, VICReg": ["method=ec_c_jepa", "target.layers=[0,1]", "regularizer.projector=[8]"],
    "contrast": ["method=ijepa", "masking.prior=contrast", "masking.draws=2", "images.symmetry=mirror"],
    "contrast, EC, SIGReg": ["method=ec_ijepa", "masking.prior=contrast", "masking.bias=1", "regularizer.kind=sigreg"],
    "mask files, two contexts": ["method=c_jepa", "masking.prior=file", "masking.prior_folder={masks}", "masking.contexts=2"],
    "layers after pixels": ["method=ijepa", "target.layers=[0,1]", "target.pixels_first=4"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Noise of another strength in each quarter, and masks of that in a folder of their own."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder.parent / "masks").mkdir(exist_ok=True)
    for i in range(24):
        noise = draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        noise[:10, (i % 2) * 10 :][:, :10] //= 16
        Image.fromarray(noise).save(folder / f"{i:02}.png")
        Image.fromarray((noise > 128).any(-1)).save(folder.parent / "masks" / f"{i:02}.png")
    return str(folder)


@pytest.mark.parametrize("words", CHOSEN.values(), ids=CHOSEN)
def test_what_is_chosen_trains_resumes_in_the_same_bits_and_is_planned(words: list[str], photos: str, tmp_path: Path) -> None:
    given = [*TINY, "encoder.depth=2", *(word.format(masks=Path(photos).parent / "masks") for word in words)]
    run = pretrain(photos, tmp_path / "run", "small", set=given)
    rows = run.metrics()
    assert run.finished and all(np.isfinite([row["loss"], row["position_share"]]).all() for row in rows)
    assert all(-1 <= row["own_cosine"] <= 1 for row in rows if np.isfinite(row["own_cosine"]))
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, symlinks=True)
    for later in range(6, STEPS + 1):
        shutil.rmtree(copy / "checkpoints" / checkpoint.step_name(later))
    again: Run = pretrain(resume=copy)
    same(tensors(run, STEPS), tensors(again, STEPS))
    assert [row["loss"] for row in again.metrics()] == [row["loss"] for row in rows]
    found = plan("small", device="T4", set=given)
    assert found.memory.total > 0 and found.flops.total > 0
