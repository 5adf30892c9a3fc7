"""``quantization_config`` of a converted folder, as a transformers config."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..formats.int8.manifest import check_version
from ..formats.int8.names import QUANT_METHOD, VERSION
from ..formats.int8.section import GROUPS, SECTION
from ..kernels.dispatch import Mode, check_mode


@register_quantization_config(QUANT_METHOD)
class Int8convConfig(QuantizationConfigMixin):
    """The fields of SPEC.md section 2.1, and a mode.

    Args:
        version: version of the format.
        groups: linears that share an input, as JSON; None: they are in the manifest.
        mode: activations in 16 bits (``"w8a16"``) or 8 bits (``"w8a8"``); None: chosen by the number of tokens.
        fields: other fields, which are kept: ``outliers``, ``dtype``.

    Raises:
        UnknownVersionError: this release does not read the version.
        ArgumentError: the mode is unknown.
    """

    def __init__(
        self,
        version: int = VERSION,
        groups: list[dict[str, Any]] | None = None,
        mode: Mode | None = None,
        **fields: Any,  # of the base class
    ) -> None:
        check_version(version, SECTION)
        check_mode(mode)
        self.quant_method = QUANT_METHOD
        self.version = version
        self.mode: Mode | None = mode
        for name, value in fields.items():
            if name != "quant_method":
                setattr(self, name, value)
        self.groups = groups

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values: dict[str, Any] = super().to_dict()
        return {k: v for k, v in values.items() if k not in (GROUPS, "mode") or v is not None}
