"""What one rank of tensor parallelism holds, as vLLM splits models: heads, inner channels and the vocabulary; not the hidden state.

Query, key, value, gate and up lose rows; output and down lose input channels, and keep the outlier columns among theirs, counted as
if they were spread evenly. Norms, routers and the first linears of latent attention are on every rank.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Final

from ...errors import ArgumentError, UnsupportedFeatureError
from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.names import OUTLIER_MULTIPLE
from ...formats.int8.outlier_cap import most_outliers
from ..models.architecture import Architecture, Module, modules_of
from ..models.config import DecoderConfig, Experts
from .footprint_weights import ESTIMATED, label

_VOCABULARY: Final = 64
"""vLLM pads vocabularies to a multiple of this before it splits them."""


def rank_architecture(architecture: Architecture, ranks: int) -> Architecture:
    """The model of one of ``ranks`` ranks: the same modules in the shapes that they have there.

    Raises:
        ArgumentError: a size of the model is not a multiple of the number of ranks.
        UnsupportedFeatureError: there are recurrent layers, or layers of different sizes, whose split is unknown.
    """
    if ranks == 1:
        return architecture
    config = _rank_config(architecture.config, ranks)
    here = {m.path: m for m in modules_of(config, architecture.family.names)}
    modules = tuple(here[m.path] for m in architecture.modules)
    return replace(architecture, config=config, modules=modules)


def _rank_config(config: DecoderConfig, ranks: int) -> DecoderConfig:
    if ranks < 1:
        raise ArgumentError("tensor_parallel", expected="1 or more", found=ranks)
    if config.recurrence is not None:
        raise UnsupportedFeatureError(
            f"the memory of {config.model_type} by rank is not known: it has recurrent layers"
        )
    if (
        config.heads
        or config.ffn_sizes
        or config.layer_input is not None
        or config.altup is not None
    ):
        raise UnsupportedFeatureError(
            f"the memory of {config.model_type} by rank is not known: its layers differ in their sizes"
        )
    beside = config.experts is not None and config.experts.beside_ffn
    dense = beside or not all(config.is_sparse(layer) for layer in range(config.num_layers))
    sizes = {"heads": config.num_heads, "FFN channels": config.intermediate_size if dense else 0}
    if (experts := config.experts) is not None:
        sizes |= {"channels per expert": experts.intermediate_size,
                  "channels of the shared expert": experts.shared_size}  # fmt: skip
    keys = config.num_kv_heads
    if config.latent is None and ranks % keys:  # fewer key heads than ranks: each has a copy of one
        sizes["key heads"] = keys
    for name, size in sizes.items():
        if size % ranks:
            raise ArgumentError(
                f"a model with {size} {name} cannot be split over {ranks} ranks",
                expected=f"a divisor of {size}", found=ranks, hint="--tensor-parallel",
            )  # fmt: skip
    padded = -(-config.vocab_size // _VOCABULARY) * _VOCABULARY
    return replace(
        config, num_heads=config.num_heads // ranks, num_kv_heads=max(1, keys // ranks),
        intermediate_size=config.intermediate_size // ranks if dense else config.intermediate_size,
        vocab_size=-(-padded // ranks), experts=None if experts is None else _rank_experts(experts, ranks),
    )  # fmt: skip


def _rank_experts(experts: Experts, ranks: int) -> Experts:
    return replace(
        experts, intermediate_size=experts.intermediate_size // ranks,
        shared_size=experts.shared_size // ranks,
    )  # fmt: skip


def rank_weights(
    whole: Architecture, rank: Architecture, item: int, converted: ConvertedFolder | None
) -> Counter[str]:
    """Bytes of a rank's weights: of a converted folder, or (None) of what ``convert`` would produce at most.

    Args:
        whole: the model.
        rank: what a rank has of it (``rank_architecture``).
        item: bytes per element of what is not int8, which vLLM keeps in the dtype of activations.
        converted: the folder.
    """
    sizes: Counter[str] = Counter()
    for full, here in zip(whole.modules, rank.modules, strict=True):
        sizes["biases"] += item * here.shape[0] if here.bias else 0
        quantized = bool(full.group) if converted is None else full.path in converted.linears
        if not quantized:
            sizes[label(full)] += item * prod(here.shape)
            continue
        columns = most_outliers(full.shape[1])
        if converted is not None:
            columns = converted.linears[full.path].outliers
        kept = _columns_here(full, here, columns)
        sizes["int8 weights"] += prod(here.shape)
        sizes["row scales"] += 4 * here.shape[0]
        sizes[ESTIMATED] += kept * (4 + 2 * here.shape[0])
    if converted is not None:  # what the runtime does not know, such as towers of images, whole
        known = {module.path for module in whole.modules}
        rest = (t for t in converted.others() if not {t.name, t.name.rpartition(".")[0]} & known)
        sizes["other"] += sum(tensor.nbytes for tensor in rest)
    return sizes


def _columns_here(full: Module, here: Module, columns: int) -> int:
    share = -(-columns * here.shape[1] // full.shape[1])
    return min(columns, -(-share // OUTLIER_MULTIPLE) * OUTLIER_MULTIPLE)
