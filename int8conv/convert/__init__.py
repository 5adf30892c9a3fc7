"""The offline converter: plan, calibrate, stream.

Everything but ``calibrate`` works without torch, so that a plain conversion does not pay for importing it.

``int8conv.convert`` is this room and, by its public interface, also the function; so the module can be called:
``int8conv.convert(source, out)`` is ``converter.convert(source, out)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .converter import convert

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
