"""Code in a converted folder through which ``trust_remote_code=True`` registers int8conv with transformers (``convert --remote-code``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ...errors import ArgumentError

FILE: Final = "int8conv_remote.py"
_AUTO_MAP: Final = "auto_map"
_CLASS: Final = "Config"
_KEPT: Final = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")  # fmt: skip
_TEXT: Final = '''"""Lets transformers open this folder, if it is asked to trust_remote_code; needs the package int8conv[hf]."""

from int8conv.hf.remote import config_class

{name} = config_class({model_type})
'''


def with_remote_code(
    config: Mapping[str, Any], known: bool, file: object
) -> tuple[dict[str, Any], bytes]:
    """The config with an ``auto_map`` that names the module, and the module.

    Code of the source's own for model and config is no longer named: int8 linears take the place of those of transformers' classes.

    Args:
        config: the source's.
        known: whether the runtime knows the family, and transformers has classes for it.
        file: file name for errors.

    Raises:
        ArgumentError: the model needs code of its own, or the config does not say which model it is.
    """
    own = config.get(_AUTO_MAP)
    own = own if isinstance(own, dict) else {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or ("AutoConfig" in own and not known):
        why = "the model has code of its own" if own else "the config has no 'model_type'"
        raise ArgumentError(
            f"--remote-code: {why}", file=file, hint="leave it out, and import int8conv.hf before loading the folder"
        )  # fmt: skip
    auto_map = {"AutoConfig": f"{FILE.removesuffix('.py')}.{_CLASS}"}
    auto_map |= {name: value for name, value in own.items() if name in _KEPT}
    module = _TEXT.format(name=_CLASS, model_type=json.dumps(model_type))
    return {**config, _AUTO_MAP: auto_map}, module.encode()
