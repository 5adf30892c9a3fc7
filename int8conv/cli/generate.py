"""``int8conv generate``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .generating import check_text, generation_options, load_model, read_text
from .output import echo, echo_text

if TYPE_CHECKING:
    from ..runtime.generate.generation import Generation
    from ..runtime.measure.memory_use import PeakMemory
    from ..runtime.model import Model


@click.command("generate")
@click.argument("path", type=click.Path())
@click.option(
    "--prompt", "-p", "given", multiple=True, help="Text to continue; - reads stdin; repeatable."
)
@click.option(
    "--prompt-file",
    "files",
    multiple=True,
    type=click.Path(),
    help="File whose text to continue; repeatable.",
)
@generation_options(128)
@click.option("--logprobs", is_flag=True, help="Also print the log-probability of each new token.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per prompt.")
@click.option(
    "--report-memory", is_flag=True, help="Print peak memory and its prediction to stderr."
)
@click.option(
    "--report-outliers",
    is_flag=True,
    help="Print which values the outlier fallback handled to stderr.",
)
def command(
    path: str, given: tuple[str, ...], files: tuple[str, ...], as_json: bool, report_memory: bool,
    report_outliers: bool, **options: Any,  # checked by click
) -> None:  # fmt: skip
    """Continue a prompt with PATH (a converted folder, or a source in its own precision); output is streamed.

    Repeat --prompt and --prompt-file for several prompts: they run as one batch and are printed one after another. A line break
    at the end of a file or of stdin is not part of the prompt.

    Temperature, top-k, top-p, min-p, repetition penalty, number of tokens and stop strings default to the checkpoint's
    generation_config.json; without one, or unless it sets do_sample, decoding is greedy.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    if not given and not files:
        raise click.UsageError("Missing option '--prompt' / '-p' or '--prompt-file'.")
    prompts = [read_text("-") if each == "-" else check_text(each, "the prompt") for each in given]
    prompts += [read_text(each) for each in files]
    memory = _watch(options["device"]) if report_memory else None
    model = load_model(path, options)
    if as_json:
        _print_json(prompts, model.generate_batch(prompts, **options))
    else:
        _print_text(model, prompts, options)
    if memory is not None:
        _show_memory(memory, model, prompts, options["max_new_tokens"])
    if report_outliers:
        from .outlier_report import show_fallback

        show_fallback(model.fallback_report(), err=True)


def _watch(device: str) -> PeakMemory:
    from ..runtime.devices import find_placement
    from ..runtime.measure.memory_use import watch_memory

    return watch_memory(find_placement(device).device)


def _show_memory(
    memory: PeakMemory, model: Model, prompts: list[str], max_new_tokens: int | None
) -> None:
    """Print predicted and measured memory."""
    from .output import size, table

    used = memory.use(model.folder)
    context = max(model.positions(prompt, max_new_tokens) for prompt in prompts)
    longest = max(len(model.tokenizer.encode(prompt)) for prompt in prompts)
    predicted = model.predictor().at(context, len(prompts), prompt=longest)
    weights = sum(predicted.weights.values())
    rows = [["total", size(predicted.total), "-" if used.peak is None else size(used.peak)]]
    if used.anonymous is not None and used.mapped:
        rest = predicted.total - weights
        rows.insert(0, ["cache and activations", size(rest), size(used.anonymous)])
        rows.insert(0, ["weights, mapped", size(weights), size(used.mapped)])
    table(
        (f"memory, {len(prompts)} x {context} positions", "predicted", "measured"), rows, err=True
    )


def _print_json(prompts: list[str], results: list[Generation]) -> None:
    from .output import print_json

    print_json([{"prompt": p, **asdict(r)} for p, r in zip(prompts, results, strict=True)])


def _print_text(model: Model, prompts: list[str], options: dict[str, Any]) -> None:
    """Stream the text of the first prompt, then print the others."""

    def show(i: int, text: str) -> None:
        if i == 0:
            echo_text(text)

    def head(i: int) -> None:
        title = f"==> prompt {i + 1} <==\n" if len(prompts) > 1 else ""
        echo_text(title + prompts[i])

    head(0)
    try:
        results = model.generate_batch(prompts, on_text=show, **options)
    except KeyboardInterrupt:
        echo()
        raise
    for i, result in enumerate(results):
        if i > 0:
            head(i)
            echo_text(result.text)
        echo()
        if result.logprobs is not None:
            _print_logprobs(model, result)


def _print_logprobs(model: Model, result: Generation) -> None:
    from .output import table

    rows = [
        (token, repr(model.tokenizer.decode([token])), f"{logprob:.4f}")
        for token, logprob in zip(result.token_ids, result.logprobs or (), strict=True)
    ]
    table(("token", "text", "log-probability"), rows)
