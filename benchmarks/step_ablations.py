"""One thing of ours done the plain way, each as a context in which a step is taken: what does the decision buy?"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from step_cases import OurStep
from torch import Tensor

from jepakit.model import attention, layout, linear
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout, take
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.vit import Block


def other_attention(step: OurStep) -> AbstractContextManager[Any]:
    """On a CPU: torch's fused kernel in bf16, attention written out in fp32."""
    fused, explicit, stack = F.scaled_dot_product_attention, attention._explicit, ExitStack()
    stack.enter_context(mock.patch.object(attention, "_explicit", lambda q, k, v, valid: fused(q, k, v, attn_mask=valid)))
    stack.enter_context(
        mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, attn_mask: explicit(q, k, v, attn_mask))
    )
    return stack


def default_adamw(step: OurStep) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for group in step.adamw.param_groups:
        stack.enter_context(mock.patch.dict(group, fused=None))
    return stack


def looped_average(step: OurStep) -> AbstractContextManager[Any]:
    @torch.no_grad()
    def update(jepa: JEPA, momentum: float) -> None:
        for average, p in zip(jepa.target_encoder.parameters(), jepa.encoder.parameters(), strict=True):
            average.mul_(momentum).add_((1 - momentum) * p)

    return mock.patch.object(JEPA, "update_target_encoder", update)


def embedded_first(step: OurStep) -> AbstractContextManager[Any]:
    """Embed every patch, then gather the context's."""

    def encode(encoder: Any, conditioning: None, patches: Tensor, masks: Masks, grid: tuple[int, int]) -> Tensor:
        n, device = grid[0] * grid[1], patches.device
        rows = torch.from_numpy(np.repeat(masks.image_of_draw * n, masks.context_lengths) + masks.context)
        tokens = encoder.embed(patches, torch.arange(n, device=device).repeat(masks.images))
        return encoder(tokens.index_select(0, rows.to(device)), Layout(masks.context_lengths, device))

    return mock.patch("jepakit.model.jepa.encode_windows", encode)


def stock_gathers(step: OurStep) -> AbstractContextManager[Any]:
    """torch's own backward of a gather and of a scatter, which add."""

    class Take:
        @staticmethod
        def apply(x: Tensor, index: Tensor) -> Tensor:
            return x.index_select(0, index)

    class Spread:
        @staticmethod
        def apply(x: Tensor, index: Tensor, rows: int) -> Tensor:
            return x.new_zeros(rows, *x.shape[1:]).index_copy(0, index, x)

    return mock.patch.multiple(layout, _Take=Take, _Spread=Spread)


def all_rows(step: OurStep) -> AbstractContextManager[Any]:
    """The predictor's last block in whole, though only target rows are read."""

    def forward_rows(block: Block, x: Tensor, layout: Layout, rows: Tensor, queries: Layout) -> Tensor:
        return take(block(x, layout), rows)

    return mock.patch.object(Block, "forward_rows", forward_rows)


def padded_contexts(step: OurStep) -> AbstractContextManager[Any]:
    """Contexts as long as the batch's longest everywhere: what padding them costs, a mask in attention aside."""
    forward = JEPA.forward
    return mock.patch.object(JEPA, "forward", lambda jepa, images, masks: forward(jepa, images, padded(masks)))


def padded(masks: Masks) -> Masks:
    """Each context's first index again until it is as long as the longest."""
    lengths = masks.context_lengths
    place, first = np.arange(lengths.max()), (lengths.cumsum() - lengths)[:, None]
    context = masks.context[first + np.where(place < lengths[:, None], place, 0)]
    return Masks(**{**vars(masks), "context": context.ravel(), "context_lengths": np.full_like(lengths, len(place))})


def own_product(step: OurStep) -> AbstractContextManager[Any]:
    """Linear maps by torch's own product, in fp32 MKL's."""
    return mock.patch.object(linear, "BY_ONEDNN", frozenset())


def rows_as_they_come(step: OurStep) -> AbstractContextManager[Any]:
    """Another number of rows at each step, for which a CPU's library makes its code anew."""
    stack = ExitStack()
    for module in (layout, linear):
        stack.enter_context(mock.patch.object(module, "default_row_multiple", lambda rows: 1))
    return stack


def keys_as_they_come(step: OurStep) -> AbstractContextManager[Any]:
    """Softmax over the keys that there are, not over whole registers."""
    return mock.patch.object(attention, "REGISTER", 1)


ABLATIONS: dict[str, Callable[[OurStep], AbstractContextManager[Any]]] = {
    "the other attention": other_attention,
    "AdamW not fused": default_adamw,
    "average in a loop": looped_average,
    "gathered after embedding": embedded_first,
    "torch's own gathers": stock_gathers,
    "contexts padded": padded_contexts,
    "torch's own product": own_product,
    "rows as they come": rows_as_they_come,
    "keys as they come": keys_as_they_come,
    # The exact algebra: a row for each identity, which has it done the long way
    "last block on all rows": all_rows,
}
