"""Other systems, as far as Linux can play them: Python without what Windows lacks, Apple's GPU as a device without storage."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepakit.artifacts.load import build_jepa
from jepakit.config.choice import DataSummary, choose
from jepakit.config.recipes import settings
from jepakit.core.device import device_of, precision_of
from jepakit.core.errors import UserError
from jepakit.core.torch_private import dispatch_mode, tensors_of
from jepakit.model.images import normalise
from noise import save_noise

# First what others import for themselves, then all is taken away that Python's documents call "Unix", and jepakit is used.
WITHOUT = """
import asyncio, concurrent.futures, http.server, multiprocessing.pool, os, pkgutil, signal, sys, tempfile, types
import matplotlib.figure, pyarrow.parquet, scipy.stats, sklearn.linear_model, torch

for name in "fcntl grp posix pwd pty resource syslog termios tty".split():
    sys.modules[name] = None
os_names = '''fork forkpty wait wait3 wait4 waitid getuid geteuid getgid getegid getpgid getpgrp setsid killpg nice uname sysconf
confstr statvfs fstatvfs chown fchown lchown chroot mkfifo mknod getloadavg sync fdatasync pread preadv pwrite pwritev
posix_fadvise posix_fallocate posix_spawn sched_getaffinity sched_setaffinity sched_yield readv writev sendfile openpty
O_CLOEXEC O_NONBLOCK O_NOFOLLOW O_DIRECTORY O_SYNC EX_OK EX_TEMPFAIL EX_USAGE'''
signal_names = "SIGUSR1 SIGUSR2 SIGKILL SIGHUP SIGALRM SIGQUIT SIGCHLD SIGSTOP SIGCONT SIGPIPE alarm setitimer pthread_kill pause"
for module, names in ((os, os_names), (signal, signal_names)):
    for name in names.split():
        delattr(module, name)
locked = []
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda file, how, count: locked.append((how, count)))

import jepakit
for module in pkgutil.walk_packages(jepakit.__path__, "jepakit."):
    if module.name not in ("jepakit.__main__", "jepakit.artifacts.export.modeling_jepakit"):  # which transformers alone imports
        __import__(module.name)

photos, out = sys.argv[1:]
tiny = '''images.size=32 encoder.patch_size=8 encoder.width=24 encoder.depth=1 encoder.heads=2 predictor.width=16
predictor.depth=1 optim.batch_size=8 optim.steps=2 optim.warmup_steps=0 run.probe_images=0 run.log_every_steps=1'''
run = jepakit.pretrain(photos, out, set=tiny.split())
assert run.finished and len(run.metrics()) == 2
assert locked == [(2, 1)] * len(locked) and locked
vectors = jepakit.load(out).embed([os.path.join(photos, "a", name) for name in os.listdir(os.path.join(photos, "a"))])
assert vectors.shape == (8, 24)
assert not {"torch._dynamo", "transformers"} & sys.modules.keys()  # seconds to import, and no need of them
assert jepakit.embed(out, data=photos, out=out + ".npz").is_file()
assert jepakit.evaluate(out, data=photos, tasks="knn,logistic", out=out + "-found")
"""


def test_what_windows_lacks_is_not_needed(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        save_noise(tmp_path / "photos" / label, 8)
    words = [sys.executable, "-c", WITHOUT, str(tmp_path / "photos"), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def apples_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return device_of("mps")


def test_apples_gpu_is_taken_where_it_is_asked_for_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run\.device=mps: there is no such device here"):
        device_of("mps")
    device = apples_gpu(monkeypatch)
    assert device.type == "mps" and device_of("auto").type != "mps"
    assert precision_of("auto", device) == precision_of("fp32", device) == torch.float32
    with pytest.raises(UserError, match="bf16 is not used on mps"):
        precision_of("bf16", device)
    with pytest.raises(UserError, match="no such device"):
        device_of("mps:1")


def test_apples_gpu_gets_the_settings_of_a_cpu() -> None:
    cpu, mps = (choose(DataSummary(60_000, 200, 150, 3, device, 8)) for device in ("cpu", "mps"))
    assert cpu.settings == mps.settings and "on an Apple GPU" in mps.about


def test_a_step_makes_no_number_that_apples_gpu_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without storage takes what is no CPU's and no CUDA device's way; of a step's tensors none may be float64."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **words: nullcontext())  # which that device has not
    nowhere, made = torch.device("meta"), set[torch.dtype]()

    class Watch(dispatch_mode()):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            made.update(x.dtype for x in tensors_of(found) if x.device == nowhere)
            return found

    for method in ("ec_c_jepa", "mae_pixels"):
        config = settings("small", method, {"encoder": {"depth": 1}, "predictor": {"depth": 1}})
        jepa = build_jepa(config).to(nowhere)
        with Watch():
            images = torch.empty((4, 3, *config.images.height_width), dtype=torch.uint8, device=nowhere)
            masks = config.masking.sample(config.grid, np.arange(4), seed=0)
            jepa(normalise(images, config.images), masks).loss.backward()
        assert all(p.grad is not None and p.grad.device == nowhere for _, p in jepa.trained_parameters())
    assert torch.float32 in made and made <= {torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool}
