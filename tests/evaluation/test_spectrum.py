"""RankMe and LiDAR of encoders: which views they see, what an encoder is told, and what a row says."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepakit.artifacts.load import build_jepa
from jepakit.config.config import Config, method_layer, resolve
from jepakit.core.errors import UserError
from jepakit.data.crops import centre_crop, crop_boxes, resize
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.sources import ArraySource
from jepakit.evaluation.features import RAW, FrozenFeatures, extract
from jepakit.evaluation.probes import spectrum
from jepakit.evaluation.probes.spectrum import LiDAR, RankMe, lidar_rows, rankme_rows
from jepakit.model.encoder import Encoder
from jepakit.model.images import normalise
from jepakit.model.jepa import JEPA
from jepakit.model.layout import segment_mean
from jepakit.model.metrics import Discriminant, lidar, rankme
from jepakit.model.vit import patchify

SIZE, WIDTH, N = 32, 16, 24
SMALL: dict[str, Any] = {
    "encoder": {"width": WIDTH, "depth": 1, "heads": 2, "patch_size": 4},
    "predictor": {"width": 8, "depth": 1, "heads": 2},
    "images": {"size": SIZE},
    "masking": {"min_keep": 2},
}


def config_of(method: str, **more: Any) -> Config:
    return resolve(method_layer(method), SMALL, more)


def source_of(n: int = N) -> ArraySource:
    """Wide images (40 by 56) of coarse squares, so that places differ."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 5, 7, 3), dtype=np.uint8)
    return ArraySource("squares", coarse.repeat(8, 1).repeat(8, 2), None)


def model(method: str = "ijepa", seed: int = 0, **more: Any) -> tuple[JEPA, Encoder, Config]:
    """A fresh model with its encoder to use, weights tenfold so that what differs is not lost to rounding."""
    config = config_of(method, seed=seed, **more)
    jepa = build_jepa(config)
    with torch.no_grad():
        for p in jepa.encoder.parameters():
            if p.ndim > 1:
                p.mul_(10)
    return jepa, Encoder(jepa.encoder, config.images, config.conditioning).eval(), config


def row(encoder: Encoder, config: Config, seed: int = 0, source: ArraySource | None = None, **settings: Any) -> dict[str, Any]:
    source = source or source_of()
    rows = lidar_rows(source, {"encoder": encoder}, config.masking, LiDAR(**({"views": 6} | settings)), seed)
    assert len(rows) == 1 and rows[0]["name"] == "encoder"
    return rows[0]


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The views (n, q, D) that LiDAR is given from now on."""
    seen: list[Tensor] = []

    class Recording(Discriminant):
        def add(self, views: Tensor) -> Discriminant:
            seen.append(views.clone())
            return super().add(views)

    monkeypatch.setattr(spectrum, "Discriminant", Recording)
    return seen


# ---- LiDAR's views


def by_hand(jepa: JEPA, encoder: Encoder, config: Config, source: ArraySource, q: int, by: str, seed: int) -> Tensor:
    """Views (n, q, D), one at a time: view v of image i draws as the sample i + v * (images) of training does."""
    n, e = len(source), torch.zeros(len(source), q, WIDTH)
    for i in range(n):
        for v in range(q):
            who = np.array([i + n * v])
            image = centre_crop(source.read(i), SIZE, SIZE)
            if by != "masks":
                t, l, h, w = crop_boxes(config.images, np.array([[40, 56]]), who, seed, 0)[0]
                image = resize(source.read(i)[t : t + h, l : l + w], SIZE, SIZE)
            pixels = normalise(image[None], config.images)
            if by == "crops":
                e[i, v] = encoder.embed(pixels)[0]
            else:
                masks = config.masking.sample(config.grid, who, seed=seed)
                tokens = jepa.encode_context(patchify(pixels, 4), masks)
                e[i, v] = segment_mean(tokens, masks.context_lengths)[0]
    return e.detach()


@pytest.mark.parametrize("by", ["masks", "crops", "both"])
@pytest.mark.parametrize("method", ["ijepa", "ec_ijepa"])
def test_lidar_is_that_of_each_images_windows_or_crops_encoded_one_by_one(
    method: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC-IJEPA: by JEPA.encode_context, told each window's own targets; for whole crops told all positions."""
    jepa, encoder, config = model(method)
    source, seen = source_of(8), recorded(monkeypatch)
    found = row(encoder, config, seed=3, source=source, by=by, views=4)
    expected = by_hand(jepa, encoder, config, source, 4, by, seed=3)
    np.testing.assert_allclose(torch.cat(seen), expected, atol=2e-5)
    assert found["lidar"] == pytest.approx(lidar(expected), rel=1e-3)


def test_a_conditioned_encoder_is_told_of_the_targets_of_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    _, told, config = model("ec_ijepa")
    untold = Encoder(told.vit, told.images, None)
    seen = recorded(monkeypatch)
    row(told, config)
    row(untold, config)
    half = len(seen) // 2
    assert (torch.cat(seen[:half]) - torch.cat(seen[half:])).abs().mean() > 1e-3


@pytest.mark.parametrize("by", ["masks", "crops", "both"])
def test_the_views_of_an_image_differ_and_those_of_different_images_more(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder, config = model()
    seen = recorded(monkeypatch)
    value = row(encoder, config, by=by)["lidar"]
    e = torch.cat(seen).double()
    assert e.shape == (N, 6, WIDTH) and 1 < value < WIDTH + 1e-3
    apart = torch.cdist(e, e) + torch.eye(6) * 9
    assert (apart.amin(-1) > 1e-4).double().mean() > 0.98  # a mask may be drawn twice
    assert e.mean(1).var(0).sum() * 6 > 1.5 * e.var(1).mean(0).sum()


def test_what_tells_views_apart_is_a_choice() -> None:
    _, encoder, config = model()
    values = {by: row(encoder, config, by=by) for by in ("masks", "crops", "both")}
    assert len({r["lidar"] for r in values.values()}) == 3 and all(r["by"] == by for by, r in values.items())


def test_all_encoders_see_the_same_views() -> None:
    _, encoder, config = model()
    _, other, _ = model(seed=1)
    encoders = {"one": encoder, "other": other, "twin": encoder}
    rows = lidar_rows(source_of(), encoders, config.masking, LiDAR(views=6), 0)
    values = {r["name"]: r["lidar"] for r in rows}
    assert values["one"] == values["twin"] == row(encoder, config)["lidar"] != values["other"]


def test_views_are_a_function_of_the_seed_and_not_of_how_many_go_through_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder, config = model()
    one, torch_state = row(encoder, config, by="both"), torch.get_rng_state()
    assert row(encoder, config, by="both") == one and torch.equal(torch.get_rng_state(), torch_state)
    assert row(encoder, config, by="both", seed=1)["lidar"] != one["lidar"]
    monkeypatch.setattr(spectrum, "GROUP", 13)
    assert row(encoder, config, by="both")["lidar"] == pytest.approx(one["lidar"], rel=1e-4)
    monkeypatch.setattr(spectrum, "GROUP", 1)
    assert row(encoder, config, by="both")["lidar"] == pytest.approx(one["lidar"], rel=1e-4)


def test_a_law_that_draws_for_a_whole_batch_tells_views_apart_and_not_images() -> None:
    """The released collator has one block size a call: all views of an image in one call would share it."""
    _, encoder, config = model(masking={"kind": "multi_block", "compat": "released", "min_keep": 1})
    lengths: list[np.ndarray] = []
    sample = type(config.masking).sample

    def noted(law: Any, grid: Any, ids: Any, **rest: Any) -> Any:
        masks = sample(law, grid, ids, **rest)
        lengths.append(masks.context_lengths)
        return masks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(config.masking), "sample", noted)
        row(encoder, config)
    per_call = [set(call.tolist()) for call in lengths]
    assert all(len(call) == 1 for call in per_call)  # one size for all images of a call, as released
    assert len(set.union(*per_call)) > 1  # and another for other views of the same images


def test_lidar_without_a_ridge_where_a_direction_does_not_vary_is_one_sentence() -> None:
    _, encoder, config = model()
    with torch.no_grad():
        encoder.vit.norm.weight[3] = 0
    with pytest.raises(UserError, match=r"lidar\.delta"):
        row(encoder, config, delta=0.0)


@pytest.mark.parametrize("masking", [{"kind": "multi_block", "draws": 2}, {"kind": "random"}, {"kind": "quadrants"}])
def test_any_law_of_masks_gives_windows(masking: dict[str, Any]) -> None:
    _, encoder, config = model(masking=masking)
    assert 1 <= row(encoder, config)["lidar"] <= WIDTH + 1e-3


def set_constant(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.vit.norm.weight.zero_()
        encoder.vit.norm.bias.copy_(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("by", ["masks", "crops", "both"])
def test_an_encoder_that_gives_one_vector_whatever_it_sees_has_one_direction(by: str) -> None:
    _, encoder, config = model()
    set_constant(encoder)
    assert row(encoder, config, by=by)["lidar"] == pytest.approx(1, abs=0.01)
    features, _ = extract(source_of(), {"encoder": encoder})
    assert rankme_rows({"encoder": features["encoder"]}, RankMe())[0]["rankme"] == pytest.approx(1, abs=0.01)


def test_an_encoder_that_tells_images_apart_along_one_direction_has_lidar_one() -> None:
    _, encoder, config = model()
    with torch.no_grad():
        encoder.vit.norm.weight[1:] = 0
    assert row(encoder, config, by="crops")["lidar"] == pytest.approx(1, abs=0.01)


# ---- what a row says


def test_a_row_says_how_it_was_measured() -> None:
    _, encoder, config = model()
    found = row(encoder, config, images=20, views=3, by="both", delta=1e-3, eps=1e-6)
    assert {k: found[k] for k in ("n", "q", "by", "delta", "eps")} == {"n": 20, "q": 3, "by": "both", "delta": 1e-3, "eps": 1e-6}
    assert "warning" not in found
    assert (LiDAR().images, LiDAR().by, LiDAR().delta, LiDAR().eps) == (1000, "masks", 1e-4, 1e-8)
    assert (RankMe().images, RankMe().eps) == (25_600, 1e-7)


def test_delta_and_epsilon_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder, config = model()
    seen = recorded(monkeypatch)
    found = row(encoder, config, delta=0.3, eps=1e-3)
    assert found["lidar"] == pytest.approx(lidar(torch.cat(seen), 0.3, 1e-3)) != pytest.approx(lidar(torch.cat(seen)))


@pytest.mark.parametrize("n, warned", [(8, True), (WIDTH, True), (WIDTH + 1, False), (N, False)])
def test_lidar_warns_where_the_images_and_not_the_encoder_bound_it(n: int, warned: bool) -> None:
    """Centres of n images span n - 1 directions: enough for D features from n = D + 1 on."""
    _, encoder, config = model()
    assert ("warning" in row(encoder, config, images=n)) == warned


@pytest.mark.parametrize("n, warned", [(8, True), (WIDTH - 1, True), (WIDTH + 1, False)])
def test_rankme_warns_where_the_images_and_not_the_encoder_bound_it(n: int, warned: bool) -> None:
    x = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0))
    (found,) = rankme_rows({"encoder": FrozenFeatures(x)}, RankMe(images=n))
    assert ("warning" in found) == warned
    if warned:
        assert str(n) in found["warning"] and str(WIDTH) in found["warning"]


def test_images_are_taken_evenly_over_the_set() -> None:
    x = torch.zeros(100, 5)
    x[torch.arange(100), torch.arange(100) // 20] = 1  # five blocks, a direction each
    (found,) = rankme_rows({"x": FrozenFeatures(x)}, RankMe(images=10))
    assert found["rankme"] == pytest.approx(5, rel=1e-3)
    (found,) = rankme_rows({"x": FrozenFeatures(x)}, RankMe(images=10**6))
    assert found["rankme"] == pytest.approx(5, rel=1e-3)


def test_rankme_is_of_the_encoder_as_users_get_it_told_all_positions() -> None:
    jepa, encoder, config = model("ec_ijepa")
    source = source_of(30)
    features, _ = extract(source, {"encoder": encoder})
    rows = {r["name"]: r["rankme"] for r in rankme_rows(features, RankMe())}
    pixels = normalise(torch.stack([centre_crop(source.read(i), SIZE, SIZE) for i in range(30)]), config.images)
    untold = Encoder(jepa.encoder, config.images, None)
    with torch.no_grad():
        assert rows["encoder"] == pytest.approx(rankme(encoder.embed(pixels)), rel=1e-3)
        assert rows["encoder"] != pytest.approx(rankme(untold.embed(pixels)), rel=1e-3)
    assert set(rows) == {"encoder", RAW}


# ---- images that cannot be read


class Broken(ArraySource):
    """One where most files are no images."""

    good: set[int]

    def raw(self, index: int) -> np.ndarray:  # type: ignore[override]
        if index not in self.good:
            raise BadImageError("broken")
        return super().raw(index)


def test_images_that_cannot_be_read_are_left_out_and_two_are_needed() -> None:
    _, encoder, config = model()
    source = Broken("holes", source_of().images, None)
    source.good = {0, 3, 4, 11, 20}
    assert row(encoder, config, source=source)["n"] == 5
    source.good = {3}
    with pytest.raises(UserError, match=r"holes has 1 readable image"):
        row(encoder, config, source=source)
