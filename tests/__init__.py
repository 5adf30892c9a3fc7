"""The tests. One OpenMP thread per process, unless the environment says otherwise: the workers of a run share the processors, and
threads that spin while they wait for one that has none take several times as long. Set before anything imports torch."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
