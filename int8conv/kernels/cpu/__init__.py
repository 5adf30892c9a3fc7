"""The mixed linear on a CPU: PyTorch operators, and compiled code where numba is installed."""
