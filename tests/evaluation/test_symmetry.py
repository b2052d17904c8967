"""Evaluation averaged over an image's turns: the same of an image however it is turned, and refused where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jepakit.artifacts.load import build_jepa
from jepakit.config.config import overrides, resolve
from jepakit.core.errors import UserError
from jepakit.data.sources import ArraySource
from jepakit.evaluation.features import RAW, extract
from jepakit.evaluation.probes import finetune as ft
from jepakit.evaluation.tasks import evaluate
from jepakit.model.encoder import Encoder
from jepakit.training.train import pretrain

TINY = [
    *("encoder.width=16", "encoder.depth=2", "encoder.heads=2", "encoder.patch_size=4", "predictor.width=8", "predictor.depth=1"),
    *("images.size=16", "optim.batch_size=8", "optim.steps=1", "run.threads=1", "run.precision=fp32", "run.probe_images=0"),
]


def in_all_turns() -> ArraySource:
    """One square of noise in its eight turns, by numpy alone."""
    square = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    images = [np.rot90(side, k) for side in (square, square[:, ::-1]) for k in range(4)]
    return ArraySource("turns", np.stack(images), None)


def encoder() -> Encoder:
    config = resolve(overrides(TINY))
    return Encoder(build_jepa(config).encoder, config.images).eval()


@pytest.mark.parametrize(("symmetry", "alike"), [("d4", 8), ("mirror", 2), (None, 1)])
def test_averaged_features_are_those_of_an_image_however_it_is_turned(symmetry: str | None, alike: int) -> None:
    source, judged = in_all_turns(), encoder()
    found, _ = extract(source, {"it": judged}, symmetry=symmetry, last4=True, tokens=True)  # type: ignore[arg-type]
    x = found["it"]
    assert x.last4 is not None and x.tokens is not None
    for of in (x.last, x.last4):
        same = [i for i in range(8) if torch.allclose(of[i], of[0], atol=1e-5)]
        assert len(same) == alike and (alike != 2 or same == [0, 4])  # 4: mirrored left to right
    tokens = x.tokens.float().view(8, 4, 4, -1).numpy()  # each where its patch is
    follow = [np.allclose(tokens[i], np.rot90(tokens[0] if i < 4 else tokens[0][:, ::-1], i % 4), atol=1e-2) for i in range(8)]
    assert sum(follow) == alike
    plain, _ = extract(source, {"it": judged}, last4=True)
    assert torch.equal(found[RAW].last, plain[RAW].last)
    if symmetry == "d4":  # the mean of what each turn gives
        torch.testing.assert_close(x.last[0], plain["it"].last.mean(0))
        assert plain["it"].last4 is not None
        torch.testing.assert_close(x.last4[3], plain["it"].last4.mean(0))


def test_a_fine_tuned_encoders_scores_are_averaged() -> None:
    source = in_all_turns()
    model = ft.Classifier(encoder(), 3, ft.FineTuning(head_std=0.5), 0)
    view = ft._View(source, model.encoder.images, False, ft.FineTuning(), 0)
    with torch.no_grad():
        scores = model(model.encoder.normalise(view.of(np.arange(8), None)[1]))
    averaged = ft._predict(model, view, np.arange(8), "d4")
    torch.testing.assert_close(averaged, scores.mean(0).expand(8, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ft._predict(model, view, np.arange(8), None), scores)


def test_a_run_of_images_without_an_up_resumes_and_is_judged_so(tmp_path: Path) -> None:
    data = tmp_path / "turns.npz"
    np.savez(data, images=np.concatenate([in_all_turns().images] * 3), labels=np.arange(24) % 2)
    run = pretrain(str(data), tmp_path / "run", method="ijepa", set=[*TINY, "images.symmetry=d4", "images.target_crop=own"])
    assert run.config.images.symmetry == "d4" and "symmetry: d4" in (run.path / "config.yaml").read_text()
    evaluate(run, str(data), "knn", set=["symmetry=d4"])
    assert '"symmetry": "d4"' in (run.path / "evaluation" / "knn.json").read_text()
    with pytest.raises(UserError, match="symmetry=mirror: segmentation, boxes, davis average nothing"):
        evaluate(run, str(data), "segmentation", set=["symmetry=mirror"])
    wide = pretrain(str(data), tmp_path / "wide", method="ijepa", set=[*TINY, "images.size=[16,32]"])
    for words, tasks in (("symmetry=d4", "knn"), ("finetune.symmetry=d4", "finetune")):
        with pytest.raises(UserError, match=r"symmetry: d4 has quarter turns.* 16x32 would come out as 32x16"):
            evaluate(wide, str(data), tasks, set=[words])
