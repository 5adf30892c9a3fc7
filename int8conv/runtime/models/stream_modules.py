"""The modules of what Gemma 3n and Gemma 4 add to the residual stream. Matrices of low rank, and those outside layers, stay in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .config import DecoderConfig
from .modules import Module, linears


def _norm(role: str, names: Mapping[str, str], layer: int | None, size: int) -> Module:
    return Module(role, names[role], "norm", layer, (size,), False)


def _vector(role: str, names: Mapping[str, str], layer: int, size: int) -> Module:
    return Module(role, names[role], "norm", layer, (size,), False, bare=True)


def _matrix(role: str, names: Mapping[str, str], layer: int | None, out: int, into: int) -> Module:
    return Module(role, names[role], "projection", layer, (out, into), False)


def modules_before_layers(c: DecoderConfig, names: Mapping[str, str]) -> Iterator[Module]:
    """Embeddings for each layer; the other residual streams."""
    if c.layer_input is not None:
        wide = c.num_layers * c.layer_input.size
        shape = (c.layer_input.vocab_size, wide)
        yield Module("input_embed", names["input_embed"], "embedding", None, shape, False)
        yield _matrix("input_project", names, None, wide, c.hidden_size)
        yield _norm("input_norm", names, None, c.layer_input.size)
    yield from _of_streams("altup_in", c, names)


def modules_after_layers(c: DecoderConfig, names: Mapping[str, str]) -> Iterator[Module]:
    """The way back from several streams to one."""
    yield from _of_streams("altup_out", c, names)


def _of_streams(role: str, c: DecoderConfig, names: Mapping[str, str]) -> Iterator[Module]:
    for stream in range(c.altup.streams - 1 if c.altup is not None else 0):
        path, shape = names[role].replace("{}", str(stream)), (c.hidden_size, c.hidden_size)
        yield Module(f"{role}.{stream}", path, "projection", None, shape, False)


def modules_of_layer(c: DecoderConfig, layer: int, names: Mapping[str, str]) -> Iterator[Module]:
    """What stands behind the FFN."""
    if (altup := c.altup) is not None:
        hidden, streams = c.hidden_size, altup.streams
        yield _matrix("laurel_left", names, layer, altup.laurel_rank, hidden)
        yield _matrix("laurel_right", names, layer, hidden, altup.laurel_rank)
        yield _norm("laurel_norm", names, layer, hidden)
        yield _norm("altup_norm", names, layer, hidden)
        for role, out, into in (
            ("altup_router", streams, hidden),
            ("altup_prediction", streams**2, streams),
            ("altup_correction", streams, streams),
        ):
            yield Module(role, names[role], "router", layer, (out, into), False)
        if altup.scaled:
            yield _vector("altup_scale", names, layer, hidden)
    if c.layer_input is not None:
        size, outs = c.layer_input.size, {"input_down": c.hidden_size}
        yield from linears("ffn", layer, names, False, c.hidden_size, {"input_gate": size})
        yield from linears("ffn", layer, names, False, size, outs)
        yield _norm("input_post_norm", names, layer, c.hidden_size)
    if c.layer_scaled:
        yield _vector("layer_scale", names, layer, 1)
