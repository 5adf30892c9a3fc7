"""Compensated codes for a conversion: the source runs once more, and each input's linears are rounded for the activations seen there.

One block of the model is in memory at a time, in float32, with the activations of its inputs; then one linear and the ``H`` of its
input (see ``compensate``). The result does not depend on what an earlier attempt has already done, nor on the number of jobs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ...formats.int8.names import MOST_STEPS
from ...formats.source.checkpoint import Checkpoint
from ...progress import Progress
from ...runtime.devices import find_torch_device
from ...runtime.models.architecture import Architecture, Module
from ...runtime.weights.mapping import read_matrix
from ...runtime.weights.streaming import BlockStream
from ..outliers.calibrate import non_finite_activation
from ..outliers.selection import Group, Selection
from ..outliers.source_weights import SourceWeights
from ..outliers.texts import calibration_windows
from ..plan import Plan, QuantizeTask
from .compensate import DAMPING, Compensation, Gram, damping_for
from .device import row_scales
from .quantize import Codes

_STACKED: Final = 1 << 24
"""Most elements of several matrices that are rounded as one."""


class SecondPass:
    """The codes of all linears of a model's blocks; see ``stream.CodeSource``.

    Args:
        checkpoint: the source.
        architecture: of a family that the runtime knows.
        selection: which linears share an input.
        plan: which columns stay in 16 bits.
        device: where the model runs and codes are chosen.
        progress: called per block.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        selection: Selection,
        plan: Plan,
        device: str,
        *,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._architecture = checkpoint, architecture
        self._progress = progress
        self._device = find_torch_device(device)
        tasks = {task.path: task for task in plan.tasks if isinstance(task, QuantizeTask)}
        firsts = {group[0].path: group[0].layer for group in architecture.groups()}
        self._inputs: dict[int, dict[str, list[QuantizeTask]]] = {}
        for item in selection.items:
            if isinstance(item, Group) and (layer := firsts.get(item.input)) is not None:
                found = [tasks[linear.path] for linear in item.linears]
                self._inputs.setdefault(layer, {})[item.input] = found
        every = (task for inputs in self._inputs.values() for t in inputs.values() for task in t)
        self.paths = frozenset(task.path for task in every)
        self._windows, self._texts = calibration_windows(
            checkpoint, architecture, (), None, None, 0
        )

    @property
    def about(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "texts": [text for text, _ in self._texts], "tokens": sum(n for _, n in self._texts),
            "context": len(self._windows[0]), "damping": DAMPING, "most_steps": MOST_STEPS,
        }  # fmt: skip

    @property
    def random(self) -> bool:
        """Whether the model runs on random tokens, for want of a tokenizer."""
        return any(text is None for text, _ in self._texts)

    def codes(self, pending: Collection[str]) -> Iterator[tuple[str, Codes]]:
        """Path and codes int8 ``[out, in]`` of every pending linear, block by block.

        Raises:
            CalibrationError: an activation is NaN or infinite.
            NonFiniteWeightError: a weight is.
        """
        left = self.paths.intersection(pending)
        weights = SourceWeights(self._checkpoint, self._device)
        with torch.inference_mode():
            stream = BlockStream(self._architecture, weights, self._windows, self._device)
        layers = self._architecture.config.num_layers
        for layer in range(layers):
            if not left:
                break
            self._progress("round", layer, layers)
            inputs = {
                path: tasks
                for path, tasks in self._inputs.get(layer, {}).items()
                if not left.isdisjoint(task.path for task in tasks)
            }
            grams = self._advance(stream, layer, inputs)
            for path, tasks in inputs.items():
                for task, codes in _rounded(tasks, grams.pop(path, None), self._device):
                    if task.path in left:
                        left -= {task.path}
                        yield task.path, codes
        self._progress("round", layers, layers)

    @torch.inference_mode()
    def _advance(self, stream: BlockStream, layer: int, inputs: Collection[str]) -> dict[str, Gram]:
        """Run a block; what it saw at those inputs."""
        grams: dict[str, Gram] = {}

        def observe(module: Module, x: Tensor) -> None:
            if module.path not in inputs:
                return
            rows = x.flatten(0, -2)
            finite = rows.isfinite().all(dim=0)
            if not bool(finite.all()):
                channel = int((~finite).nonzero()[0])
                raise non_finite_activation(self._checkpoint, module.path, channel)
            grams.setdefault(module.path, Gram()).add(rows)

        stream.advance(layer, observe)
        return grams


def _rounded(
    tasks: Sequence[QuantizeTask], gram: Gram | None, device: torch.device
) -> Iterator[tuple[QuantizeTask, Codes]]:
    """Codes for linears that share an input; the nearest ones where no token came by (an expert that is never used)."""
    with torch.inference_mode():
        columns = torch.from_numpy(tasks[0].columns).long().to(device)
        width = tasks[0].source.shape[1]
        seen = Gram() if gram is None else gram
        h = seen.matrix() if seen.tokens else torch.zeros(width, width, device=device)
        compensation = Compensation(h, columns, damping_for(width, seen.tokens))
        del h, gram, seen
    for together in _stacks(
        tasks
    ):  # always the same ones: products of other shapes may be summed in another order
        with torch.inference_mode():
            weight = torch.cat([read_matrix(task.source) for task in together]).to(device)
            codes = (
                compensation.codes(weight, row_scales(weight.abs().index_fill_(1, columns, 0.0)))
                .cpu()
                .numpy()
            )
        first = 0
        for task in together:
            last = first + task.source.shape[0]
            yield task, codes[first:last]
            first = last


def _stacks(tasks: Sequence[QuantizeTask]) -> Iterator[Sequence[QuantizeTask]]:
    """Small matrices are rounded as one, which takes fewer steps; larger ones one by one, which takes less memory."""
    if sum(math.prod(task.source.shape) for task in tasks) <= _STACKED:
        yield tasks
    else:
        yield from ([task] for task in tasks)
