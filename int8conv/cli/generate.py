"""``int8conv generate``."""

from __future__ import annotations

import click


@click.command("generate")
@click.argument("path", type=click.Path())
@click.option("--prompt", "-p", required=True, help="Text to continue.")
@click.option("--max-new-tokens", "-n", type=click.IntRange(min=0), help="Default: 128.")
@click.option(
    "--temperature", "-t", type=float, default=0.0, show_default=True, help="0: the most likely."
)
@click.option("--top-k", type=int, help="Draw from the k most likely tokens.")
@click.option("--top-p", type=float, help="Draw from the fewest tokens of this probability.")
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
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    mode: str | None,
    dtype: str | None,
    device: str,
    net: bool,
    report_outliers: bool,
) -> None:
    """Continue a prompt with PATH (a converted folder, or a source in its own precision); text comes as it is made.

    PATH may be the id of one on the hub, org/name or org/name@revision, which is downloaded.
    """
    from ..errors import GenerationError
    from ..runtime.loader import load

    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise GenerationError("the prompt is not UTF-8 text") from error

    def show(text: str) -> None:
        click.echo(text, nl=False)  # which flushes

    model = load(path, device=device, mode=mode, dtype=dtype, net=net)  # type: ignore[arg-type]
    show(prompt)
    model.generate(
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        on_text=show,
    )
    click.echo()
    if report_outliers:
        from .net import show_net

        show_net(model.net_report(), err=True)
