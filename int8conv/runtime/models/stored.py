"""Properties of a decoder that only a checkpoint's tensor names show: the prefix and the head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ...errors import WrappedNamesError
from ...formats.int8.names import WEIGHT
from .config import DecoderConfig
from .families import Family
from .wrapped import text_names


@dataclass(frozen=True)
class Stored:
    """A family and a config, with names and head as in a checkpoint."""

    family: Family
    config: DecoderConfig
    untied: bool = False
    """Whether the config ties the head to the token embedding although the checkpoint has a head."""
    headless: bool = False
    """Whether there is no head, as in embedding and reward models."""


def as_stored(
    family: Family, config: DecoderConfig, tensors: Collection[str], file: object = "config.json",
    *, wrapped: bool = False,
) -> Stored:  # fmt: skip
    """Match a family with the names of a checkpoint's tensors (none of them: nothing is known).

    ``wrapped``: the checkpoint is a multimodal model's, and the family that of its text part.

    Raises:
        WrappedNamesError: they begin as another model's do, such as the text part of one that sees; ``file`` is named then.
    """
    if wrapped and (names := text_names(family.names, family.base_prefix, tensors)) is not None:
        family = replace(family, base_prefix="", names=names)
    embed, head = (f"{family.names[role]}.{WEIGHT}" for role in ("embed", "head"))
    stripped = embed.removeprefix(family.base_prefix)
    if embed not in tensors and stripped in tensors:  # saved from the base model
        names = {r: n.removeprefix(family.base_prefix) for r, n in family.names.items()}
        family, embed = replace(family, names=names), stripped
        head = f"{names['head']}.{WEIGHT}"
    if embed not in tensors:
        if config.tied and head in tensors:
            # safetensors' save_model keeps only the first name of tensors that share memory
            names = {**family.names, "embed": family.names["head"]}
            family = replace(family, names=names)
        else:
            _check_prefix(family, stripped, tensors, file)
        return Stored(family, config)
    if config.tied and head in tensors:
        return Stored(family, replace(config, tied=False), untied=True)
    return Stored(family, config, headless=not config.tied and head not in tensors)


def _check_prefix(family: Family, embed: str, tensors: Collection[str], file: object) -> None:
    """Say so if the embedding is there, behind another prefix, which all else then has too."""
    for name in tensors:
        prefix = name.removesuffix(embed)
        in_a_block = any(part.isdecimal() for part in prefix.split("."))
        if prefix != name and prefix.endswith(".") and not in_a_block:
            raise WrappedNamesError(
                "tensor names do not begin as this model_type's do", file=file, tensor=name,
                expected=f"'{family.base_prefix}'", found=f"'{prefix}'",
                hint="rename the tensors, or give the config.json that belongs to them",
            )  # fmt: skip
