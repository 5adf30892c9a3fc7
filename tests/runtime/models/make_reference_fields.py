"""Make ``int8conv/runtime/models/reference_fields.py`` from the installed transformers.

python -m tests.runtime.models.make_reference_fields > int8conv/runtime/models/reference_fields.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from int8conv.runtime.models.families import FAMILIES

_HEAD = '''\
"""Of each family, the keys of ``config.json`` that transformers {version} reads, and so may mean something.

Those are the fields of its configuration class that not every configuration has, the other names that it takes, and what
its model asks the configuration for. Made by ``python -m tests.runtime.models.make_reference_fields``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

VERSION: Final = "{version}"

_WORDS: Final = {{
'''
_TAIL = """\
}
FIELDS: Final[Mapping[str, frozenset[str]]] = {
    family: frozenset(words.split()) for family, words in _WORDS.items()
}
"""
_READ_BY_MODEL = (r"config\.(\w+)\b(?! *\()", r'getattr\((?:self\.)?config, "(\w+)"')
_READ_BY_CONFIG = (r'kwargs\.(?:pop|get)\("(\w+)"',)


def fields(model_type: str) -> set[str]:
    """The keys that the reference reads of a family's config."""
    cls = CONFIG_MAPPING[model_type]
    module = importlib.import_module(cls.__module__)
    model = importlib.import_module(cls.__module__.replace("configuration_", "modeling_"))
    found = set(cls.__dataclass_fields__) | set(cls.attribute_map)
    for source, patterns in ((model, _READ_BY_MODEL), (module, _READ_BY_CONFIG)):
        for pattern in patterns:
            found |= set(re.findall(pattern, inspect.getsource(source)))
    return {name for name in found - set(PretrainedConfig.__dataclass_fields__) if name[0] != "_"}


def page() -> str:
    """The whole module."""
    entries = []
    for model_type in sorted(FAMILIES):
        lines = textwrap.wrap(" ".join(sorted(fields(model_type))), 88)
        strings = [f'        "{line} "' for line in lines[:-1]] + [f'        "{lines[-1]}"']
        entries.append(f'    "{model_type}": (\n' + "\n".join(strings) + "\n    ),\n")
    return _HEAD.format(version=transformers.__version__) + "".join(entries) + _TAIL


if __name__ == "__main__":
    sys.stdout.write(page())
