"""What the devices of a run send each other in a step, and how long it takes: closed forms of ring collectives.

A gather of S bytes by n devices has each send (n - 1) / n S, as has a sum of which each device keeps its part; a sum that all
keep (an all-reduce) is the one after the other, 2 (n - 1) / n S. Over nodes they go in steps: within each node over its
interconnect, and among the nodes, where each sends (m - 1) / m S over its network. NCCL's latency is not counted.
"""

from jepakit.config.config import Config
from jepakit.model.regularizers.sigreg import SIGReg
from jepakit.model.regularizers.vicreg import VICReg
from jepakit.model.regularizers.visreg import VISReg
from jepakit.planning.hardware import Hardware, Links
from jepakit.planning.results import Parameters, TokenCounts, Traffic

SHARE_OF_LINK = 0.8  # of a data sheet's bandwidth, assumed
FP32 = 4  # bytes: gradients, gathered weights and statistics are in full precision
ALL_REDUCE = 2  # times that a number passes which all devices sum and all keep


def traffic(config: Config, place: Hardware, parameters: Parameters, tokens: TokenCounts) -> Traffic:
    """Bytes that pass in an update, an all-reduce's twice: what each device would send if there were very many of them."""
    trained = FP32 * (parameters.encoder + parameters.predictor + parameters.projector)
    micro_batches = config.optim.accumulate
    # Sharded: gathered for the forward pass, again for the backward, and its gradients summed; the target encoder once.
    target = FP32 * parameters.target_encoder * (config.target.kind == "features" and config.target.learned)
    statistics = config.optim.batch_size * gathered_bytes(config, tokens) + micro_batches * _sums(config, tokens)
    if place.sharded:
        return Traffic(trained * micro_batches, (2 * trained + target) * micro_batches, statistics)
    return Traffic(ALL_REDUCE * trained, 0, statistics)


def gathered_bytes(config: Config, tokens: TokenCounts) -> int:
    """Bytes of an image's rows that are gathered, as the regulariser must see them beside all other images': VISReg's, which
    ranks them. Forward only: each device computes the gradient of all rows, and keeps its own rows'."""
    rows, width = regularized_rows(config, tokens)
    return round(FP32 * rows * width) if isinstance(config.regularizer, VISReg) else 0


def held_bytes(config: Config, tokens: TokenCounts) -> int:
    """Bytes that a step holds of an image of another device, at most: gathered rows, those centred and normalised, two gradients
    and projections; or the rows and seven numbers for each projection (it, sorted, ranks of 8 bytes, differences, gradients)."""
    r, (rows, width) = config.regularizer, regularized_rows(config, tokens)
    return round(FP32 * rows * (width + max(4 * width + r.directions, 7 * r.directions))) if isinstance(r, VISReg) else 0


def regularized_rows(config: Config, tokens: TokenCounts) -> tuple[float, int]:
    """Rows of an image that the regulariser looks at, and their features; 0 without one."""
    r = config.regularizer
    if r is None:
        return 0.0, 0
    width = r.projector[-1] if r.projector else config.encoder.width
    return (tokens.contexts if r.tensor == "context_pooled" else tokens.blocks), width


def _sums(config: Config, tokens: TokenCounts) -> int:
    """Bytes that a micro-batch's sums over all devices pass.

    A mean and a variance are two sums, and two backward, of their gradients: of batch-normalised targets (forward only), a
    projector's batch norms and each view's variance. The covariance needs a mean and variance, of which the mean has a
    gradient, and z^T z (forward only); SIGReg cosines and sines (forward only).
    """
    r, numbers = config.regularizer, 0
    if config.target.kind == "features" and config.target.norm == "batch":
        numbers += 2 * config.target.width(config.encoder.width, 0)
    if r is not None:
        pairs = isinstance(r, VICReg) and r.tensor != "pred_blocks" and r.sim > 0  # predictions and targets are projected too
        numbers += 4 * (3 if pairs else 1) * sum(r.projector[:-1])
        views = 1 if r.tensor == "context_pooled" else round(tokens.blocks / tokens.contexts)
        width = regularized_rows(config, tokens)[1]
        if isinstance(r, VICReg):
            numbers += views * (width**2 + (4 + 3) * width)
        if isinstance(r, SIGReg):
            numbers += views * 2 * r.directions * r.knots
    return FP32 * ALL_REDUCE * numbers


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
