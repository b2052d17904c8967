"""How a plan of a run is said: aligned text."""

from dataclasses import asdict
from textwrap import wrap

from jepakit.planning.failures import DEVICE_HOURS, WRITE_RATE
from jepakit.planning.flops import Flops
from jepakit.planning.network import SHARE_OF_LINK
from jepakit.planning.results import Checkpoints, Communication, Memory, OtherSharding, Plan, Speed

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
    if plan.other:
        lines += [_other_line(plan.other, m, size, unit)]
    if plan.speed and plan.speed.between:
        lines += _between(plan.speed.between, plan)
    if plan.speed:
        lines += _section(f"time ({plan.speed.source})", _speed_rows(plan.speed))
    if plan.checkpoints:
        lines += _section(_CHECKPOINTS, _checkpoint_rows(plan.checkpoints))
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
        ("teacher", m.teacher, ""),
        ("AdamW's moments", m.moments, ""),
        ("gradients", m.gradients, "at the fullest moment of the step"),
        ("activations", m.activations, "kept for the backward pass"),
        ("passing", m.temporaries, "of the operation at that moment"),
        ("of other devices", m.gathered, "blocks' weights and the regulariser's rows, gathered"),
        ("images", m.images, "of the batch"),
        *([] if m.on_host else [("batches ahead", m.loader, "made by the loader")]),
        ("gaps", m.fragmentation, f"in the heap at first, more later; {elsewhere}"),
        ("process", m.process, "CUDA's context and libraries; assumed" if m.on_host else f"Python and libraries; {elsewhere}"),
        ("together", m.total, f"{m.fixed / 1e9:.2f} GB, and {m.per_image / 1e6:.3g} MB an image"),
        *([("host: batches ahead", m.loader, "made by the loader")] if m.on_host else []),
    ]
    return [(name, value / unit, remark) for name, value, remark in rows if value]


def _other_line(other: OtherSharding, m: Memory, size: float, unit: str) -> str:
    rate = "" if other.images_per_second is None else f", {other.images_per_second:,.0f} images/s"
    return (
        f"  with run.sharding={other.sharding} {_number(other.memory / size)} {unit} in place of {_number(m.total / size)}{rate}"
    )


def _between(b: Communication, plan: Plan) -> list[str]:
    """What passes between devices, and an update's time."""
    many = f"{b.nodes} nodes of {plan.devices // b.nodes}, {b.network:g} Gb/s each; " if b.nodes > 1 else ""
    title = f"between devices, MB an update ({many}{b.interconnect:g} GB/s a device; {SHARE_OF_LINK:.0%} of it assumed)"
    passing: list[_Row] = [
        ("gradients", b.traffic.gradients, "summed" if plan.sharding == "full" else "summed, and given to all"),
        ("weights", b.traffic.parameters, "gathered, twice for those that are trained"),
        ("statistics", b.traffic.statistics, "the regulariser's sums or rows, and norms' sums"),
        ("sent by a device", b.sent_by_device, "in its node"),
        ("sent by a node", b.sent_by_node, "to the others"),
    ]
    beside = "beside the forward and backward pass" if plan.sharding == "full" else "beside the backward pass"
    spent: list[_Row] = [
        ("computing", b.alone, "its own images"),
        ("others' statistics", b.regularizer, "each device computes the regulariser of all rows"),
        ("waiting", b.waited, f"of {_number(b.seconds * 1e3)} that communication takes, the rest {beside}"),
        ("together", b.step, f"{b.alone / b.step:.0%} of what as many devices alone would do"),
    ]
    return [
        *_section(title, [(name, value / 1e6, said) for name, value, said in passing if value]),
        *_section("time of an update, ms", [(name, value * 1e3, said) for name, value, said in spent if value]),
    ]


_CHECKPOINTS = (
    f"checkpoints ({WRITE_RATE / 1e9:g} GB/s to storage and a failure in {DEVICE_HOURS:,.0f} hours of a device: assumed)"
)


def _checkpoint_rows(c: Checkpoints) -> list[_Row]:
    return [
        ("GB of each", c.size / 1e9, f"{_number(c.seconds)} s to write"),
        ("hours between failures", c.hours_between_failures, "of all devices"),
        ("run.save_every_steps", c.best_steps, f"loses least: {c.lost:.2%} of the time; as it is set {c.lost_as_set:.2%}"),
    ]


def _speed_rows(speed: Speed) -> list[_Row]:
    b = speed.between
    rows: list[_Row] = [
        ("images/s", speed.images_per_second, ""),
        *([("images/s a node", speed.images_per_second / b.nodes, "to be read by its host")] if b and b.nodes > 1 else []),
        ("hours a million images", speed.hours_per_million, "" if speed.hours else "--data SRC says how many a run sees"),
    ]
    if speed.hours is not None and speed.images is not None:
        rows.append(("hours of the run", speed.hours, f"{speed.images:,} images seen"))
    return rows
