"""What a plan of a run says."""

from dataclasses import dataclass

from jepakit.planning.flops import Flops


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int
    target_encoder: int
    predictor: int
    projector: int
    teacher: int = 0


@dataclass(frozen=True)
class TokenCounts:
    """Patches of an image; means over the sampled masks: patches of all its contexts, of all its target blocks; how many of
    these blocks and contexts there are."""

    patches: int
    context: float
    targets: float
    blocks: float
    contexts: float
    sampled: int  # images


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step.

    gradients: those there at that moment; activations: kept for the backward pass; temporaries: freed a moment later;
    gathered: of what other devices hold, the regulariser's rows and blocks' weights; images: of the batch; fragmentation: gaps
    in the heap; process: libraries; loader: batches made ahead, in the host's memory (`on_host`) or in this one. total: the
    sum, about fixed + per_image * images. usable: what a step may take; largest: images at a time that fit into it.
    """

    weights: int
    target_encoder: int
    teacher: int
    moments: int
    gradients: int
    activations: int
    temporaries: int
    gathered: int
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
class Traffic:
    """Bytes that pass between devices in an update: gradients summed, weights gathered, and what statistics need."""

    gradients: int
    parameters: int
    statistics: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.gradients + self.parameters + self.statistics


@dataclass(frozen=True)
class Communication:
    """Between `nodes` nodes of devices: what passes in an update, what of it a device sends, and a node to the others.

    seconds: of an update's, those that it takes; waited: those in which nothing else is done; regularizer: in which every
    device computes statistics of all others' rows too. alone: what the update would take if nothing passed.
    """

    nodes: int
    interconnect: float  # GB/s a device
    network: float  # Gb/s a node
    traffic: Traffic
    sent_by_device: int
    sent_by_node: int
    seconds: float
    waited: float
    regularizer: float
    alone: float

    @property
    def step(self) -> float:
        """Seconds of an update."""
        return self.alone + self.regularizer + self.waited


@dataclass(frozen=True)
class Speed:
    """Images a second of all devices, and hours; images: seen in the whole run, if that is known. source: where from."""

    images_per_second: float
    hours_per_million: float
    images: int | None
    hours: float | None
    source: str
    between: Communication | None = None  # several devices


@dataclass(frozen=True)
class OtherSharding:
    """The same run with the other value of run.sharding: bytes on each device, and images a second of all."""

    sharding: str
    memory: int
    images_per_second: float | None


@dataclass(frozen=True)
class Checkpoints:
    """Bytes of one, seconds to write it, hours between failures; how many steps between two lose least, and what shares of the
    time are lost with that, and with run.save_every_steps as it is set."""

    size: int
    seconds: float
    hours_between_failures: float
    best_steps: int
    lost: float
    lost_as_set: float


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
    sharding: str = "none"
    other: OtherSharding | None = None  # several devices
    checkpoints: Checkpoints | None = None  # several devices
