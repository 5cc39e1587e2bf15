"""Settings for every test, set before anything imports torch."""

import os
from pathlib import Path

ROOT = Path(__file__).parent

# Kernels that nbval and papermill start run in other folders, and inherit the environment.
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path
)
# Parallel workers share the cores, so each takes one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Servers of the tests answer here, so no proxy of the machine is asked for them.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
