"""Set before torch is imported: threads that wait for each other sleep, so that tests can share the cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
