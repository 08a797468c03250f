"""`loraserve`: what an operator and the pod run."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loraserve import base_weights, log
from loraserve.base_model import read_base
from loraserve.bucket import Bucket, OnProgress
from loraserve.catalog import Catalog
from loraserve.desired import Adapter, Document
from loraserve.errors import LoraserveError
from loraserve.files import UnsafeFile


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 after a clear error on stderr (2 for wrong usage, by argparse; see also `recover`)."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except LoraserveError as error:
        print(f"loraserve: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loraserve", description="Serve many LoRA adapters on one base model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    publish = commands.add_parser(
        "publish",
        help="upload a PEFT folder as a new adapter version",
        description="Checks a PEFT folder, uploads it as a new, immutable version and prints the entry for the stack "
        "config. Credentials, region and AWS_ENDPOINT_URL are read as the AWS SDK does.",
    )
    publish.add_argument("folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors")
    publish.add_argument("--bucket", required=True, help="the stack's adapter bucket")
    publish.add_argument("--model", required=True, help="folder in the catalog, such as mistral-7b-aws-rag-qa")
    publish.add_argument("--version", required=True, help="such as v1; a version can be published only once")
    publish.add_argument("--name", help="what clients call the adapter (default: MODEL)")
    publish.add_argument(
        "--base",
        metavar="JSON|PATH",
        help="what it must fit: the output of `pulumi stack output baseModel`, or a config.json (default: not compared)",
    )
    publish.add_argument(
        "--probe-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt on which it answers otherwise than the base model; repeatable",
    )
    publish.add_argument("--probe-prompts", type=Path, metavar="FILE", help="such prompts, one per line")
    publish.set_defaults(command=_publish)

    mirror = commands.add_parser(
        "mirror",
        help="upload the base model's weights to the bucket, where pods then fetch them",
        description="Uploads a model's folder (config.json, *.safetensors, the tokenizer's files; nothing that could run) as "
        "a new, immutable version and prints the setting for the stack config.",
    )
    mirror.add_argument("folder", type=Path, help="holds config.json and *.safetensors")
    mirror.add_argument("--bucket", required=True, help="the stack's adapter bucket")
    mirror.add_argument("--model", required=True, help="the stack's baseModel, such as mistralai/Mistral-7B-v0.1")
    mirror.add_argument("--version", required=True, help="such as v1; a version can be mirrored only once")
    mirror.set_defaults(command=_mirror)

    agent = commands.add_parser("agent", help="run the sidecar of one vLLM (settings come from the environment)")
    agent.set_defaults(command=_agent)

    recover = commands.add_parser(
        "recover",
        help="after a `pulumi up` that was killed: delete what it created and did not record",
        description="Reads a state from standard input (pulumi stack export --stack dev | python -m loraserve recover) and "
        "looks in AWS for what its pending creations made. Exit code 2: something is left to delete.",
    )
    recover.add_argument("--yes", action="store_true", help="delete what was found (without it, it is only shown)")
    recover.set_defaults(command=_recover)
    return parser


def _publish(options: argparse.Namespace) -> None:
    catalog = Catalog(options.bucket)
    with _progress_bars() as progress:
        adapter = catalog.publish(
            options.folder,
            options.model,
            options.version,
            options.name,
            progress,
            base=read_base(options.base) if options.base else None,
            probe_prompts=_probe_prompts(options),
        )
    print("Published. Add to the stack config's list of adapters:", file=sys.stderr)
    print(stack_config_entry(adapter))


def _probe_prompts(options: argparse.Namespace) -> list[str]:
    if not options.probe_prompts:
        return options.probe_prompt
    try:
        lines = options.probe_prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UnsafeFile(f"--probe-prompts {options.probe_prompts} cannot be read: {error}") from None
    return [*options.probe_prompt, *filter(None, lines)]


def _mirror(options: argparse.Namespace) -> None:
    with _progress_bars() as progress:
        mirrored = base_weights.mirror(Bucket(options.bucket), options.folder, options.model, options.version, progress)
    print("Mirrored. Set in the stack config:", file=sys.stderr)
    print("loraserve:baseModelMirror:\n  " + "\n  ".join(_yaml_lines(mirrored)))


def _agent(_: argparse.Namespace) -> None:
    from loraserve.agent.main import run  # `publish` needs none of the agent's libraries
    from loraserve.agent.settings import Settings

    log.configure()
    run(Settings.from_environment(os.environ))


def _recover(options: argparse.Namespace) -> int:
    from loraserve.recovery import recover

    export = "" if sys.stdin.isatty() else sys.stdin.read()
    return 0 if recover(export, delete=options.yes) else 2


def stack_config_entry(adapter: Adapter) -> str:
    """YAML, one item of a list. JSON values, so that a version such as 1.0 stays text."""
    return "- " + "\n  ".join(_yaml_lines(adapter))


def _yaml_lines(document: Document) -> list[str]:
    return [f"{key}: {json.dumps(value)}" for key, value in document.model_dump(mode="json", by_alias=True).items()]


@contextmanager
def _progress_bars() -> Iterator[OnProgress]:
    """Bars on a terminal, one line per file elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            tasks = {}

            def update(file: str, sent: int, total: int) -> None:
                if file not in tasks:
                    tasks[file] = bars.add_task(file, total=total)
                bars.update(tasks[file], completed=sent)

            yield update
    else:
        announced: set[str] = set()

        def announce(file: str, sent: int, total: int) -> None:
            if file not in announced:
                announced.add(file)
                print(f"uploading {file} ({total / 1e6:.1f} MB)", file=sys.stderr)

        yield announce
