"""Dense tasks on frozen encoders: cases worked by hand, scikit-learn and scipy as judges, plain loops as oracles."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import jaccard_score
from torch import Tensor, nn

from jepakit.core.compare import exact
from jepakit.core.errors import UserError
from jepakit.evaluation.dense.annotated import open_annotated
from jepakit.evaluation.dense.davis import (
    Propagation,
    boundary,
    davis,
    frame_size,
    hard,
    open_sequences,
    propagate,
    region,
    score,
)
from jepakit.evaluation.dense.detection import Pyramid, mask_rcnn, pyramid_blocks
from jepakit.evaluation.dense.iou import confusion, iou, miou, pixel_accuracy, resamples
from jepakit.evaluation.dense.label_images import LabelValues, label_image, read_labels
from jepakit.evaluation.dense.patch_tokens import PatchTokens
from jepakit.evaluation.dense.segmentation import PixelHead, _cached, segmentation
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.vit import ViT, ViTConfig


def encoder(patch: int = 4, size: int = 16, depth: int = 1, conditioning: PositionConditioning | None = None) -> Encoder:
    torch.manual_seed(0)
    config = ViTConfig(patch_size=patch, width=16, depth=depth, heads=2)
    return Encoder(ViT(config, (size // patch, size // patch)), ImageSettings(size=size), conditioning).eval()


def save(path: Path, array: NDArray[np.uint8], mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray(array, "L")
        image.putpalette([(7 * i) % 256 for i in range(768)])  # colours that say nothing of the label
    image.save(path, quality=95)


# ---- segmentation: scores


def test_mean_iou_by_hand_and_a_class_without_pixels_is_left_out() -> None:
    matrix = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(matrix), [3 / 6, 4 / 7, np.nan])
    assert miou(matrix) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert pixel_accuracy(matrix) == pytest.approx(7 / 10)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    assert miou(np.array([[3, 1], [0, 0]])) == pytest.approx((3 / 4 + 0) / 2)


def test_confusion_counts_truth_in_rows_and_leaves_ignored_truth_out() -> None:
    truth, predicted = np.array([[0, 0, 0], [9, 9, 1]]), np.array([[0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(confusion(predicted, truth, 2, ignore=9), [[1, 2], [0, 1]])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        confusion(predicted, truth, 2)


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.RandomState(0)
    truth, predicted = random.randint(-1, 6, (40, 30)), random.randint(0, 6, (40, 30))
    truth[truth == 4] = 3
    predicted[predicted == 4] = 3  # class 4 is nowhere
    matrix, known = confusion(predicted, truth, 6), truth >= 0
    present = [0, 1, 2, 3, 5]
    judge = jaccard_score(truth[known], predicted[known], labels=present, average=None)
    np.testing.assert_allclose(iou(matrix)[present], judge)
    assert miou(matrix) == pytest.approx(judge.mean())
    assert pixel_accuracy(matrix) == pytest.approx((truth == predicted)[known].mean())


def test_prediction_a_few_classes_at_a_time_is_the_argmax_of_the_upsampled_logits() -> None:
    torch.manual_seed(0)
    head = PixelHead(torch.randn(5), torch.rand(5) + 0.5, 37)
    nn.init.normal_(head.linear.weight)
    tokens = torch.randn(2, 3, 4, 5)
    assert torch.equal(head.predict(tokens, (13, 17)), head(tokens, (13, 17)).argmax(1))
    by_hand = head.linear((tokens[0, 1, 2] - head.mean) / head.std)
    torch.testing.assert_close(head(tokens, (3, 4))[0, :, 1, 2], by_hand)


# ---- segmentation: the whole way


COLOURS = np.array([(128, 128, 128), (220, 40, 40), (40, 60, 220)], np.uint8)


def label_map(random: np.random.RandomState) -> NDArray[np.uint8]:
    """(24, 32): 1 on the left, 2 on the right of a line at a patch's edge, some 0."""
    labels = np.ones((24, 32), np.uint8)
    labels[:, 8 * random.randint(1, 4) :] = 2
    labels[:4, :5] = 0
    return labels


def ade(root: Path, other: int = 0, images: int = 10) -> Path:
    """A folder in ADE20K's layout whose pixels' colours are their labels."""
    random = np.random.RandomState(0)
    for part, count in (("training", images), ("validation", 4)):
        for i in range(count):
            labels = label_map(random)
            save(root / "images" / part / f"{i}.jpg", COLOURS[labels])
            save(root / "annotations" / part / f"{i}.png", np.where(labels == 0, other, labels).astype(np.uint8))
    return root


def test_colours_are_segmented_from_raw_pixels_and_the_majority_is_scored_as_by_hand(tmp_path: Path) -> None:
    root = ade(tmp_path)
    kept = tmp_path / "results" / "segmentation.npz"
    rows = {row["name"]: row for row in segmentation({"e": encoder()}, root, epochs=30, seed=3, keep=kept)}
    what_is_kept_is_what_was_scored(kept, root, rows["e"])
    assert list(rows) == ["e", "raw pixels", "majority class"]
    assert rows["raw pixels"]["miou"] > 0.9
    for row in rows.values():
        assert row["low"] <= row["miou"] <= row["high"] and len(row["per_class"]) == 2
    train = [np.array(Image.open(p)) for p in (root / "annotations" / "training").iterdir()]
    test = np.stack([np.array(Image.open(p)) for p in sorted((root / "annotations" / "validation").iterdir())])
    most = 1 if sum((t == 1).sum() for t in train) > sum((t == 2).sum() for t in train) else 2
    share = (test == most).sum() / (test > 0).sum()
    assert rows["majority class"]["miou"] == pytest.approx(share / 2)
    assert rows["majority class"]["pixel_accuracy"] == pytest.approx(share)
    assert rows["majority class"]["per_class"][2 - most] == 0
    matrices = np.stack([confusion(np.full_like(t, most), t, 3, ignore=0)[1:, 1:] for t in test])
    drawn = [miou(np.tensordot(weights, matrices, 1)) for weights in resamples(4, 3)]
    bounds = [rows["majority class"][k] for k in ("low", "high")]
    np.testing.assert_allclose(bounds, np.quantile(drawn, (0.025, 0.975)))


def what_is_kept_is_what_was_scored(path: Path, root: Path, row: dict[str, Any]) -> None:
    """All four test images are few and small enough to be kept whole."""
    with np.load(path, allow_pickle=False) as kept:
        assert kept["classes"].tolist() == row["classes"] == ["1", "2"] and kept["ids"].tolist() == [f"{i}.jpg" for i in range(4)]
        total = np.zeros((2, 2), np.int64)
        for i in range(4):
            labels = np.array(Image.open(root / "annotations" / "validation" / f"{i}.png")).astype(int) - 1
            np.testing.assert_array_equal(kept[f"truth/{i}"], labels)
            assert kept[f"truth/{i}"].shape == kept[f"image/{i}"].shape[:2] and str(kept[f"title/{i}"]) == f"{i}.jpg"
            assert kept["truth"][i].tolist() == [(labels == c).sum() for c in range(2)]
            near = np.abs(kept[f"image/{i}"].astype(int) - COLOURS[labels + 1]).mean()
            assert near < 30  # through the encoder's size and back
            total += confusion(kept[f"predicted/{i}"], labels, 2)
        assert iou(total).tolist() == row["per_class"]
        np.testing.assert_allclose(np.quantile(kept["drawn/miou"], (0.025, 0.975)), [row["low"], row["high"]])


@pytest.mark.parametrize("images", [1, 3])
def test_images_that_are_all_segmented_alike_leave_an_interval_as_wide_as_so_few_do(tmp_path: Path, images: int) -> None:
    root = ade(tmp_path)
    for kind, end in (("images", "jpg"), ("annotations", "png")):  # all of the test is one class, which any head learns
        for old in (root / kind / "validation").iterdir():
            old.unlink()
        for i in range(images):
            labels = np.full((32, 48), 1, np.uint8)
            save(root / kind / "validation" / f"{i}.{end}", COLOURS[labels] if end == "jpg" else labels)
    row = segmentation({"e": encoder()}, root, epochs=30, seed=3)[1]
    assert (row["name"], row["miou"]) == ("raw pixels", 1)
    assert (row["low"], row["high"]) == pytest.approx((0.025 ** (1 / images), 1))


def test_a_bootstrap_sample_draws_as_many_units_as_there_are_each_as_often() -> None:
    drawn = resamples(7, 0)
    assert (drawn.sum(1) == 7).all() and (drawn == drawn.round()).all()
    assert np.abs(drawn.mean(0) - 1).max() < 4 / math.sqrt(len(drawn))
    assert (drawn == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.03)


def test_training_labels_are_the_nearest_and_never_a_class_between(tmp_path: Path) -> None:
    root = ade(tmp_path, images=5)
    for path in sorted((root / "annotations" / "training").iterdir()):
        labels = np.array(Image.open(path))
        save(path, np.where(labels == 2, 7, labels).astype(np.uint8))
    cache = _cached("", PatchTokens(encoder(), raw=True), open_annotated(root), (16, 16))
    assert cache.labels.shape == (5, 16, 16) and set(cache.labels.unique().tolist()) == {-1, 0, 6}
    first = Image.open(root / "annotations" / "training" / "0.png").resize((16, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(cache.labels[0], np.array(first).astype(int) - 1)
    assert cache.tokens.shape == (5, 4, 4, 48) and cache.tokens.dtype == torch.float16


def test_pixels_of_other_and_of_255_have_no_part_in_anything(tmp_path: Path) -> None:
    a, b = ade(tmp_path / "a"), ade(tmp_path / "b", other=255)
    one = {"epochs": 2, "lrs": [0.01]}
    assert segmentation({"e": encoder()}, a, **one) == segmentation({"e": encoder()}, b, **one)


def test_the_same_seed_gives_the_same_rows_and_the_size_may_be_another(tmp_path: Path) -> None:
    root = ade(tmp_path)
    first, again = (segmentation({"e": encoder()}, root, 24, epochs=1, lrs=[0.01], limit=6) for _ in range(2))
    assert first == again
    with pytest.raises(UserError, match="multiple of the patch size 4"):
        segmentation({"e": encoder()}, root, 18)


def test_labels_are_shifted_where_zero_is_other_and_classes_are_as_many_as_found(tmp_path: Path) -> None:
    root = ade(tmp_path)
    assert open_annotated(root).classes == 2
    assert open_annotated(root, zero_is_other=False).classes == 3
    file = root / "annotations" / "training" / "0.png"
    raw = np.array(Image.open(file))
    np.testing.assert_array_equal(read_labels(file, LabelValues(True)), raw.astype(int) - 1)
    np.testing.assert_array_equal(read_labels(file, LabelValues(False)), raw)
    assert open_annotated(root).pixels.sum() == 10 * (24 * 32 - 20)


def test_labels_of_palette_and_of_16_bits_are_their_numbers(tmp_path: Path) -> None:
    save(tmp_path / "p.png", np.array([[0, 2], [1, 255]], np.uint8), "P")
    np.testing.assert_array_equal(label_image(tmp_path / "p.png"), [[0, 2], [1, 255]])
    Image.fromarray(np.array([[0, 255], [300, 65535]], np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "deep.png", LabelValues(True)), [[-1, 254], [299, -1]])


def test_wrong_folders_are_told_in_one_sentence(tmp_path: Path) -> None:
    def told(root: Path) -> str:
        with pytest.raises(UserError) as caught:
            segmentation({"e": encoder()}, root, epochs=1, lrs=[0.01])
        return str(caught.value)

    assert "no folder" in told(tmp_path / "nothing")
    assert "four" not in told(ade(tmp_path / "few", images=4)) and "at least five" in told(tmp_path / "few")
    root = ade(tmp_path / "alone")
    (root / "annotations" / "validation" / "2.png").unlink()
    assert "'2'" in told(root) and "4 images, 3 label images" in told(root)
    save(root / "annotations" / "validation" / "2.png", COLOURS[label_map(np.random.RandomState(0))])
    assert "one channel" in told(root) and "RGB" in told(root)
    save(root / "annotations" / "validation" / "2.png", np.ones((32, 24), np.uint8))
    assert "differ in size" in told(root)
    root = ade(tmp_path / "void")
    for path in (root / "annotations" / "training").iterdir():
        save(path, np.zeros((24, 32), np.uint8))
    assert "no pixel has a class" in told(root)
    root = ade(tmp_path / "broken")
    (root / "images" / "training" / "3.jpg").write_bytes(b"not an image")
    assert "3.jpg cannot be read" in told(root)


# ---- DAVIS: scores


def rectangle(top: int, left: int, height: int, width: int, shape: tuple[int, int] = (60, 80)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_region_of_two_overlapping_rectangles_by_hand_and_by_scikit_learn() -> None:
    a, b = rectangle(10, 10, 20, 30), rectangle(20, 20, 20, 30)
    assert region(a, b) == pytest.approx(10 * 20 / (2 * 600 - 200))
    assert region(a, b) == pytest.approx(jaccard_score(a.ravel(), b.ravel()))


def test_empty_masks_score_as_in_the_benchmark() -> None:
    empty, some, full = np.zeros((60, 80), bool), rectangle(5, 5, 9, 9), np.ones((60, 80), bool)
    assert region(empty, empty) == 1 and region(empty, some) == region(some, empty) == 0
    assert boundary(empty, empty) == 1 and boundary(empty, some) == boundary(some, empty) == 0
    assert boundary(full, full) == 1 and boundary(full, empty) == 1  # neither has a boundary


def test_boundary_is_one_for_equal_masks_and_for_a_shift_of_a_pixel_and_zero_far_apart() -> None:
    a = rectangle(10, 10, 12, 12)
    assert boundary(a, a) == 1
    assert boundary(a, rectangle(10, 11, 12, 12)) == 1  # the tolerance here is ceil(.008 * 100) = 1
    assert boundary(a, rectangle(40, 50, 12, 12)) == 0


@pytest.mark.parametrize("shift, value", [(8, 1.0), (9, 0.0)])
def test_the_tolerance_at_480p_is_eight_pixels(shift: int, value: float) -> None:
    shape = (480, 854)
    assert boundary(rectangle(0, 0, 480, 400, shape), rectangle(0, 0, 480, 400 + shift, shape)) == value


def test_boundary_is_the_harmonic_mean_of_precision_and_recall() -> None:
    one, two = rectangle(5, 5, 10, 10), rectangle(5, 5, 10, 10) | rectangle(35, 45, 10, 10)
    assert boundary(two, one) == boundary(one, two) == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_boundary_equals_the_benchmarks_dilation_by_a_disk() -> None:
    random, shape = np.random.RandomState(0), (80, 100)  # diagonal 128: tolerance 2
    y, x = np.ogrid[-2:3, -2:3]
    for _ in range(6):
        top, left, height, width = random.randint(0, 40, 4)
        a = rectangle(top, left, height + 1, width + 1, shape) ^ rectangle(30, 40, 25, 40, shape)
        b = np.roll(a, random.randint(-4, 5, 2), (0, 1)) | rectangle(70, 90, 4, 4, shape)
        edges = [np.zeros(shape, bool) for _ in range(2)]
        for m, e in zip((a, b), edges, strict=True):
            for r, c in np.ndindex(shape):  # the benchmark's rule, read off pixel by pixel
                below, right = min(r + 1, shape[0] - 1), min(c + 1, shape[1] - 1)
                e[r, c] = any(m[at] != m[r, c] for at in ((below, c), (r, right), (below, right)))
        near = [binary_dilation(e, x * x + y * y <= 4) for e in edges]
        p, r = (edges[0] & near[1]).sum() / edges[0].sum(), (edges[1] & near[0]).sum() / edges[1].sum()
        assert p > 0 and r < 1 and boundary(a, b) == pytest.approx(2 * p * r / (p + r))


def test_first_and_last_frame_and_void_pixels_are_not_scored() -> None:
    truth = np.zeros((5, 60, 80), np.uint8)
    truth[:, 10:30, 10:30], truth[:, 40:50, 40:50], truth[1:, :5] = 1, 2, 255
    predicted = truth.copy()
    predicted[:, :5] = 2
    predicted[[0, -1]] = 0
    np.testing.assert_array_equal(score(predicted, truth), np.ones((2, 2)))
    predicted[2][predicted[2] == 2] = 0
    np.testing.assert_allclose(score(predicted, truth), np.array([[1, 1], [2 / 3, 2 / 3]]))


# ---- DAVIS: propagation


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).float()


def looped(features: Tensor, first: Tensor, s: Propagation) -> Tensor:
    """Label propagation, a token at a time."""
    frames, h, w, _ = features.shape
    x = F.normalize(features, dim=-1)
    labels = [first]
    for t in range(1, frames):
        known = [0, *range(max(1, t - s.queue), t)]
        out = torch.zeros_like(first)
        for i in range(h):
            for j in range(w):
                found = []
                for k in known:
                    for p in range(h):
                        for q in range(w):
                            if abs(p - i) <= s.radius and abs(q - j) <= s.radius:
                                found.append((float(x[t, i, j] @ x[k, p, q]), labels[k][p, q]))
                best = sorted(found, key=lambda pair: -pair[0])[: s.top]
                weights = [math.exp(a / s.temperature) for a, _ in best]
                out[i, j] = sum(v * label for v, (_, label) in zip(weights, best, strict=True)) / sum(weights)
        labels.append(out)
    return torch.stack(labels)


@pytest.mark.parametrize("settings", [Propagation(2, 1, 3, 0.1), Propagation(3, 9, 5, 0.5), Propagation(0, 0, 4, 0.1)])
def test_propagation_equals_a_plain_loop(settings: Propagation) -> None:
    torch.manual_seed(0)
    features, first = torch.randn(6, 3, 4, 6), torch.rand(3, 4, 3)
    found = propagate(features, first, settings)
    torch.testing.assert_close(found, looped(features, first, settings), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(propagate(iter(7 * features), first, settings), found)  # any iterable, any scale


def test_tokens_that_identify_objects_follow_a_moving_square_exactly() -> None:
    labels = torch.zeros(12, 10, 14, dtype=torch.long)
    for t in range(12):
        labels[t, 2:5, t : t + 3], labels[t, 7:9, 10 - t // 2 : 13 - t // 2] = 1, 2
    found = propagate(one_hot(labels, 3), one_hot(labels[0], 3))
    torch.testing.assert_close(found, one_hot(labels, 3))


@pytest.mark.parametrize("radius, label", [(4, 0), (5, 1)])
def test_a_matching_token_outside_the_window_is_not_seen(radius: int, label: int) -> None:
    features = torch.zeros(2, 1, 8, 2)
    features[..., 0] = 1
    features[0, 0, 1] = features[1, 0, 6] = torch.tensor([0.0, 1.0])
    first = one_hot((torch.arange(8) == 1).long()[None], 2)
    assert propagate(features, first, Propagation(radius=radius))[1, 0, 6].argmax() == label
    turned = features.transpose(1, 2), first.transpose(0, 1)  # rows as columns
    assert propagate(*turned, Propagation(radius=radius))[1, 6, 0].argmax() == label


def test_the_top_two_of_three_are_weighted_by_hand() -> None:
    cosines = torch.tensor([1.0, 0.9, 0.8])
    sources = torch.stack([cosines, (1 - cosines.square()).sqrt()], 1)
    features = torch.stack([sources, torch.tensor([[1.0, 0.0]]).expand(3, 2)])[:, None]
    found = propagate(features, one_hot(torch.arange(3)[None], 3), Propagation(top=2))
    e, d = math.exp(10), math.exp(9)
    torch.testing.assert_close(found[1, 0], torch.tensor([e / (e + d), d / (e + d), 0.0]).expand(3, 3))


@pytest.mark.parametrize("between, label", [(6, 0), (7, 1)])
def test_the_queue_holds_the_first_frame_and_the_seven_before(between: int, label: int) -> None:
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    m, like_m = torch.tensor([0.5, 0.4, 0.77]), torch.tensor([0.4, 0.5, 0.77])  # m is a's, like_m would be b's without m
    frames = [(a, b), (m, m), *[(b, b)] * between, (like_m, like_m)]
    features = torch.stack([torch.stack(f)[None] for f in frames])
    found = propagate(features, one_hot(torch.tensor([[0, 1]]), 2), Propagation(top=1))
    assert found[1].argmax(-1).tolist() == [[0, 0]]
    assert found[-1].argmax(-1).tolist() == [[label, label]]


def test_each_label_is_stretched_to_its_own_range_before_the_largest_wins() -> None:
    object_ = torch.tensor([[0.0, 0.4, 0.0], [0.0, 0.1, 0.0]])
    soft = torch.stack([1 - object_, object_, torch.zeros(2, 3)], 2)  # the third object is lost
    assert hard(soft, 1).tolist() == [[0, 1, 0], [0, 0, 0]]  # .4 of .4 beats .6, the least of the background
    assert hard(soft, 8).shape == (16, 24) and hard(soft, 8)[4, 12] == 1
    alone = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 0.7)], 2)
    assert (hard(alone, 4) == 1).all()


@pytest.mark.parametrize(
    "frame, patch, size",
    [
        ((480, 854), 16, (480, 832)),
        ((854, 480), 8, (832, 480)),
        ((1080, 1920), 16, (480, 832)),
        ((480, 480), 16, (480, 448)),  # as DINO's: the width is the one floored
        ((480, 910), 14, (476, 910)),
    ],
)
def test_frames_keep_the_short_side_and_floor_the_long_one(frame: tuple[int, int], patch: int, size: tuple[int, int]) -> None:
    assert frame_size(*frame, patch) == size


def video(root: Path, frames: int = 6) -> Path:
    """A red square that moves by a patch of 8 a frame, and a blue one at rest, on gray."""
    for name in ("one", "two"):
        for t in range(frames):
            labels = np.zeros((64, 128), np.uint8)
            labels[8:40, 8 + 8 * t : 40 + 8 * t], labels[48:64, 96:128] = 1, 2
            save(root / "JPEGImages" / "480p" / name / f"{t:05}.jpg", COLOURS[labels])
            save(root / "Annotations" / "480p" / name / f"{t:05}.png", labels, "P")
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\ntwo\n")
    return root


def test_raw_pixels_follow_coloured_squares_and_the_kept_mask_scores_as_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "davis.npz"
    rows = {row["name"]: row for row in davis({"e": encoder(8)}, video(tmp_path), short_side=64, keep=file)}
    with np.load(file) as arrays:
        assert arrays["each/j_and_f"].mean() == pytest.approx(rows["e"]["j_and_f"])
        assert len(arrays["clusters"]) == len(arrays["each/j_and_f"]) == rows["e"]["objects"]
    assert list(rows) == ["e", "raw pixels", "first mask kept"]
    assert rows["raw pixels"]["j"] > 0.9 and rows["raw pixels"]["f"] > 0.9
    kept = rows["first mask kept"]
    moved = [8 * t for t in (1, 2, 3, 4)]
    red = np.mean([max(0, 32 - m) / (32 + m) for m in moved])
    assert kept["j"] == pytest.approx((red + 1) / 2)
    for row in rows.values():
        assert row["objects"] == 4 and row["j_and_f"] == pytest.approx((row["j"] + row["f"]) / 2)
        assert (row["low"], row["high"]) == pytest.approx(exact(row["j_and_f"], 2))  # two videos alike are two samples, no proof


def test_wrong_video_folders_are_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val\.txt"):
        open_sequences(tmp_path)
    root = video(tmp_path / "v", frames=3)
    with pytest.raises(UserError, match="short_side 7 leaves no patch"):
        davis({"e": encoder(8)}, root, short_side=7)
    masks = root / "Annotations" / "480p" / "two"
    frame = root / "JPEGImages" / "480p" / "two" / "00001.jpg"
    save(frame, np.zeros((64, 120, 3), np.uint8))
    with pytest.raises(UserError, match=r"00001\.jpg is not of the size of its mask, 64x128"):
        davis({"e": encoder(8)}, root, short_side=64)
    save(masks / "00001.png", np.zeros((64, 120), np.uint8), "P")
    with pytest.raises(UserError, match=r"00001\.png is not of the size"):
        davis({"e": encoder(8)}, root, short_side=64)
    for t in range(3):
        save(masks / f"{t:05}.png", np.zeros((64, 128), np.uint8), "P")
    with pytest.raises(UserError, match="shows no object"):
        davis({"e": encoder(8)}, root, short_side=64)
    (masks / "00002.png").unlink()
    with pytest.raises(UserError, match="1 of the 3 frames of two have no mask"):
        open_sequences(root)
    (root / "JPEGImages" / "480p" / "two" / "00002.jpg").unlink()
    with pytest.raises(UserError, match="two has 2 frames"):
        open_sequences(root)


# ---- detection


def test_pyramid_blocks_are_the_published_ones() -> None:
    assert pyramid_blocks(12) == (3, 5, 7, 11)
    assert pyramid_blocks(24) == (7, 11, 15, 23)
    assert pyramid_blocks(1) == (0, 0, 0, 0)


@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
def test_maps_have_strides_4_8_16_32_whatever_the_patch(patch: int) -> None:
    maps = Pyramid(encoder(patch, 4 * patch, depth=4), out_channels=12, pool=True)(torch.randn(2, 3, 64, 96))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [tuple(m.shape) for m in maps.values()] == [(2, 12, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(2, 12, 1, 2)]


def test_images_of_other_sizes_are_padded_right_and_below() -> None:
    pyramid = Pyramid(encoder(16, 64, depth=4), out_channels=8).eval()
    images = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :50, :70] = images
    for a, b in zip(pyramid(images).values(), pyramid(padded).values(), strict=True):
        assert torch.equal(a, b)


def test_maps_are_the_blocks_tokens_in_raster_order_and_the_coarsest_is_their_maximum() -> None:
    e = encoder(16, 64, depth=6)
    pyramid, images = Pyramid(e, out_channels=8).eval(), torch.randn(1, 3, 64, 96)
    layers = e.layers(images, last=6)
    for tokens, block in zip(pyramid._tokens(images), pyramid_blocks(6), strict=True):
        torch.testing.assert_close(tokens[0, :, 2, 3], layers[block][0, 2 * 6 + 3])
    coarse = layers[-1].view(1, 2, 2, 3, 2, 16).amax((2, 4)).permute(0, 3, 1, 2)  # of each 2 x 2 tokens
    torch.testing.assert_close(pyramid(images)["3"], pyramid.smooth[3](pyramid.lateral[3](coarse)))


def test_coarse_maps_speak_to_finer_ones_and_not_the_other_way() -> None:
    pyramid, images = Pyramid(encoder(16, 64, depth=4), out_channels=8), torch.randn(1, 3, 64, 64)
    before = pyramid(images)
    nn.init.zeros_(pyramid.lateral[2].weight)
    after = pyramid(images)
    assert [bool((before[k] != after[k]).any()) for k in before] == [True, True, True, False]


def test_the_gradient_reaches_every_weight_of_the_encoder_unless_it_is_frozen() -> None:
    e = encoder(16, 64, depth=4).requires_grad_(False)
    sum(m.square().sum() for m in Pyramid(e, out_channels=8)(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in e.parameters())
    frozen = Pyramid(encoder(16, 64, depth=4), out_channels=8, frozen=True)
    sum(m.sum() for m in frozen(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is None for p in frozen.encoder.parameters())
    assert all(p.grad is not None for p in frozen.smooth.parameters())


def test_a_conditioned_encoder_is_conditioned_in_the_pyramid_too() -> None:
    images = torch.randn(1, 3, 64, 64)
    torch.manual_seed(1)
    plain = Pyramid(encoder(16, 64, depth=4), out_channels=8)
    told = Pyramid(encoder(16, 64, depth=4, conditioning=PositionConditioning()), out_channels=8)
    told.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(images)["2"], told(images)["2"])
    torch.testing.assert_close(told._tokens(images)[-1], told.encoder(images).transpose(1, 2).unflatten(2, (4, 4)))


class Detector(nn.Module):
    """What a library's GeneralizedRCNN asks of a backbone, and no more."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.out_channels, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        strides = [images.shape[2] // f.shape[2] for f in features.values()]
        assert strides == [4, 8, 16, 32] and list(features) == ["0", "1", "2", "3"]
        return torch.cat([self.head(f).flatten(2) for f in features.values()], 2)


def test_a_detector_of_the_librarys_contract_trains_over_the_pyramid() -> None:
    torch.manual_seed(0)
    detector, images = Detector(Pyramid(encoder(16, 64, depth=4), out_channels=8)), torch.randn(2, 3, 64, 64)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = (detector(images) - 1).square().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2


def test_without_torchvision_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"torchvision.*does not load beside torch"):
        mask_rcnn(encoder(16, 64), 5)
