"""The model: encoder, target encoder, predictor. Read `JEPA.forward` and you know the method.

B images, N patches, S packed tokens, R draws, D encoder width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepakit.core import parallel, rng
from jepakit.core.errors import UserError
from jepakit.core.ranks import rank
from jepakit.core.torch_private import lerp_
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.layout import Indices, Layout, choose_padded_length, interleave, segment_mean, take
from jepakit.model.losses import LOSSES, full_precision
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.method import Method
from jepakit.model.predictor import Predictor
from jepakit.model.regularizers import projector
from jepakit.model.vit import ViT, patchify


@dataclass(frozen=True)
class Output:
    """loss (scalar) = sum of terms; predictions and targets (S', D) and context (S, D) in the order of the masks;
    features (B, D), mean over patch tokens of what the target encoder (where it gives no targets: the encoder) made."""

    loss: Tensor
    terms: dict[str, Tensor]
    predictions: Tensor
    targets: Tensor
    context: Tensor
    features: Tensor

    def detached(self, *, rows: bool) -> "Output":
        """The output of a micro-batch without its graph: with all rows, on the host; or (rows=False) loss and terms alone."""
        tensors = (self.predictions, self.targets, self.context, self.features)
        own = [x.detach().cpu() if rows else x.new_empty(0, x.shape[1]) for x in tensors]
        return Output(self.loss.detach(), {name: term.detach() for name, term in self.terms.items()}, *own)

    def weighted(self, counts: Sequence[int]) -> "Output":
        """The prediction weighted by this process's share of all target patches, so that the mean over processes is that over
        patches. counts: target patches of each process."""
        if len(counts) == 1:
            return self
        share = len(counts) * counts[rank()] / sum(counts)
        terms = self.terms | {"prediction": self.terms["prediction"] * share}
        return replace(self, loss=torch.stack([*terms.values()]).sum(), terms=terms)

    def of_all(self, counts: Sequence[int], *, rows: bool) -> "Output":
        """The whole batch's, without its graph, from the weighted ones of processes: loss and terms; and with rows=True on rank 0
        the rows, all but context's."""
        if len(counts) == 1:
            return self
        means = parallel.summed(torch.stack([self.loss, *self.terms.values()])) / len(counts)
        out = replace(self, loss=means[0], terms=dict(zip(self.terms, means[1:], strict=True)))
        if not rows:
            return out
        predictions, targets = (parallel.to_main(x, counts) for x in (self.predictions, self.targets))
        features = parallel.to_main(self.features, [len(self.features)] * len(counts))
        return replace(out, predictions=predictions, targets=targets, features=features)

    @classmethod
    def joined(cls, outputs: Sequence["Output"]) -> "Output":
        """The output of a batch from those of its micro-batches: means of losses and terms, and all rows, one after the other."""
        names = ("predictions", "targets", "context", "features")
        return cls(
            torch.stack([out.loss for out in outputs]).mean(),
            {name: torch.stack([out.terms[name] for out in outputs]).mean() for name in outputs[0].terms},
            *(torch.cat([getattr(out, name) for out in outputs]) for name in names),
        )


class JEPA(nn.Module):
    """A method with its parameters. `images` are normalised floats (B, C, H, W); `grid` is (rows, columns) of patches."""

    from_checkpoint: ClassVar[Callable[..., "JEPA"]]  # where loading lives: artifacts/load.py

    def __init__(self, method: Method, grid: tuple[int, int], channels: int = 3) -> None:
        super().__init__()
        self.method, self.grid = method, grid
        self.encoder = ViT(method.encoder, grid, channels)
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False)
        target_width = method.target.width(method.encoder.width, channels * method.encoder.patch_size**2)
        self.predictor = Predictor(method.predictor, method.encoder, grid, target_width)
        self.projector = projector(
            method.regularizer.projector if method.regularizer else (), target_width // method.target.levels
        )

    @property
    def to_use(self) -> ViT:
        """The encoder that is judged, loaded and exported (`Method.which`)."""
        return self.target_encoder if self.method.which == "target_encoder" else self.encoder

    def forward(
        self,
        images: Tensor,
        masks: Masks,
        target_images: Tensor | None = None,
        *,
        teacher_features: Tensor | None = None,
        seed: int = 0,
        part: int = 0,
        counts: Sequence[int] | None = None,
    ) -> Output:
        """One pass over a batch. Raises UserError for images or masks that do not fit the grid or each other.

        target_images: what targets are taken from, if not from `images`; teacher_features (B * N, D'): a frozen teacher's of
        each patch of them; seed: of what the regulariser and StoP draw, another each step; part: which micro-batch of
        the step this is, whose noise in StoP is not that of another; counts: target patches of it in each process.
        """
        height, width = (n * self.method.encoder.patch_size for n in self.grid)
        if images.shape[2:] != (height, width):
            raise UserError(f"the model is for images of {height}x{width} pixels, got {tuple(images.shape)}")
        if target_images is not None and target_images.shape != images.shape:
            raise UserError(f"target_images of {tuple(target_images.shape)} were given with images of {tuple(images.shape)}")
        if masks.images != len(images):
            raise UserError(f"masks of {masks.images} images were given with {len(images)} images")
        masks.require_on_grid(self.grid[0] * self.grid[1])
        patches = patchify(images, self.method.encoder.patch_size)
        context = self.encode_context(patches, masks)  # EC-IJEPA: conditioned on the targets' positions
        predictions = self.predictor(context, masks, rng.torch_seed(seed, "stop", part), counts)  # I-JEPA, section 3
        seen = patches if target_images is None else patchify(target_images, self.method.encoder.patch_size)
        targets, features = self.encode_target(seen, masks, teacher_features)  # no gradient
        prediction = LOSSES[self.method.loss](full_precision(predictions), full_precision(targets))
        terms = {"prediction": prediction}
        if self.method.regularizer:  # C-JEPA, equations 21-22; SIGReg; or VISReg
            predicted, wanted = (_last_level(x, self.method.target.levels) for x in (predictions, targets))
            terms |= self.method.regularizer.terms(context, predicted, wanted, masks, self.projector, seed)
        if features is None:
            features = segment_mean(full_precision(context.detach()), masks.context_lengths)[masks.first_draws]
        return Output(sum(terms.values(), prediction.new_zeros(())), terms, predictions, targets, context, features)

    def encode_context(self, patches: Tensor, masks: Masks) -> Tensor:
        """Features of the context patches (S, D), each draw a sequence."""
        return encode_windows(self.encoder, self.method.conditioning, patches, masks, self.grid)

    @torch.no_grad()
    def encode_target(
        self, patches: Tensor, masks: Masks, teacher_features: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the predictor is to say (S', D), block by block; and features (B, D) if the target encoder was run."""
        n, device = self.grid[0] * self.grid[1], patches.device
        image_of_block = masks.image_of_draw[masks.draw_of_block]
        rows = _patch_rows(image_of_block, masks.target_lengths, masks.targets, self.grid).to(device)
        if self.method.target.kind == "pixels":
            return self.method.target.normalise(patches.index_select(0, rows)), None
        if not self.method.target.learned:
            if teacher_features is None:
                raise UserError("target.teacher is set: give the teacher's features of the images with teacher_features")
            return self.method.target.normalise(full_precision(teacher_features)).index_select(0, rows), None
        encoder, conditioning, layers = self.target_encoder, self.method.conditioning, self.method.target.layers or ()
        index = torch.arange(n, device=device).repeat(len(patches) // n)
        tokens = encoder.embed(patches, index)
        if conditioning is None or not conditioning.target_encoder:
            full = encoder(tokens, Layout(np.full(len(tokens) // n, n), device), layers)
        else:  # the context is part of the input, so each draw is a pass of its own
            extra, counts = conditioning.for_target_encoder(masks, encoder.all_positions(), self.grid)
            draws = len(masks.image_of_draw)
            tokens = tokens.unflatten(0, (-1, n))[torch.from_numpy(masks.image_of_draw).to(device)].flatten(0, 1)
            full = conditioned(encoder, tokens, np.full(draws, n), extra, counts, layers)
            rows = _patch_rows(masks.draw_of_block, masks.target_lengths, masks.targets, self.grid).to(device)
        full = full_precision(full)
        levels, full = (full[:, : -encoder.config.width], full[:, -encoder.config.width :]) if layers else (full, full)
        targets = self.method.target.normalise(levels).index_select(0, rows)
        features = full.unflatten(0, (-1, n)).mean(1)
        return targets, features if len(features) == masks.images else features[masks.first_draws]

    def fix_rows(self, batches: Sequence[Masks]) -> None:
        """Pad packed batches to one number of rows, so that shapes are static: one that nearly all of `batches` fit into.

        A larger batch takes a multiple of it. Rows beyond the tokens are in no sequence, and nothing of them comes out.
        """
        context, target_rows, predictor = [], [], []
        n, conditioning = self.grid[0] * self.grid[1], self.method.conditioning
        for masks in batches:
            of = (masks, self.encoder.positions, self.grid)
            context.append(
                masks.context_lengths.sum()
                + (conditioning.for_encoder(*of)[1].sum() if conditioning and conditioning.encoder else 0)
            )
            if conditioning and conditioning.target_encoder:  # else all of its sequences are whole images
                target_rows.append(len(masks.context_lengths) * n + conditioning.for_target_encoder(*of)[1].sum())
            predictor.append((masks.context_lengths[masks.draw_of_block] + masks.target_lengths).sum())
        parts = (self.encoder, context), (self.target_encoder, target_rows), (self.predictor, predictor)
        for part, rows in parts:
            part.row_multiple = _most_rows(rows) if rows else None

    def compile_blocks(self) -> None:
        """Compile what stands around attention in each block (torch.compile): once for sequences of all lengths or, where
        rows are fixed, for that one shape, which on CUDA becomes CUDA graphs."""
        how: dict[str, Any] = {"dynamic": False, "mode": "reduce-overhead"} if self.predictor.row_multiple else {"dynamic": True}
        for block in (*self.encoder.blocks, *self.target_encoder.blocks, *self.predictor.predictor_blocks):
            block.compile(**how)
            # lazily, as only the last is used so, and its targets are as many as they are
            block.forward_rows = torch.compile(block.forward_rows, dynamic=True)  # type: ignore[assignment]

    def parts_to_shard(self) -> list[nn.Module]:
        """What a process can be lent one after the other (FSDP2): blocks, then what holds them."""
        wholes = self.encoder, self.target_encoder, self.predictor
        return [*self.encoder.blocks, *self.target_encoder.blocks, *self.predictor.predictor_blocks, *wholes]

    def recompute_blocks(self) -> None:
        """Keep the input of each block only, and compute the rest again in the backward pass: the same numbers, less memory."""
        for block in (*self.encoder.blocks, *self.predictor.predictor_blocks):
            for name in ("forward", "forward_rows"):
                again = partial(checkpoint, getattr(block, name), use_reentrant=False, preserve_rng_state=False)
                setattr(block, name, again)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser moves: all but the target encoder's."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update_target_encoder(self, momentum: float) -> None:
        """theta_bar <- momentum * theta_bar + (1 - momentum) * theta (I-JEPA, section 3)."""
        lerp_(list(self.target_encoder.parameters()), list(self.encoder.parameters()), 1 - momentum)


def encode_windows(
    encoder: ViT, conditioning: PositionConditioning | None, patches: Tensor, masks: Masks, grid: tuple[int, int]
) -> Tensor:
    """Features (S, D) by an encoder of the context windows of `masks`, told of the targets' positions if it is conditioned."""
    rows = _patch_rows(masks.image_of_draw, masks.context_lengths, masks.context, grid).to(patches.device)
    index = torch.from_numpy(masks.context).to(patches.device, non_blocking=True)
    tokens = encoder.embed(patches.index_select(0, rows), index)
    if conditioning is None or not conditioning.encoder:
        return encoder(tokens, Layout(masks.context_lengths, patches.device))  # type: ignore[no-any-return]
    extra, counts = conditioning.for_encoder(masks, encoder.all_positions(), grid)
    return conditioned(encoder, tokens, masks.context_lengths, extra, counts)


def conditioned(
    encoder: ViT, tokens: Tensor, lengths: Indices, extra: Tensor, counts: Indices, levels: Sequence[int] = ()
) -> Tensor:
    """The encoder on sequences with conditioning tokens behind them, whose outputs are dropped: as `ViT.forward`."""
    padded_length = None if encoder.row_multiple else choose_padded_length(lengths + counts, tokens.device)
    sequences = interleave(lengths, counts, tokens.device, padded_length=padded_length, row_multiple=encoder.row_multiple)
    return take(encoder(sequences.join(tokens, extra.to(tokens.dtype)), sequences.layout, levels), sequences.a_rows)


def _last_level(features: Tensor, levels: int) -> Tensor:
    """Of targets of several layers the last one's: (S', levels * D) -> (S', D)."""
    return features if levels == 1 else features[:, -(features.shape[1] // levels) :]


def _most_rows(rows: Sequence[int]) -> int:
    """Mean and four deviations, in eights (for the multiplication units of devices)."""
    return 8 * math.ceil((np.mean(rows) + 4 * np.std(rows)) / 8)


def _patch_rows(image: Indices, lengths: Indices, index: Indices, grid: tuple[int, int]) -> Tensor:
    """Rows of the (B * N, ...) patches that stand at `index` of each sequence's image."""
    return torch.from_numpy(np.repeat(image * (grid[0] * grid[1]), lengths) + index)
