"""One JSON and one Markdown file, written anew after every section."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .checks import checked
from .session import Row

_NOTE = """Medians; each figure of a kernel from a CUDA graph of many launches. `python -m benchmarks.gpu.run` made this.
"share of copy": of what a copy of 1 GiB on the device reads and writes a second; "share of read": of what a sum over 1 GiB reads. fp16 in this
runtime has PyTorch's linears, and so about 15 kernels per layer for our 9, which flatters int8: `benchmarks.gpu.model` has both fused alike. "error": in parts of what is allowed."""


def write(out: Path, result: dict[str, Any]) -> None:
    """``OUT.json`` and ``OUT.md``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_name(f"{out.name}.json").write_text(json.dumps(finite(result), indent=1) + "\n")
    out.with_name(f"{out.name}.md").write_text(markdown(result))


def read(out: Path) -> dict[str, list[Row]]:
    """The sections of an earlier run."""
    path = out.with_name(f"{out.name}.json")
    sections: dict[str, list[Row]] = json.loads(path.read_text())["sections"] if path.exists() else {}  # fmt: skip
    return sections


def markdown(result: dict[str, Any]) -> str:
    about = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    parts = [f"# {result['machine']}\n\n{about}; {result['command']}; {result['minutes']:.1f} minutes\n\n{_NOTE}"]  # fmt: skip
    parts.append("## checks\n\n" + table(checked(result["sections"], tiny=result["tiny"])))
    parts += [f"## {name}\n\n{table(rows)}" for name, rows in result["sections"].items()]
    return "\n\n".join(parts) + "\n"


def table(rows: list[Row]) -> str:
    """Markdown; columns in the order in which they first come."""
    columns = list({name: None for row in rows for name in row})
    cells = [[_text(row.get(name)) for name in columns] for row in rows]
    return tabulate(cells, columns, "github", disable_numparse=True) if rows else "nothing"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
