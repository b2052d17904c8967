"""Set before torch is imported: tests are many small tensors, which one thread does best, and may share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
