"""Attention over packed sequences, with the backend that is fastest for the device and dtype.

S packed tokens, H heads, d head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.core.torch_private import uncompiled
from jepakit.model.layout import Layout

REGISTER = 32  # bfloat16 numbers in 512 bits


# A compiled block is what stands around attention: lengths are the host's, and the kernels are made already.
@uncompiled
def attention(qkv: Tensor, layout: Layout) -> Tensor:
    """Softmax attention of each token over the tokens of its own sequence: (S, 3, H, d) -> (S, H * d); 0 in padding rows."""
    if layout.padding_rows:
        return layout.fill(attention(qkv[: layout.used], layout.without_padding_rows))
    if _has_varlen(qkv):
        q, k, v = qkv.unbind(1)
        return _varlen(q, k, v, layout, layout)
    q, k, v = layout.pad(qkv).permute(2, 0, 3, 1, 4).unbind(0)  # each (n, H, L, d)
    return layout.unpad(_padded(q, k, v, layout).transpose(1, 2).flatten(2))


@uncompiled
def attention_of_queries(q: Tensor, kv: Tensor, queries: Layout, layout: Layout) -> Tensor:
    """`attention` for some tokens of each sequence: q (S', H, d), laid out by `queries`, and kv (S, 2, H, d) -> (S', H * d)."""
    if layout.padding_rows:
        kv, layout = kv[: layout.used], layout.without_padding_rows
    if _has_varlen(q):
        k, v = kv.unbind(1)
        return _varlen(q, k, v, queries, layout)
    k, v = layout.pad(kv).permute(2, 0, 3, 1, 4).unbind(0)
    return queries.unpad(_padded(queries.pad(q).transpose(1, 2), k, v, layout).transpose(1, 2).flatten(2))


def _padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """(n, H, L', d), and k and v (n, H, L, d) of which `layout` says what is real -> (n, H, L', d)."""
    valid = None if layout.full else layout.valid
    # Without AMX the CPU's fused kernel has a bf16 backward 3-9 times slower than three plain products.
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return _explicit(q, k, v, valid) if plain else F.scaled_dot_product_attention(q, k, v, attn_mask=valid)


def _has_varlen(x: Tensor) -> bool:
    """Whether the flash kernel for sequences of any length takes these: half precision, Ampere or later, its head widths."""
    if not x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(x.device)[0] >= 8 and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256


def _explicit(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
    # A bf16 softmax takes up to five times as long on rows that end within a register: keys that nobody sees fill its last half.
    if valid is not None and 0 < (padding := -k.shape[2] % REGISTER) <= REGISTER // 2:
        k, v, valid = F.pad(k, (0, 0, 0, padding)), F.pad(v, (0, 0, 0, padding)), F.pad(valid, (0, padding))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if valid is not None:  # added in place: masked_fill would copy the scores, and their gradient, which is 0 there anyway
        scores += torch.zeros_like(valid, dtype=scores.dtype).masked_fill_(~valid, float("-inf"))
    out: Tensor = scores.softmax(-1) @ v
    return out


def _varlen(q: Tensor, k: Tensor, v: Tensor, queries: Layout, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = (queries.cumulative, layout.cumulative), (queries.max_length, layout.max_length)
    return varlen_attn(q, k, v, *ends, *longest).flatten(1)  # type: ignore[no-any-return, union-attr]
