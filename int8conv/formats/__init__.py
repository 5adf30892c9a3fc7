"""Files on disk: safetensors headers, checkpoints, and the converted format of ``SPEC.md``.

Knows bytes, names and offsets; knows neither models nor torch.
"""
