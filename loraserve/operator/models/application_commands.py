"""`loraserve ask | batch | page`: what applications' people do with the served models."""

from pathlib import Path

import click

from loraserve.operator.access.gateway import gateway, namespace_option, url_option
from loraserve.operator.access.kubectl import context_option
from loraserve.operator.access.terminal import busy, counted_bars, json_option, key_option, print_json, tell

PAGE_PORT = 8090


@click.command()
@click.argument("model")
@click.argument("prompt")
@key_option
@url_option
@context_option
@namespace_option
@json_option
def ask(model: str, prompt: str, key: str, url: str | None, context: str | None, namespace: str, as_json: bool) -> None:
    """Ask a model, or an adapter, one question; a sleeping one is woken, which takes minutes."""
    with gateway(url, context, namespace) as reached:
        _ask(f"{reached}/v1", key, model, prompt, as_json)


def _ask(url: str, key: str, model: str, prompt: str, as_json: bool) -> None:
    from loraserve.operator.models import ask as asking

    waiting = busy(f"waiting for {model}")
    if as_json:
        with waiting:
            answer = asking.ask_whole(url, key, model, prompt)
        print_json(answer)
        return
    pieces = asking.ask(url, key, model, prompt)
    with waiting:
        first = next(pieces, "")
    for piece in (first, *pieces):
        click.echo(piece, nl=False)
    click.echo()


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where results go (default: beside FILE, NAME.results.jsonl)."
)
@click.option("--concurrency", type=click.IntRange(1, 256), default=16, show_default=True, help="Requests at once.")
@key_option
@url_option
@context_option
@namespace_option
@json_option
def batch(
    file: Path,
    output: Path | None,
    concurrency: int,
    key: str,
    url: str | None,
    context: str | None,
    namespace: str,
    as_json: bool,
) -> int:
    """Answer every request of FILE, which has OpenAI's batch format, below interactive traffic.

    Results are in the order of FILE, in OpenAI's format, each with its answer or its error. A sleeping model is woken
    once. A run that was interrupted or killed goes on with the same command. Exit code 1: some rows have errors.
    """
    from loraserve.operator.models import batch as batches

    rows = batches.read_rows(file)
    output = output or file.with_name(f"{file.stem}.results.jsonl")
    with counted_bars() as told:
        outcome = batches.run(
            rows,
            output,
            lambda: gateway(url, context, namespace),
            key,
            concurrency=concurrency,
            on_progress=lambda done: told("answered", done, len(rows)),
        )
    if as_json:
        print_json({"output": str(output), **vars(outcome)})
    else:
        tell(f"{output}: {outcome.answered} answered, {outcome.refused} refused, {outcome.given_up} given up.")
    if outcome.given_up:
        tell("The same command tries those again that were given up.")
    return 1 if outcome.refused or outcome.given_up else 0


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=PAGE_PORT, show_default=True, help="Of this machine.")
@url_option
@context_option
@namespace_option
def page(port: int, url: str | None, context: str | None, namespace: str) -> None:
    """Serve a page to try models in a browser: base model and adapter side by side, as they answer.

    The page asks for an API key, such as `loraserve key` makes. It is served on this machine only, until Ctrl-C.
    """
    from loraserve.operator.models.page_server import PageServer

    with gateway(url, context, namespace) as reached, PageServer(reached, port) as server:
        tell(f"Open {server.url} (Ctrl-C ends it)")
        server.serve_forever()


COMMANDS = (ask, batch, page)
