"""FLOPs of a training step, in closed form from the lengths of the sequences; one multiply-add is 2.

Linear maps and the two products of attention are counted, as torch's FlopCounterMode does, and nothing else. Backward is
twice forward, a product for the input's gradient and one for the weights', less the inputs that need no gradient.
"""

from dataclasses import astuple, dataclass
from itertools import pairwise

import numpy as np
import torch

from jepakit.model.encoder import Encoder
from jepakit.model.layout import Indices, choose_padded_length
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.regularizers import Regularizer
from jepakit.model.regularizers.sigreg import SIGReg
from jepakit.model.regularizers.vicreg import blocks_per_draw
from jepakit.model.regularizers.visreg import VISReg


@dataclass(frozen=True)
class Flops:
    """FLOPs by part. The regulariser's are those of its projector and its statistics, forward and backward."""

    target_encoder: float
    encoder_forward: float
    encoder_backward: float
    predictor_forward: float
    predictor_backward: float
    regularizer: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return float(sum(astuple(self)))


def linear_flops(tokens: int, inputs: int, outputs: int) -> int:
    """A linear map."""
    return 2 * tokens * inputs * outputs


def block_flops(tokens: int, rows: int, pairs: int, width: int, hidden: int) -> int:
    """A block of a transformer: keys and values of all tokens; queries, projection and MLP of the rows that are asked for.

    pairs: of a query and a key that meet, in the products of queries with keys and of weights with values.
    """
    keys_values = linear_flops(tokens, width, 2 * width)
    return keys_values + linear_flops(rows, width, 2 * width + 2 * hidden) + 2 * linear_flops(pairs, width, 1)


def step(
    method: Method, grid: tuple[int, int], channels: int, masks: Masks, *, padded: bool = False, teacher: Encoder | None = None
) -> Flops:
    """FLOPs of a step on the images of `masks`; with a teacher the target encoder's are the teacher's.

    padded: as a CPU computes it, with the empty rows of `layout.choose_padded_length`, and attention over sequences that are
    all padded to the longest (without the rows of `layout.default_row_multiple`); else only what is useful.
    """
    encoder, pixels = method.encoder, channels * method.encoder.patch_size**2
    patches, (extra, extra_of_target) = grid[0] * grid[1], _conditioning_tokens(method, grid, masks)
    embed = linear_flops(len(masks.context), pixels, encoder.width)
    encode = _encoder(method, masks.context_lengths + extra, padded, may_pad=not isinstance(extra, int))
    target = 0
    if teacher is not None:
        target = masks.images * encoder_flops(teacher, grid)
    elif method.target.kind != "pixels":
        sequences = np.full(masks.images, patches) if extra_of_target is None else patches + extra_of_target
        target = linear_flops(patches * masks.images, pixels, encoder.width) + _encoder(
            method, sequences, padded, may_pad=extra_of_target is not None
        )
    noise = linear_flops(len(masks.targets), encoder.width, method.predictor.width) if method.predictor.stop else 0
    predict = _predictor(method, pixels, masks, padded) + noise
    return Flops(
        target_encoder=target,
        encoder_forward=embed + encode,
        encoder_backward=embed + 2 * encode,  # images need no gradient
        predictor_forward=predict,
        predictor_backward=2 * predict - noise,  # nor does StoP's noise
        regularizer=_regularizer(method, pixels, masks),
    )


def encoder_flops(encoder: Encoder, grid: tuple[int, int]) -> int:
    """An image of that grid through an encoder, conditioned as at inference, forward."""
    e, patches = encoder.vit.config, grid[0] * grid[1]
    extra = (
        len(encoder.conditioning.for_inference(torch.empty(patches, e.width, device="meta"), grid)) if encoder.conditioning else 0
    )
    tokens = patches + extra
    block = block_flops(tokens, tokens, tokens**2, e.width, round(e.width * e.mlp_ratio))
    return linear_flops(patches, encoder.vit.channels * e.patch_size**2, e.width) + e.depth * block


def _conditioning_tokens(method: Method, grid: tuple[int, int], masks: Masks) -> tuple[Indices | int, Indices | None]:
    """Tokens by which each draw's encoder is told of the targets, and its target encoder of the context, if it is: (R,), (R,)."""
    c, positions = method.conditioning, torch.empty(grid[0] * grid[1], method.encoder.width, device="meta")
    return (
        c.for_encoder(masks, positions, grid)[1] if c and c.encoder else 0,
        c.for_target_encoder(masks, positions, grid)[1] if c and c.target_encoder else None,
    )


def _encoder(method: Method, lengths: Indices, padded: bool, *, may_pad: bool) -> int:
    """All blocks of an encoder on sequences of these lengths, which a CPU may pad (`may_pad`) to one length."""
    e, rows = method.encoder, choose_padded_length(lengths, torch.device("cpu")) if padded and may_pad else None
    tokens = len(lengths) * rows if rows else int(lengths.sum())
    return e.depth * block_flops(tokens, tokens, _pairs(lengths, lengths, padded), e.width, round(e.width * e.mlp_ratio))


def _predictor(method: Method, pixels: int, masks: Masks, padded: bool) -> int:
    """Each target block with its draw's context; the last block of the predictor says the targets only."""
    p, e, targets = method.predictor, method.encoder, len(masks.targets)
    lengths, hidden = masks.context_lengths[masks.draw_of_block] + masks.target_lengths, round(p.width * e.mlp_ratio)
    tokens = int(lengths.sum())
    return (
        linear_flops(len(masks.context), e.width, p.width)
        + (p.depth - 1) * block_flops(tokens, tokens, _pairs(lengths, lengths, padded), p.width, hidden)
        + block_flops(tokens, targets, _pairs(masks.target_lengths, lengths, padded), p.width, hidden)
        + linear_flops(targets, p.width, method.target.width(e.width, pixels))
    )


def _pairs(queries: Indices, keys: Indices, padded: bool) -> int:
    """Pairs of a query and a key of one sequence."""
    return len(keys) * int(queries.max()) * int(keys.max()) if padded else int((queries * keys).sum())


def _regularizer(method: Method, pixels: int, masks: Masks) -> int:
    """The projector's passes, and the covariance of each view or SIGReg's and VISReg's projections, forward and backward."""
    r, width = method.regularizer, method.encoder.width
    if r is None:
        return 0
    draws, blocks = len(masks.context_lengths), len(masks.target_lengths)
    of_context = r.tensor == "context_pooled"
    rows = draws if of_context else blocks
    widths = (width if of_context else method.target.width(width, pixels) // method.target.levels, *r.projector)
    layers = [linear_flops(1, *ends) for ends in pairwise(widths)]  # a row of each
    if not of_context and not isinstance(r, SIGReg | VISReg):
        blocks_per_draw(masks)  # refuses other than equally many
    total = 3 * sum(layers) * rows + statistic_flops(r, rows, widths[-1])
    if (
        not isinstance(r, SIGReg | VISReg) and r.tensor != "pred_blocks" and r.sim
    ):  # predictions, and targets, which need no gradient
        total += blocks * (6 * sum(layers) - sum(layers[:1]))
    return total


def statistic_flops(regularizer: Regularizer, rows: int, width: int) -> int:
    """What the regulariser asks of so many rows that are projected already, forward and backward: the covariance, or
    projections on directions, which need no gradient."""
    if isinstance(regularizer, SIGReg | VISReg):
        return 2 * linear_flops(rows, width, regularizer.directions)
    return 3 * linear_flops(rows, width, width)
