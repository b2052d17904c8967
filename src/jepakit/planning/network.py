"""What the devices of a run send each other in a step, and how long it takes: closed forms of ring collectives.

A gather of S bytes by n devices has each send (n - 1) / n S, as has a sum of which each device keeps its part; a sum that all
keep (an all-reduce) is the one after the other, 2 (n - 1) / n S. Over nodes they go in steps: within each node over its
interconnect, and among the nodes, where each sends (m - 1) / m S over its network. NCCL's latency is not counted.
"""

from jepakit.config.config import Config
from jepakit.model.regularizers.sigreg import SIGReg
from jepakit.planning.hardware import Hardware, Links
from jepakit.planning.results import Parameters, TokenCounts, Traffic

SHARE_OF_LINK = 0.8  # of a data sheet's bandwidth, assumed
FP32 = 4  # bytes: gradients, gathered weights and statistics are in full precision
GATHERED_COPIES = 3  # of gathered rows that a step holds: themselves, centred, and their gradient


def traffic(config: Config, place: Hardware, parameters: Parameters, tokens: TokenCounts) -> Traffic:
    """Bytes that pass in an update, an all-reduce's twice: what each device would send if there were very many of them."""
    trained = FP32 * (parameters.encoder + parameters.predictor + parameters.projector)
    micro_batches = config.optim.accumulate
    # Sharded: gathered for the forward pass, again for the backward, and its gradients summed; the target encoder once.
    target = FP32 * parameters.target_encoder * (config.target.kind == "features" and config.target.learned)
    statistics = config.optim.batch_size * 2 * gathered_bytes(config, tokens) + micro_batches * _sums(config)
    if place.sharded:
        return Traffic(trained * micro_batches, (2 * trained + target) * micro_batches, statistics)
    return Traffic(2 * trained, 0, statistics)


def gathered_bytes(config: Config, tokens: TokenCounts) -> int:
    """Bytes of an image's rows that the regulariser must see beside all other images': VICReg's and VISReg's."""
    rows, width = regularized(config, tokens)
    return 0 if isinstance(config.regularizer, SIGReg) else round(FP32 * rows * width)


def regularized(config: Config, tokens: TokenCounts) -> tuple[float, int]:
    """Rows of an image that the regulariser looks at, and their features; 0 without one."""
    r = config.regularizer
    if r is None:
        return 0.0, 0
    width = r.projector[-1] if r.projector else config.encoder.width
    return (tokens.contexts if r.tensor == "context_pooled" else tokens.blocks), width


def _sums(config: Config) -> int:
    """Bytes of the sums that a micro-batch needs over all devices: of batch-normalised targets, a projector's batch norms
    (and, backward, of their gradients) and SIGReg's characteristic functions."""
    r, numbers = config.regularizer, 0
    if config.target.kind == "features" and config.target.norm == "batch":
        numbers += 2 * 2 * config.target.width(config.encoder.width, 0)
    if r is not None:
        numbers += 4 * sum(2 * width for width in r.projector[:-1])
    if isinstance(r, SIGReg):
        views = 1 if r.tensor == "context_pooled" else getattr(config.masking, "targets", 1)
        numbers += 4 * 2 * views * r.directions * r.knots
    return FP32 * numbers


def sent(total: int, place: Hardware) -> tuple[int, int]:
    """Bytes that a device sends within its node, and a node to the others, of so many that pass."""
    m, n = place.links.nodes, place.devices // place.links.nodes
    return total * (n - 1) // n, total * (m - 1) // m


def seconds_to_pass(total: int, place: Hardware) -> float:
    """How long so many bytes take to pass: within the nodes, and then among them."""
    links: Links = place.links
    in_node, among = sent(total, place)
    within = in_node / (links.interconnect * 1e9) if in_node else 0.0
    return (within + (among / (links.network / 8 * 1e9) if among else 0.0)) / SHARE_OF_LINK
