"""What the predictor predicts, made visible: painted by a decoder of tokens, pasted from the nearest real patches, as cosines.

n images that are shown, M target blocks, r x c patches of the grid, N = r c, C p^2 pixels of a patch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from jepakit.artifacts.run import Run
from jepakit.core.errors import UserError, checked
from jepakit.evaluation.probes.ridge import ridge
from jepakit.model.images import ImageSettings
from jepakit.model.jepa import JEPA
from jepakit.model.teacher import Teacher
from jepakit.pictures.drawing import PictureRow, image_rows
from jepakit.pictures.given import Array32, encoder_input, to_look_at
from jepakit.pictures.predicted_tokens import (
    PredictedTokens,
    model_of,
    nearest_patches,
    noise_draws,
    predicted_tokens,
    prediction_numbers,
    teacher_of,
)

SHOWN = 6  # images
DECODER_PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # penalties of the decoder
NEARLY = 0.9  # of the best R2 is good enough for a larger penalty
NOISE_DRAWS = 4  # predictions of each block, where positions are told with noise
HIDDEN = 128  # gray of patches that are neither seen nor asked for
DECODER_CAPTIONS = {
    "ridge": "Painted by ridge regression from a token to its patch's pixels, fitted on true tokens of other images. What it "
    "paints of true tokens is about the best it can do: what is missing there is the decoder's, or not in the tokens. What "
    "more is missing in what it paints of predictions is the predictor's.",
    "pixels": "The targets are pixels, so predictions are painted as they are, with the mean and deviation of the true patch "
    "where targets are normalised: those two the predictor does not say.",
    "": "Too few images to fit a decoder.",
}


@dataclass(frozen=True, eq=False)
class PaintedPredictions:
    """Predictions for n images, none of which the decoder was fitted on.

    images (n, H', W', 3) uint8; context (n, r, c) and blocks (n, M, r, c) bool; cosines (n, r, c): of a prediction with the
    true token, NaN where nothing is predicted; field (n, r, c): of the first block's mean prediction with each true token.
    seen, true_painted, painted, nearest (n, H', W', 3) uint8: the context alone; then with target patches as decoded of true
    tokens, as decoded of predictions, and as the real patches of other images that predictions are nearest to (None without a
    decoder, or another image). noise (n, k, H', W', 3): of a predictor that is told positions with noise (StoP), as decoded of
    predictions by k other draws of it; None for others. numbers: `prediction_numbers`; noise_spread, 1 less the cosine of two
    draws' predictions of a patch; of the decoder r2_true and r2_predicted: 1 less the squared error over that of the mean patch,
    on target patches of images that it was not fitted on, those shown and others. decoder: a key of DECODER_CAPTIONS.
    """

    images: NDArray[np.uint8]
    context: NDArray[np.bool_]
    blocks: NDArray[np.bool_]
    cosines: Array32
    field: Array32
    seen: NDArray[np.uint8]
    true_painted: NDArray[np.uint8] | None
    painted: NDArray[np.uint8] | None
    nearest: NDArray[np.uint8] | None
    noise: NDArray[np.uint8] | None
    numbers: dict[str, float]
    decoder: str

    @property
    def caption(self) -> str:
        """What is the decoder's, and what the predictor's."""
        return DECODER_CAPTIONS[self.decoder]

    def figure(self) -> Figure:
        """A row for each image."""
        named = {"decoded: truth": self.true_painted, "decoded: predicted": self.painted, "nearest patches": self.nearest}
        rows, draws = [], range(0 if self.noise is None else self.noise.shape[1])
        for i, image in enumerate(self.images):
            drawn: list[Any] = [("image", image, None), ("context", self.seen[i], None)]
            drawn += [(title, pictures[i], None) for title, pictures in named.items() if pictures is not None]
            drawn += [(f"noise {k + 1}", self.noise[i, k], None) for k in draws if self.noise is not None]
            rows.append(
                PictureRow([*drawn, ("cosine", self.cosines[i], (0.0, 1.0)), ("block 1 with all", self.field[i], (0.0, 1.0))])
            )
        return image_rows(rows, "What the predictor predicts")


@checked
def painted_predictions(run: Run | str | Path, images: Any, *, shown: int = SHOWN, seed: int = 0) -> PaintedPredictions:
    """What a run's predictor makes of images, all that `Encoder.embed` takes: the first are shown, the others are the decoder's
    to learn from, and the gallery. A hundred or more are good.

    Raises UserError for a run without a predictor or a teacher that cannot be had, and as `embed` does.
    """
    jepa, encoder, _ = model_of(run)
    x = encoder_input(encoder, images)
    return paint(jepa, x, encoder.images, teacher_of(jepa), shown=shown, seed=seed)


def paint(
    jepa: JEPA, x: Tensor, settings: ImageSettings, teacher: Teacher | None = None, *, shown: int = SHOWN, seed: int = 0
) -> PaintedPredictions:
    """The same for normalised images (B, C, H, W) of a model that is there already."""
    of, grid = predicted_tokens(jepa, x, teacher, seed), jepa.grid
    if not bool(of.predictions.isfinite().all() and of.true.isfinite().all()):
        raise UserError("predictions or targets are not finite: the weights or the images are broken")
    n = min(shown, len(x))
    held = max(n, len(x) // 4)  # images that the decoder does not learn from, so that its numbers are of more than a few
    places = nearest_patches(of, n)
    noisy, none = jepa.method.predictor.stop > 0, of.predictions.new_zeros(0, n, *of.predictions.shape[1:])
    drawn = noise_draws(jepa, x, n, NOISE_DRAWS, seed) if noisy else none
    decoded, decoder = _decoded(jepa, of, held, drawn)
    pasted = of.patches.flatten(0, 1)[places.clamp(min=0)] if len(x) > 1 else None
    rows = {"true_painted": decoded and decoded[0], "painted": decoded and decoded[1], "nearest": pasted}
    parts = {name: None if each is None else _composed(of, each, n, grid, settings) for name, each in rows.items()}
    asked, unit = of.asked[:n], (F.normalize(of.predictions[:n], dim=2), F.normalize(of.true[:n], dim=2))
    cosines = torch.where(asked, (unit[0] * unit[1]).sum(2), torch.nan)
    first = of.blocks[:n, 0].float()
    mean = F.normalize((unit[0] * first[..., None]).sum(1), dim=1)
    numbers = prediction_numbers(of) | (_goodness(of, decoded, held) if decoded else {}) | _noise_spread(drawn, asked)
    noise = [_composed(of, each, n, grid, settings) for each in decoded[2]] if decoded and len(drawn) else None
    return PaintedPredictions(
        images=to_look_at(x[:n], settings),
        context=of.context[:n].view(n, *grid).numpy(),
        blocks=of.blocks[:n].view(n, -1, *grid).numpy(),
        cosines=cosines.view(n, *grid).numpy(),
        field=torch.einsum("bnd,bd->bn", unit[1], mean).view(n, *grid).numpy(),
        seen=_composed(of, None, n, grid, settings),
        **parts,
        noise=None if noise is None else np.stack(noise, 1),
        numbers=numbers,
        decoder=decoder,
    )


def _decoded(jepa: JEPA, of: PredictedTokens, n: int, drawn: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor] | None, str]:
    """Pixels (n, N, C p^2) of the first n images, of true tokens and of predictions, and those (k, m, N, C p^2) of other draws
    (k, m, N, D') of the predictions of m of them; and by what."""
    target, first = jepa.method.target, torch.arange(n)
    asked = torch.cat([of.true[:n], of.predictions[:n], *drawn])
    pixels = of.patches[torch.cat([first, first, *(first[: drawn.shape[1]] for _ in drawn)])]
    if target.kind == "pixels":
        if target.norm:
            scale = (pixels.var(-1, keepdim=True) + 1e-6).sqrt()  # as PixelTargets.normalise divides
            asked = asked * scale + pixels.mean(-1, keepdim=True)
        painted, decoder = asked, "pixels"
    elif len(of.true) - n < 2:
        return None, ""
    else:
        painted, decoder = fit_ridge(of.true[n:], of.patches[n:], asked.flatten(0, 1)).view(pixels.shape), "ridge"
    return (painted[:n], painted[n : 2 * n], painted[2 * n :].view(*drawn.shape[:2], *pixels.shape[1:])), decoder


def fit_ridge(tokens: Tensor, patches: Tensor, asked: Tensor) -> Tensor:
    """Pixels of patches (m, C p^2) that ridge regression says of tokens `asked` (m, D'), from tokens (B, N, D') and their patches
    (B, N, C p^2).

    The penalty is the largest with nine tenths of the R2 of the best, on a fifth of the images from the others: predictions are
    no true tokens, and a small penalty makes much of directions in which those hardly vary.
    """
    held = torch.arange(len(tokens)) % 5 == 0
    learn, test = ((tokens[rows].flatten(0, 1), patches[rows].flatten(0, 1)) for rows in (~held, held))
    error = (ridge(*learn, test[0], DECODER_PENALTIES) - test[1]).square().mean((1, 2))
    r2 = 1 - error / (learn[1].double().mean(0) - test[1]).square().mean()
    enough = min(NEARLY * float(r2.max()), float(r2.max()))  # which may be below 0
    best = max(each for each, own in zip(DECODER_PENALTIES, r2.tolist(), strict=True) if own >= enough)
    return ridge(tokens.flatten(0, 1), patches.flatten(0, 1), asked, [best])[0].float()


def _noise_spread(drawn: Tensor, asked: Tensor) -> dict[str, float]:
    """How much another draw of the noise changes predictions (k, n, N, D'), the mean over asked patches (n, N) and pairs."""
    if len(drawn) < 2:
        return {}
    unit = F.normalize(drawn.double()[:, asked], dim=2)
    cosines = torch.einsum("apd,bpd->abp", unit, unit)[~torch.eye(len(drawn), dtype=torch.bool)]
    return {"noise_spread": float(1 - cosines.mean())}


def _goodness(of: PredictedTokens, decoded: tuple[Tensor, Tensor, Tensor], n: int) -> dict[str, float]:
    """R2 of what was painted of true tokens and of predictions, against the mean patch of the images that are not shown."""
    asked = of.asked[:n]
    truth, others = of.patches[:n][asked], of.patches[n:] if len(of.patches) > n else of.patches
    spread = (truth - others.flatten(0, 1).mean(0)).square().sum()
    names = ("r2_true", "r2_predicted")
    return {name: float(1 - (each[asked] - truth).square().sum() / spread) for name, each in zip(names, decoded[:2], strict=True)}


def _composed(
    of: PredictedTokens, painted: Tensor | None, n: int, grid: tuple[int, int], settings: ImageSettings
) -> NDArray[np.uint8]:
    """The first n images: the context as it is, target patches as painted (n, N, C p^2), gray where neither is."""
    real = of.patches[:n]
    painted = None if painted is None else painted[:n]
    asked = of.asked[:n] if painted is not None else torch.zeros_like(of.asked[:n])
    ends = float(of.patches.min()), float(of.patches.max())  # of all images: those of its own would tell of what is hidden
    mixed = real if painted is None else torch.where(asked[..., None], painted.clamp(*ends), real)
    pictures = to_look_at(_images(mixed, grid, settings.channels), settings)
    known = asked | of.context[:n]
    side = pictures.shape[1] // grid[0], pictures.shape[2] // grid[1]
    visible = known.view(n, *grid).numpy().repeat(side[0], 1).repeat(side[1], 2)
    return np.where(visible[..., None], pictures, np.uint8(HIDDEN))


def _images(patches: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """Patches (n, N, C p^2) put back: (n, C, H, W). The inverse of `patchify`."""
    p = round((patches.shape[2] / channels) ** 0.5)
    x = patches.view(len(patches), *grid, channels, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(patches), channels, grid[0] * p, grid[1] * p)
