"""What a plan of a run says, and how it is said."""

from dataclasses import asdict, dataclass
from textwrap import wrap

from jepakit.planning.flops import Flops


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int
    target_encoder: int
    predictor: int
    projector: int


@dataclass(frozen=True)
class TokenCounts:
    """Patches of an image; means over the sampled masks: patches of all its contexts, of all its target blocks; blocks."""

    patches: int
    context: float
    targets: float
    blocks: float
    sampled: int  # images


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step.

    gradients: those there at that moment; activations: kept for the backward pass; temporaries: freed a moment later;
    images: of the batch; fragmentation: gaps in the heap; process: libraries; loader: batches made ahead, in the host's
    memory (`on_host`) or in this one. total: the sum, about fixed + per_image * images. usable: what a step may take; largest:
    images at a time that fit into it.
    """

    weights: int
    target_encoder: int
    moments: int
    gradients: int
    activations: int
    temporaries: int
    images: int
    fragmentation: int
    process: int
    loader: int
    on_host: bool
    total: int
    fixed: int = 0
    per_image: int = 0
    usable: int = 0
    largest: int = 0

    @property
    def fits(self) -> bool:
        """Whether a step goes into what may be used of the device."""
        return self.total <= self.usable


@dataclass(frozen=True)
class Speed:
    """Images a second of all devices, and hours; images: seen in the whole run, if that is known. source: where from."""

    images_per_second: float
    hours_per_million: float
    images: int | None
    hours: float | None
    source: str


@dataclass(frozen=True)
class Plan:
    """What a run will take. batch: images an update; at_a_time: those that a device holds; flops: an image's.

    speed is none where a step does not fit the present machine, so that nothing could be measured; choice: for what images
    settings were chosen, and which and why, if images were given and no recipe was named.
    """

    recipe: str | None
    method: str | None
    device: str
    devices: int
    precision: str
    batch: int
    accumulate: int
    at_a_time: int
    parameters: Parameters
    tokens: TokenCounts
    flops: Flops
    memory: Memory
    speed: Speed | None
    verdict: str
    choice: tuple[str, ...] = ()


WIDE = 100  # columns
_Row = tuple[str, float, str]  # name, number in the section's unit, remark


def plan_table(plan: Plan) -> str:
    """The plan as aligned text of at most 100 columns."""
    several = f"{plan.devices} x " if plan.devices > 1 else ""
    parts = f", {plan.at_a_time:,} at a time" if plan.at_a_time < plan.batch else ""
    lines = [
        f"{plan.recipe or 'settings'}, {plan.method or 'a method of your own'}, on {several}{plan.device} in {plan.precision}, "
        f"{plan.batch:,} images an update{parts}"
    ]
    lines += [f"chosen for {plan.choice[0]}:", *(f"  {line}" for line in plan.choice[1:])] if plan.choice else []
    m, tokens = plan.memory, plan.tokens
    parameters = [(name.replace("_", " "), n / 1e6, "") for name, n in asdict(plan.parameters).items() if n]
    lines += _section("parameters, M (counted)", parameters)
    shown = [
        ("patches", tokens.patches, ""),
        ("context", tokens.context, f"{tokens.context / tokens.patches:.0%} of the patches"),
        ("targets", tokens.targets, f"in {tokens.blocks:g} blocks"),
    ]
    lines += _section(f"tokens an image (mean over the masks of {tokens.sampled:,})", shown)
    lines += _section("GFLOP an image and step (closed form, without padding)", _flops_rows(plan.flops))
    unit, size = ("GB", 1e9) if m.total > 1e10 else ("MB", 1e6)
    lines += _section(f"memory of {'each' if several else 'the'} device, {unit} (a step simulated)", _memory_rows(m, size))
    if plan.speed:
        lines += _section(f"time ({plan.speed.source}{'; linear in devices' if several else ''})", _speed_rows(plan.speed))
    indents = [(line, "    " if line.startswith(" ") else "") for line in [*lines, plan.verdict]]
    return "\n".join(
        part for line, indent in indents for part in wrap(line, WIDE, replace_whitespace=False, subsequent_indent=indent)
    )


def _section(title: str, rows: list[_Row]) -> list[str]:
    return [title, *(f"  {name:26}{_number(value):>12}  {remark}".rstrip() for name, value, remark in rows)]


def _number(value: float) -> str:
    """At least three digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _flops_rows(flops: Flops) -> list[_Row]:
    rows = [
        ("target encoder", flops.target_encoder),
        ("encoder forward", flops.encoder_forward),
        ("encoder backward", flops.encoder_backward),
        ("predictor forward", flops.predictor_forward),
        ("predictor backward", flops.predictor_backward),
        ("regulariser", flops.regularizer),
        ("together", flops.total),
    ]
    return [(name, value / 1e9, f"{value / flops.total:.0%}") for name, value in rows if value]


def _memory_rows(m: Memory, unit: float) -> list[_Row]:
    elsewhere = "measured elsewhere"
    rows = [
        ("weights", m.weights, ""),
        ("target encoder", m.target_encoder, ""),
        ("AdamW's moments", m.moments, ""),
        ("gradients", m.gradients, "at the fullest moment of the step"),
        ("activations", m.activations, "kept for the backward pass"),
        ("passing", m.temporaries, "of the operation at that moment"),
        ("images", m.images, "of the batch"),
        *([] if m.on_host else [("batches ahead", m.loader, "made by the loader")]),
        ("gaps", m.fragmentation, f"in the heap at first, more later; {elsewhere}"),
        ("process", m.process, "CUDA's context and libraries; assumed" if m.on_host else f"Python and libraries; {elsewhere}"),
        ("together", m.total, f"{m.fixed / 1e9:.2f} GB, and {m.per_image / 1e6:.3g} MB an image"),
        *([("host: batches ahead", m.loader, "made by the loader")] if m.on_host else []),
    ]
    return [(name, value / unit, remark) for name, value, remark in rows if value]


def _speed_rows(speed: Speed) -> list[_Row]:
    rows: list[_Row] = [
        ("images/s", speed.images_per_second, ""),
        ("hours a million images", speed.hours_per_million, "" if speed.hours else "--data SRC says how many a run sees"),
    ]
    if speed.hours is not None and speed.images is not None:
        rows.append(("hours of the run", speed.hours, f"{speed.images:,} images seen"))
    return rows
