"""Which models run on which devices: features for which a GPU has no kernels are refused by name."""

from __future__ import annotations

from typing import Literal

from ...errors import UnsupportedOnDeviceError
from .config import DecoderConfig


def check_device(config: DecoderConfig, device: Literal["cpu", "cuda"]) -> None:
    """Refuse what no kernel there computes; a CPU has everything.

    Raises:
        UnsupportedOnDeviceError: names the features.
    """
    features = {
        "" if config.recurrence is None else config.recurrence.label: any(config.recurrent_layers),
        "attention with sinks": config.sinks,
        "latent attention": config.latent is not None,
        "experts with limits": config.swiglu_limit is not None,
        "shared keys": bool(config.key_sources),
        "layers of different heads": bool(config.heads),
        "normalised values": config.value_norm,
        "embeddings for each layer": config.layer_input is not None,
        "residual streams": config.altup is not None,
        "xIELU": config.activation == "xielu",
    }
    lacking = [name for name, needed in features.items() if needed]
    if device == "cuda" and lacking:
        verb = "run" if len(lacking) > 1 or lacking[0].endswith("s") else "runs"
        raise UnsupportedOnDeviceError(
            f"a {config.model_type} cannot run on a GPU: its {' and '.join(lacking)} {verb} on a CPU only",
            hint="leave out the device, or give cpu",
        )
