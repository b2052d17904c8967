"""Two hosts with addresses of their own, in network namespaces, joined by c10d: one is cut off for a while and comes back.

Needs root and iproute2. `make long` runs it.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jepakit.artifacts.checkpoint import steps
from jepakit.artifacts.run import Run
from launch import SMALL, made_images, started, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="namespaces need root and iproute2"),
]
LENGTH, HOSTS = 200, (1, 2)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def names() -> Iterator[list[str]]:
    """The names of two namespaces with a cable between them, 10.9.0.1 and 10.9.0.2 at its ends."""
    names = [f"jepakit{os.getpid()}-{host}" for host in HOSTS]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable1", "netns", names[0], "type", "veth", "peer", "name", "cable2", "netns", names[1])
        for host, name in zip(HOSTS, names, strict=True):
            ip("-n", name, "addr", "add", f"10.9.0.{host}/24", "dev", f"cable{host}")
            for device in ("lo", f"cable{host}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def on_host(host: int, names: list[str], place: Path, out: str) -> list[str]:
    """torchrun on a host that knows the other's name, and is called by its own."""
    hosts = place / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.9.0.{each} host{each}\n" for each in HOSTS))
    rendezvous = "--rdzv-backend c10d --rdzv-endpoint 10.9.0.1:29500 --max-restarts 5"
    words = [*SMALL, f"optim.steps={LENGTH}", "run.save_every_steps=20", "run.timeout_seconds=8"]
    inside = (
        f"hostname host{host} && mount --bind {hosts} /etc/hosts && GLOO_SOCKET_IFNAME=cable{host} exec python -m "
        f"torch.distributed.run --nnodes 2 --nproc-per-node 1 {rendezvous} --rdzv-id {out} --local-addr 10.9.0.{host} -m jepakit "
        f"pretrain --data {place / 'waves.npz'} --recipe demo --out {place / out} {' '.join(words)}"
    )
    return ["ip", "netns", "exec", names[host - 1], "unshare", "--uts", "--mount", "bash", "-c", inside]


def test_a_host_that_is_cut_off_and_comes_back_leaves_no_trace_in_the_bits(tmp_path: Path, names: list[str]) -> None:
    made_images(tmp_path)
    for out in ("whole", "broken"):
        with ExitStack() as stack:
            pair = [stack.enter_context(started(on_host(h, names, tmp_path, out), tmp_path / f"{out}{h}.txt")) for h in HOSTS]
            if out == "broken":
                until(lambda: max(steps(tmp_path / "broken" / "checkpoints"), default=0) >= 60)
                ip("-n", names[1], "link", "set", "cable2", "down")
                time.sleep(12)
                ip("-n", names[1], "link", "set", "cable2", "up")
            codes = [process.wait(200) for process in pair]
        assert codes == [0, 0], [(tmp_path / f"{out}{host}.txt").read_text()[-1500:] for host in HOSTS]
    said = (tmp_path / "broken" / "run.log").read_text()
    assert said.count("resumed at step") >= 1
    whole, broken = (
        load_file(Run(tmp_path / out).checkpoints / f"step-{LENGTH:08d}" / "model.safetensors") for out in ("whole", "broken")
    )
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
