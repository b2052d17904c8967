"""Memory of a training step, found by taking one with tensors that have a shape but no storage, so on any machine.

Every storage of the forward and backward pass is followed from its birth to its end; what counts is the peak.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepakit.artifacts.load import build_jepa
from jepakit.config.config import Config
from jepakit.core.device import autocast
from jepakit.core.torch_private import dispatch_mode, fake_tensors, tensors_of
from jepakit.data.crops import draw_turns
from jepakit.data.loader import AHEAD
from jepakit.model import attention, encoder, layout, linear
from jepakit.model.encoder import Encoder
from jepakit.model.images import normalise, turned
from jepakit.model.jepa import JEPA
from jepakit.model.layout import Layout
from jepakit.model.masking.masks import Masking, MultiBlock
from jepakit.model.masking.packed_masks import Masks
from jepakit.model.teacher import Teacher
from jepakit.model.vit import Block
from jepakit.planning import flops
from jepakit.planning.hardware import Hardware
from jepakit.planning.network import held_bytes
from jepakit.planning.results import Memory, TokenCounts

TorchDispatchMode: Any = dispatch_mode()
CPU = torch.device("cpu")
USABLE_CUDA = 0.9  # of a device's memory: the rest is for what its allocator cannot use
USABLE_CPU = 0.5  # gaps in the heap grow: measured, over hundreds of steps a process came to 1.8 times its first steps
# What a CPU's heap leaves between tensors in first steps, over what the passes hold; micro-batches and bf16 add to it: measured
GAPS, GAPS_OF_MICRO_BATCHES, GAPS_OF_BF16 = 0.25, 0.2, 0.12
PROCESS_CPU = {torch.float32: 550_000_000, torch.bfloat16: 600_000_000}  # measured, with oneDNN's kernels (model/linear.py)
PROCESS_CUDA = 700_000_000  # CUDA's context and libraries, assumed
RELEASED_STEPS, RELEASED_IMAGES = 24, 2048  # looked at under the released law
MOST_IMAGES = 1 << 16  # at a time; more are not tried
_TRIES = 4  # to find how many images fit


def plan_memory(config: Config, place: Hardware, at_a_time: int, tokens: TokenCounts, teacher: Encoder | None = None) -> Memory:
    """Memory for so many images at a time, and how many fit: by the secant through two numbers of images, then tried.

    tokens: of an image; teacher: whose features are the targets.
    """
    few, many = (at_a_time, 2 * at_a_time) if at_a_time <= 2 else (2, at_a_time)
    usable = int((USABLE_CUDA if place.cuda else USABLE_CPU) * place.memory)
    tried = {n: step_memory(config, place, n, tokens, teacher) for n in (few, many)}
    slope = (tried[many].total - tried[few].total) / (many - few)
    fixed = tried[few].total - slope * few
    last, n = few, many
    for _ in range(_TRIES):  # under the released law memory is no line: more images, shorter contexts
        local = (tried[n].total - tried[last].total) / (n - last)
        wanted = int(min(max(2, n + (usable - tried[n].total) // local), MOST_IMAGES))
        if wanted in tried:
            break
        last, n = n, wanted
        tried[n] = step_memory(config, place, n, tokens, teacher)
    largest = max((n for n in tried if tried[n].total <= usable), default=0)
    return replace(tried[at_a_time], fixed=int(fixed), per_image=int(slope), usable=usable, largest=largest)


def step_memory(
    config: Config, place: Hardware, images: int, tokens: TokenCounts | None = None, teacher: Encoder | None = None
) -> Memory:
    """Memory for so many images at a time; what only two numbers of images can say (fixed, per_image, ...) is left at 0.

    tokens: of an image, where several devices gather rows of it.
    """
    peak = _simulated(config, replace(place, sharded=False), images, teacher)
    with torch.device("meta"):
        jepa = build_jepa(config)
    parts = place.devices if place.sharded else 1
    target = sum(x.nbytes for x in jepa.target_encoder.state_dict().values())
    weights = sum(x.nbytes for x in jepa.state_dict().values()) - target
    trained, gradients = sum(p.nbytes for _, p in jepa.trained_parameters()), peak.gradients
    gathered = 0 if tokens is None else held_bytes(config, tokens) * images * (place.devices - 1)
    if place.sharded:  # a block that computes is whole, with its gradient, and the next one's weights are on their way
        gathered += 3 * max(_block_bytes(jepa.encoder), _block_bytes(jepa.predictor))
    elif place.devices > 1:
        gradients = trained  # DDP's buckets, there from first to last
    gaps = GAPS + (config.optim.accumulate > 1) * GAPS_OF_MICRO_BATCHES + (place.dtype == torch.bfloat16) * GAPS_OF_BF16
    found = Memory(
        weights=weights // parts,
        target_encoder=target // parts,
        teacher=sum(x.nbytes for x in teacher.state_dict().values()) if teacher else 0,
        moments=2 * trained // parts,
        gradients=gradients // parts,
        activations=peak.activations,
        temporaries=peak.temporaries,
        gathered=gathered,
        images=peak.images,
        fragmentation=0 if place.cuda else int(gaps * peak.total),
        process=PROCESS_CUDA if place.cuda else PROCESS_CPU[place.dtype],
        loader=(AHEAD + place.cuda) * peak.images,  # on CPU the last of them is the batch itself
        on_host=place.cuda,
        total=0,
    )
    held = sum(getattr(found, f.name) for f in fields(Memory) if f.name not in ("on_host", "loader", "total"))
    return replace(found, total=held + (0 if place.cuda else found.loader))


def _block_bytes(module: torch.nn.Module) -> int:
    """Bytes of the largest block's parameters."""
    return max(sum(p.nbytes for p in part.parameters()) for part in module.modules() if isinstance(part, Block))


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the peak of forward and backward, without the weights and the optimiser's state.

    gradients: those there at that moment; activations: what the backward pass still needs; images: the batch as it was
    read; temporaries: all else, freed a moment later.
    """

    gradients: int
    activations: int
    images: int
    temporaries: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.gradients + self.activations + self.images + self.temporaries


def peak_memory(config: Config, place: Hardware, images: int, teacher: Encoder | None = None) -> PeakMemory:
    """The peak of a step on one device of a place, with so many images at a time."""
    with torch.device("meta"):
        jepa = build_jepa(config)
    if config.run.recompute:
        jepa.recompute_blocks()
    masks, micro_batches = _large_masks(config, images, images * place.devices), config.optim.accumulate
    # Indices of masks are real numbers.
    flash, rows = _flash_attention() if place.flash else nullcontext(), _without_cpu_rows() if place.cuda else nullcontext()
    unlooked = _replaced(encoder, require_normalised=lambda images, settings: None)  # a teacher's images have no values here
    with fake_tensors()[0](allow_non_fake_inputs=True), flash, rows, unlooked:
        weights = {name: torch.empty_like(value, device=CPU) for name, value in jepa.state_dict().items()}
        jepa.load_state_dict(weights, assign=True)
        shape = (images * micro_batches, config.images.channels, *config.images.height_width)
        with _Live(jepa) as live, torch.autograd.graph.saved_tensors_hooks(live.keep, lambda x: x):
            batch = [torch.empty(shape, dtype=torch.uint8) for _ in range(config.images.views)]
            turns = draw_turns(config.images.symmetry, config.seed, 0, np.arange(len(batch[0])))
            shown = Teacher(teacher, config.images, config.grid, config.target.layers) if teacher else None
            _passes(jepa, config, [turned(view, turns) for view in batch], masks, place.dtype, micro_batches, shown)
    gradients, activations, total = live.at_peak
    size = sum(view.untyped_storage().nbytes() for view in batch)
    return PeakMemory(gradients, activations, size, total - gradients - activations - size)


_simulated = lru_cache(maxsize=8)(peak_memory)  # the same whether sharded or not


def _large_masks(config: Config, images: int, together: int) -> Masks:
    """Masks of some images of `together` on all devices; under the released law of the step that has most to compute."""
    law, grid, seed = config.masking, config.grid, config.seed
    if not is_released(law):
        return law.sample(grid, np.arange(images), seed=seed)

    def work(step: int) -> float:
        return flops.step(config, grid, 1, law.sample(grid, np.arange(8), seed=seed, step=step)).total

    step = max(range(RELEASED_STEPS), key=work)
    ids = np.arange(max(images, min(together, RELEASED_IMAGES)))
    return law.sample(grid, ids, seed=seed, step=step).of_images(slice(images))


def is_released(law: Masking) -> bool:
    """Whether masks are those of the released code: sized by the step, and cut to the shortest of all that go together."""
    return isinstance(law, MultiBlock) and law.compat is not None


def _passes(
    jepa: JEPA,
    config: Config,
    batch: list[Tensor],
    masks: Masks,
    dtype: torch.dtype,
    micro_batches: int,
    teacher: Teacher | None,
) -> None:
    """Forward and backward of the first two micro-batches: the second finds gradients, as all others do."""
    for shown in list(zip(*(view.chunk(micro_batches) for view in batch), strict=True))[:2]:
        images, *of_target = (normalise(view, config.images) for view in shown)
        with autocast(CPU, dtype):
            given = teacher([images, *of_target][-1]) if teacher else None
            out = jepa(images, masks, *of_target, teacher_features=given)
        (out.loss / micro_batches).backward()


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes: bytes of all, of those kept for the backward pass, and of gradients."""

    def __init__(self, jepa: JEPA) -> None:
        super().__init__()
        self.at_peak = (0, 0, 0)  # gradients, kept, all
        self._total = self._saved = self._gradients = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._saved_keys: set[int] = set()  # of those kept for the backward pass
        self._with_gradient: set[int] = set()
        for _, p in jepa.trained_parameters():
            p.register_post_accumulate_grad_hook(self._gradient_grew)
        self._weights = {id(s): s for s in (x.untyped_storage() for x in jepa.state_dict().values())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tensors_of(made):
            self._count(x)
        if self._total > self.at_peak[2]:
            self.at_peak = (self._gradients, self._saved, self._total)
        return made

    def keep(self, x: Tensor) -> Tensor:
        """Called with what autograd saves."""
        key = self._count(x)
        if key is not None and key not in self._saved_keys:
            self._saved_keys.add(key)
            self._saved += x.untyped_storage().nbytes()
        return x

    def _count(self, x: Tensor) -> int | None:
        """The key of a tensor's storage, which is counted if it is new; none for a weight's."""
        storage = x.untyped_storage()
        key = id(storage)
        known = self._storages.get(key)
        if key in self._weights:
            return None
        if known is None or known() is not storage:
            self._total += storage.nbytes()
            self._storages[key] = weakref.ref(storage, partial(self._freed, key, storage.nbytes()))
        return key

    def _freed(self, key: int, size: int, _: Any) -> None:
        del self._storages[key]
        self._total -= size
        if key in self._saved_keys:
            self._saved_keys.remove(key)
            self._saved -= size

    def _gradient_grew(self, p: Tensor) -> None:
        if id(p) not in self._with_gradient:  # the gradient of a second micro-batch is added in place
            self._with_gradient.add(id(p))
            self._gradients += p.nbytes


@contextmanager
def _replaced(module: ModuleType, **others: Any) -> Iterator[None]:
    """Other functions and constants in a module, for a while."""
    theirs = {name: getattr(module, name) for name in others}
    vars(module).update(others)
    try:
        yield
    finally:
        vars(module).update(theirs)


@contextmanager
def _without_cpu_rows() -> Iterator[None]:
    """Tensors without storage are the CPU's: leave out the rows, and the products, that only a CPU has."""
    with _replaced(layout, default_row_multiple=lambda rows: 1), _replaced(linear, BY_ONEDNN=frozenset()):
        yield


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Have tensors without storage take the kernel for sequences of any length; it keeps what one long sequence would."""
    (_, fake), real_has_varlen, real_varlen = fake_tensors(), attention._has_varlen, attention._varlen

    def has_varlen(x: Tensor) -> bool:
        return x.shape[-1] % 8 == 0 and x.dtype != torch.float32 if isinstance(x, fake) else real_has_varlen(x)

    def varlen(q: Tensor, k: Tensor, v: Tensor, queries: Layout, layout: Layout) -> Tensor:
        if not isinstance(q, fake):
            return real_varlen(q, k, v, queries, layout)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return out[0].transpose(0, 1).flatten(1)

    with _replaced(attention, _has_varlen=has_varlen, _varlen=varlen):
        yield
