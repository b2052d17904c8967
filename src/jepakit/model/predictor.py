"""The predictor (I-JEPA, section 3): context features and positions of one target block in, features of the block out.

Parameter names are those of the released code. P predictor width, D encoder width.
"""

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from jepakit.core.ranks import rank
from jepakit.core.settings import Settings
from jepakit.model.layout import Layout, interleave
from jepakit.model.linear import Linear, linear
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.vit import NORM_EPS, Block, ViTConfig, initialise, sincos


class PredictorConfig(Settings):
    """Shape of the predictor; heads none: the encoder's, as released."""

    depth: int = Field(6, ge=1, description="blocks")
    width: int = Field(384, ge=4, multiple_of=4, description="features of a token")
    heads: int | None = Field(None, ge=1, description="attention heads; none: the encoder's")
    stop: float = Field(
        0.0, ge=0, description="standard deviation of the noise on target positions (StoP: .25); 0: where they are is certain"
    )


class Predictor(nn.Module):
    """Each target block is a sequence of its own: the draw's context tokens, then mask tokens at the block's positions."""

    positions: Tensor
    row_multiple: int | None = None  # blocks see a multiple of so many rows (JEPA.fix_rows)

    def __init__(self, config: PredictorConfig, encoder: ViTConfig, grid: tuple[int, int], out_width: int) -> None:
        super().__init__()
        heads = config.heads or encoder.heads
        if config.width % heads:
            raise ValueError(f"predictor.width {config.width} is not a multiple of its {heads} heads; set predictor.heads")
        self.stop = config.stop
        self.predictor_embed = Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.predictor_blocks = nn.ModuleList(Block(config.width, heads, encoder.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.predictor_proj = Linear(config.width, out_width)
        self.register_buffer("positions", torch.from_numpy(sincos(config.width, grid)).float(), persistent=False)
        initialise(self, self.predictor_blocks, encoder.depth_rescale)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def queries(self, wanted: Tensor, seed: int = 0, counts: Sequence[int] | None = None) -> Tensor:
        """What is asked for at positions (S',): mask token + position, (S', P).

        With `stop`, + A n for n ~ N(0, stop^2 I) of each token (StoP, arXiv 2308.00566, section 3): A is the weight that
        also embeds the context, so that it cannot shrink to be rid of the noise; n (S', D) is a function of the seed;
        of `counts` targets of each process, those of this one.
        """
        certain = self.mask_token[0] + self.positions.index_select(0, wanted)
        if not self.stop:
            return certain
        a, generator = self.predictor_embed.weight, torch.Generator(wanted.device).manual_seed(seed)
        own = slice(sum(counts[: rank()]), sum(counts[: rank() + 1])) if counts else slice(None)
        n = self.stop * torch.randn(sum(counts or [len(wanted)]), a.shape[1], generator=generator, device=wanted.device)[own]
        return certain + linear(n.to(a), a, None)

    def forward(self, context: Tensor, masks: Masks, seed: int = 0, counts: Sequence[int] | None = None) -> Tensor:
        """Context features (S, D) -> predictions (targets, D), block by block in the order of `masks`.

        seed, counts: of the noise.
        """
        device = context.device
        seen, wanted = (torch.from_numpy(x).to(device, non_blocking=True) for x in (masks.context, masks.targets))
        tokens = self.predictor_embed(context) + self.positions.index_select(0, seen)
        sequences = interleave(
            masks.context_lengths, masks.target_lengths, device, masks.draw_of_block, row_multiple=self.row_multiple
        )
        x = sequences.join(tokens, self.queries(wanted, seed, counts))
        *blocks, last = cast(list[Block], self.predictor_blocks)
        for block in blocks:
            x = block(x, sequences.layout)
        x = last.forward_rows(
            x, sequences.layout, sequences.b_rows, Layout(masks.target_lengths, device)
        )  # nobody reads the others
        return self.predictor_proj(self.predictor_norm(x))  # type: ignore[no-any-return]
