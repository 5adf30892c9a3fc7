"""``int8conv generate``."""

from __future__ import annotations

import click


@click.command("generate")
@click.argument("path", type=click.Path())
@click.option("--prompt", "-p", required=True, help="Text to continue.")
@click.option("--max-new-tokens", "-n", type=click.IntRange(min=0), help="Default: 128.")
@click.option("--temperature", "-t", type=float, help="0: the most likely token each time.")
@click.option("--top-k", type=int, help="Draw from the k most likely tokens; 0: from all.")
@click.option("--top-p", type=float, help="Draw from the fewest tokens of this probability.")
@click.option("--min-p", type=float, help="Draw from tokens this likely in parts of the likeliest.")
@click.option(
    "--repetition-penalty", type=float, help="Above 1: what has occurred becomes less likely."
)
@click.option("--stop", multiple=True, help="Text to end at, not printed; may be repeated.")
@click.option("--logprobs", is_flag=True, help="Print each new token's log-probability afterwards.")
@click.option("--seed", type=int, help="Makes drawing repeatable.")
@click.option(
    "--mode",
    type=click.Choice(["w8a8", "w8a16"]),
    help="8- or 16-bit activations; default: by the number of tokens.",
)
@click.option("--dtype", help="float32, float16 or bfloat16; default: float32, fastest on a CPU.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--net/--no-net", default=True, show_default=True, help="The safety net of W8A8.")
@click.option("--report-outliers", is_flag=True, help="On stderr: what the safety net took.")
def command(
    path: str,
    prompt: str,
    max_new_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: tuple[str, ...],
    logprobs: bool,
    seed: int | None,
    mode: str | None,
    dtype: str | None,
    device: str,
    net: bool,
    report_outliers: bool,
) -> None:
    """Continue a prompt with PATH (a converted folder, or a source in its own precision); text comes as it is made.

    What is not given (temperature, top-k, top-p, min-p, repetition penalty, number of tokens, stop strings) is as the
    checkpoint's generation_config.json says; without one, or with do_sample false in it, the most likely token is taken.

    PATH may be the id of one on the hub, org/name or org/name@revision, which is downloaded.
    """
    from ..errors import GenerationError
    from ..runtime.loader import load
    from .output import table

    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise GenerationError("the prompt is not UTF-8 text") from error

    def show(text: str) -> None:
        click.echo(text, nl=False)  # which flushes

    model = load(path, device=device, mode=mode, dtype=dtype, net=net)  # type: ignore[arg-type]
    for unsupported in model.defaults.unsupported:
        click.echo(
            f"int8conv: note: generation_config.json: {unsupported} is not followed", err=True
        )
    show(prompt)
    result = model.generate(
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or None,
        logprobs=logprobs,
        seed=seed,
        on_text=show,
    )
    click.echo()
    if result.logprobs is not None:
        rows = [
            (token, repr(model.tokenizer.decode([token])), f"{logprob:.4f}")
            for token, logprob in zip(result.token_ids, result.logprobs, strict=True)
        ]
        table(("token", "text", "log-probability"), rows)
    if report_outliers:
        from .net import show_net

        show_net(model.net_report(), err=True)
