"""The mixed linear on a CPU: PyTorch operators, and compiled code if numba is installed."""
