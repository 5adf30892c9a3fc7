"""``int8conv generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .generating import (
    check_text,
    generation_options,
    load_model,
    pop_template_options,
    read_text,
    template_options,
)
from .output import echo, echo_text, notes

if TYPE_CHECKING:
    from ..runtime.generate.constraint import Constraint
    from ..runtime.generate.generation import Generation
    from ..runtime.measure.memory_use import PeakMemory
    from ..runtime.model import Model
    from ..runtime.prompts import Prompt


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
@click.option(
    "--prompt-ids",
    "ids",
    multiple=True,
    help="Token ids to continue, separated by commas or spaces; prints the new ids; repeatable.",
)
@click.option(
    "--chat",
    is_flag=True,
    help="Treat each prompt as a message: apply the chat template and print only the reply.",
)
@template_options
@generation_options(128)
@click.option(
    "--samples",
    "n",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of continuations per prompt.",
)
@click.option(
    "--json-schema", type=click.Path(), help="JSON file with the schema that the text must follow."
)
@click.option("--regex", help="Regular expression that the whole text must match.")
@click.option(
    "--grammar",
    type=click.Path(),
    help="File with a grammar, in Lark's syntax, that the text must follow.",
)
@click.option("--logprobs", is_flag=True, help="Also print the log-probability of each new token.")
@click.option(
    "--top-logprobs",
    type=click.IntRange(min=0),
    default=0,
    help="With --json: also list this many of the most likely tokens at each position.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per continuation.")
@click.option(
    "--report-memory", is_flag=True, help="Print peak memory and its prediction to stderr."
)
@click.option(
    "--report-outliers",
    is_flag=True,
    help="Print which values the outlier fallback handled to stderr.",
)
def command(
    path: str, given: tuple[str, ...], files: tuple[str, ...], ids: tuple[str, ...], chat: bool, as_json: bool,
    report_memory: bool, report_outliers: bool, **options: Any,  # checked by click
) -> None:  # fmt: skip
    """Continue a prompt with PATH (a converted folder, or a source in its own precision); output is streamed.

    Repeat --prompt and --prompt-file for several prompts: they run as one batch and are printed one after another. A line break
    at the end of a file or of stdin is not part of the prompt. With --chat, or --system or another option of the chat
    template, each prompt is a message to an assistant.

    Temperature, top-k, top-p, min-p, repetition penalty, number of tokens and stop strings default to the checkpoint's
    generation_config.json; without one, or unless it sets do_sample, decoding is greedy.

    PATH may also be a hub id (org/name or org/name@revision), which is downloaded.
    """
    if not given and not files and not ids:
        raise click.UsageError("Missing option '--prompt' / '-p', '--prompt-file' or '--prompt-ids'.")  # fmt: skip
    if ids and (given or files):
        raise click.UsageError("'--prompt-ids' cannot be combined with other prompts.")
    template = pop_template_options(options)
    chat = chat or any(value for name, value in template.items() if name != "template")
    if ids and chat:
        raise click.UsageError("'--chat' cannot be combined with '--prompt-ids'.")
    shown = [read_text("-") if each == "-" else check_text(each, "the prompt") for each in given]
    shown += [read_text(each) for each in files]
    options["constraint"] = _pop_constraint(options)
    memory = _watch(options["device"]) if report_memory else None
    model = load_model(path, options)
    prompts = _prompts(model, shown, [*map(_read_ids, ids)], template if chat else None, options)
    if as_json:
        _print_json(shown or prompts, model.generate_batch(prompts, **options), options["n"])
    elif ids:
        for result in model.generate_batch(prompts, **options):
            echo(" ".join(map(str, result.token_ids)))
    else:
        _print_text(model, prompts, [""] * len(shown) if chat else shown, options)
    if memory is not None:
        _show_memory(memory, model, prompts * options["n"], options["max_new_tokens"])
    if report_outliers:
        from .reports.outlier_report import show_fallback

        show_fallback(model.fallback_report(), err=True)


def _prompts(
    model: Model, texts: list[str], ids: list[list[int]], template: dict[str, Any] | None, options: dict[str, Any]
) -> list[Prompt]:  # fmt: skip
    """The inputs of the model; in a chat, each text as formatted by the template."""
    if template is None:
        from ..runtime.text.chat_template import is_in

        if texts and is_in(model.folder):
            notes(["this model has a chat template, which --chat applies; now it continues the text as it is"])  # fmt: skip
        return [*texts, *ids]
    from ..runtime.chat import Chat

    chat = Chat(model, **template)
    options["end_tokens"] = [*options["end_tokens"], *chat.end_tokens]
    return [chat.prompt(text) for text in texts]


def _pop_constraint(options: dict[str, Any]) -> Constraint | None:
    """The form of the text, of which one at most can be given."""
    schema, regex, grammar = (options.pop(name) for name in ("json_schema", "regex", "grammar"))
    if sum(each is not None for each in (schema, regex, grammar)) > 1:
        raise click.UsageError("'--json-schema', '--regex' and '--grammar' exclude each other.")
    from ..runtime.generate.constraint import Constraint

    if schema is not None:
        return Constraint.json_schema(read_text(schema))
    if regex is not None:
        return Constraint.regex(check_text(regex, "the regular expression"))
    return None if grammar is None else Constraint.grammar(read_text(grammar))


def _read_ids(text: str) -> list[int]:
    try:
        return [int(each) for each in text.replace(",", " ").split()]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of token ids", param_hint="--prompt-ids"
        ) from None


def _watch(device: str) -> PeakMemory:
    from ..runtime.devices import find_placement
    from ..runtime.measure.memory_use import watch_memory

    return watch_memory(find_placement(device).device)


def _show_memory(
    memory: PeakMemory, model: Model, prompts: list[Prompt], max_new_tokens: int | None
) -> None:
    """Print predicted and measured memory."""
    from .output import size, table

    used = memory.use(model.folder)
    context = max(model.positions(prompt, max_new_tokens) for prompt in prompts)
    longest = max(len(model.token_ids(prompt)) for prompt in prompts)
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


def _print_json(prompts: Sequence[Prompt], results: list[Generation], n: int) -> None:
    from .output import print_json

    print_json([{"prompt": prompts[i // n], **asdict(r)} for i, r in enumerate(results)])


def _print_text(
    model: Model, prompts: list[Prompt], shown: list[str], options: dict[str, Any]
) -> None:
    """Stream the first continuation, then print the others."""
    n, many = options["n"], len(prompts) * options["n"] > 1

    def show(i: int, text: str) -> None:
        if i == 0:
            echo_text(text)

    def head(i: int) -> None:
        sample = f", sample {i % n + 1}" if n > 1 else ""
        echo_text((f"==> prompt {i // n + 1}{sample} <==\n" if many else "") + shown[i // n])

    try:
        results = model.generate_batch(prompts, on_text=show, on_checked=lambda: head(0), **options)
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
