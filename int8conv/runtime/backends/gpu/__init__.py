"""The decoder on a GPU: weights in device memory, operations between linears, cache, sampling. Imports triton."""
