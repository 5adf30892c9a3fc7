"""What the code in a folder of ``convert --remote-code`` calls: to be imported is enough to register int8conv with transformers."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING


class _Configs:
    """Stands in for a config class that transformers looks for in a folder: gives the configs of its own class, as if there was no code.

    So that what is saved names no file that is not saved with it.
    """

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def register_for_auto_class(self, auto_class: str = "AutoConfig") -> None:
        """Do nothing: the class is transformers' own."""

    # options and result of transformers' classes
    def from_pretrained(self, *args: Any, **options: Any) -> Any:
        """A config; with ``return_unused_kwargs``, also the other options."""
        found = CONFIG_MAPPING[self.model_type].from_pretrained(*args, **options)
        config = found[0] if isinstance(found, tuple) else found
        config.__dict__.pop("auto_map", None)
        return found


def config_class(model_type: str) -> _Configs:
    """Where ``AutoConfig`` finds the configs of a model type."""
    return _Configs(model_type)
