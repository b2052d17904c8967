"""Devices that a plan knows by their data sheets, and what joins them: in a node, and from node to node."""

from contextlib import suppress
from dataclasses import dataclass

import torch

from jepakit.config.run_settings import RunSettings
from jepakit.core.device import device_of, precision_of
from jepakit.core.environment import host_memory
from jepakit.core.errors import UserError, nearest

# Data sheets: bytes a second in one direction are GB/s of each device, Gb/s of each node.
INTERCONNECTS = {"NVLink4": 450.0, "NVLink3": 300.0, "NVLink2": 150.0, "PCIe5": 64.0, "PCIe4": 32.0, "PCIe3": 16.0}
NETWORKS = {"8xIB400": 3200.0, "8xIB200": 1600.0, "IB400": 400.0, "IB200": 200.0, "100GbE": 100.0, "10GbE": 10.0}
NODE = 8  # devices at most, unless --nodes says otherwise


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: dense TFLOP/s in bf16 (none: it has none) and in fp32, memory in GB; and its usual links."""

    name: str
    bf16: float | None
    fp32: float
    gigabytes: float
    interconnect: str = "PCIe4"
    network: str = "100GbE"


# fp32 without TF32, as jepakit computes.
DEVICES = (
    Device("H200", 989, 67, 141, "NVLink4", "8xIB400"),
    Device("H100", 989, 67, 80, "NVLink4", "8xIB400"),
    Device("H100-NVL", 835, 60, 94, "PCIe5", "IB400"),
    Device("A100-80", 312, 19.5, 80, "NVLink3", "8xIB200"),
    Device("A100-40", 312, 19.5, 40, "NVLink3", "8xIB200"),
    Device("L40S", 362, 91.6, 48),
    Device("A10", 125, 31.2, 24),
    Device("L4", 121, 30.3, 24),
    Device("RTX4090", 165, 82.6, 24, network="10GbE"),
    Device("RTX3090", 71, 35.6, 24, network="10GbE"),
    Device("T4", None, 8.1, 16, "PCIe3"),
    Device("V100-32", None, 15.7, 32, "NVLink2"),
    Device("V100-16", None, 15.7, 16, "NVLink2"),
)


@dataclass(frozen=True)
class Links:
    """What joins the devices of `nodes` nodes: GB/s of each device within its node, Gb/s of each node to the others."""

    nodes: int = 1
    interconnect: float = 0.0
    network: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """Where a run would be: `devices` of so many bytes each; rates in TFLOP/s, and no `device`, where it need not be here.

    sharded: weights, gradients, moments and the average are split among the devices, rather than whole on each.
    """

    name: str
    dtype: torch.dtype
    cuda: bool
    flash: bool  # attention is the kernel for sequences of any length, which keeps no weights
    memory: int
    devices: int = 1
    tflops: float = 0.0
    fp32: float = 0.0
    device: torch.device | None = None
    links: Links = Links()
    sharded: bool = False


def known_device(name: str) -> Device:
    """A device of the table. Raises UserError, with the nearest name."""
    known = {d.name.lower(): d for d in DEVICES}
    if name.lower() not in known:
        names = ", ".join(d.name for d in DEVICES)
        raise UserError(f"unknown device '{name}': choose here, {names}{nearest(name.lower(), known)}")
    return known[name.lower()]


def links_of(
    device: Device | None, devices: int, nodes: int | None, interconnect: str | float | None, network: str | float | None
) -> Links:
    """What joins so many devices. nodes: none: as few as have at most 8 each; the rest: none: the device's usual.

    Raises UserError where devices cannot be spread evenly, and for an unknown link.
    """
    count = max(1, devices)
    if nodes is None:
        nodes = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= NODE)
    if nodes < 1 or count % nodes:
        raise UserError(f"--nodes {nodes}: {count} devices cannot be spread evenly over them: give a number that divides it")
    usual = device or Device("", None, 0, 0, network="10GbE")
    return Links(
        nodes,
        _bandwidth(
            usual.interconnect if interconnect is None else interconnect, INTERCONNECTS, "--interconnect", "GB/s a device"
        ),
        _bandwidth(usual.network if network is None else network, NETWORKS, "--network", "Gb/s a node"),
    )


def _bandwidth(given: str | float, table: dict[str, float], option: str, unit: str) -> float:
    """A link's name in the table, or a number. Raises UserError."""
    with suppress(ValueError):
        if 0 < float(given) < float("inf"):
            return float(given)
    known = {name.lower(): value for name, value in table.items()}
    if str(given).lower() not in known:
        raise UserError(f"{option} '{given}': give {unit}, or one of {', '.join(table)}{nearest(str(given), table)}")
    return known[str(given).lower()]


def hardware_of(elsewhere: Device | None, devices: int, run: RunSettings, links: Links) -> Hardware:
    """Where a run would be; none: here. Raises UserError for a device that has not the precision that is set."""
    wanted, sharded = run.precision, run.sharding == "full"
    if elsewhere is None:
        device = device_of(run.device)
        dtype, cuda = precision_of(wanted, device), device.type == "cuda"
        if not cuda:
            memory = host_memory() or 0
            name = "this CPU" if device.type == "cpu" else "this Apple GPU"
            return Hardware(name, dtype, False, False, memory, devices, device=device, links=links, sharded=sharded)
        about = torch.cuda.get_device_properties(device)
        flash = dtype == torch.bfloat16 and about.major >= 8
        memory = about.total_memory
        return Hardware(about.name, dtype, True, flash, memory, devices, device=device, links=links, sharded=sharded)
    d = elsewhere
    if wanted == "bf16" and d.bf16 is None:
        raise UserError(f"{d.name} does not compute in bf16: set run.precision=fp32")
    tflops, lower = (d.fp32, False) if wanted == "fp32" or d.bf16 is None else (d.bf16, True)
    dtype, memory = torch.bfloat16 if lower else torch.float32, int(d.gigabytes * 1e9)
    return Hardware(d.name, dtype, True, lower, memory, devices, tflops, d.fp32, links=links, sharded=sharded)
