"""The decoder on a GPU: weights in its memory, what runs between its linears, cache, sampling. Imports triton."""
