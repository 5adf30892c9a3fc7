"""One conversion to int8 by a peer, for ``convert.py`` to measure as a process of its own.

    python benchmarks/convert_peers.py PEER SOURCE OUT

Each is used as its documentation says, on a CPU, and saves what it made.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _model(source: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16, **options)


def bitsandbytes(source: Path, out: Path) -> None:
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=True)
    _model(source, quantization_config=settings, device_map="cpu").save_pretrained(out)


def quanto(source: Path, out: Path) -> None:
    from optimum.quanto import QuantizedModelForCausalLM, qint8

    model = QuantizedModelForCausalLM.quantize(_model(source), weights=qint8, exclude="lm_head")
    model.save_pretrained(out)


def torchao(source: Path, out: Path) -> None:
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = _model(source)
    quantize_(model, Int8WeightOnlyConfig())
    out.mkdir()
    torch.save(model.state_dict(), out / "model.pt")


def ctranslate2(source: Path, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source), low_cpu_mem_usage=True).convert(
        str(out), quantization="int8"
    )


PEERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "bitsandbytes": ("bitsandbytes", bitsandbytes),
    "optimum-quanto": ("optimum.quanto", quanto),
    "torchao": ("torchao", torchao),
    "CTranslate2": ("ctranslate2", ctranslate2),
}
"""Name -> the module that shows that it is installed, and what to call."""


def installed() -> list[str]:
    """The peers that this Python has."""

    def found(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return [name for name, (module, _) in PEERS.items() if found(module)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    PEERS[arguments.peer][1](arguments.source, arguments.out)
