"""`loraserve check | publish | mirror | list | show | verify | diff | gc`: an operator's hold on the bucket."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from loraserve.catalog import adapters, base_weights, garbage, listing
from loraserve.catalog.bucket import Bucket, OnProgress
from loraserve.catalog.files import UnsafeFile
from loraserve.catalog.gate import inspect, notes
from loraserve.catalog.manifest import AdapterManifest
from loraserve.contract.base_model import Base, read_base
from loraserve.contract.document import Document
from loraserve.errors import LoraserveError
from loraserve.planning import stack_file

GRACE_DAYS = 30
PIPED_WIDTH = 200
"""Of a table that no terminal shows."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bucket = argparse.ArgumentParser(add_help=False)
    bucket.add_argument("--bucket", required=True, help="the stack's adapter bucket")

    check = commands.add_parser(
        "check",
        help="say whether a PEFT folder can be published and served; needs no bucket",
        description="Passes a PEFT folder through the gate that publishing and every download pass. Nothing is uploaded.",
    )
    check.add_argument("folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors")
    _add_base(check)
    check.set_defaults(command=_check)

    publish = commands.add_parser(
        "publish",
        parents=[bucket],
        help="upload a PEFT folder as a new adapter version",
        description="Checks a PEFT folder, uploads it as a new, immutable version and prints the entry for the stack "
        "config. Credentials, region and AWS_ENDPOINT_URL are read as the AWS SDK does.",
    )
    publish.add_argument("folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors")
    publish.add_argument("--model", required=True, help="folder in the catalog, such as mistral-7b-aws-rag-qa")
    publish.add_argument("--version", required=True, help="such as v1; a version can be published only once")
    publish.add_argument("--name", help="what clients call the adapter (default: MODEL)")
    _add_base(publish)
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
        parents=[bucket],
        help="upload the base model's weights to the bucket, where pods then fetch them",
        description="Uploads a model's folder (config.json, *.safetensors, the tokenizer's files; nothing that could run) as "
        "a new, immutable version and prints the settings for the stack config.",
    )
    mirror.add_argument("folder", type=Path, help="holds config.json and *.safetensors")
    mirror.add_argument("--model", required=True, help="the stack's baseModel, such as mistralai/Mistral-7B-v0.1")
    mirror.add_argument("--version", required=True, help="such as v1; a version can be mirrored only once")
    mirror.set_defaults(command=_mirror)

    listing = commands.add_parser("list", parents=[bucket], help="what the bucket holds")
    listing.add_argument("model", nargs="?", help="only its versions")
    listing.set_defaults(command=_list)

    show = commands.add_parser(
        "show", parents=[bucket], help="one version's manifest, and its entry for the stack config"
    )
    show.add_argument("model")
    show.add_argument("version")
    show.set_defaults(command=_show)

    verify = commands.add_parser("verify", parents=[bucket], help="read published versions again, byte by byte")
    verify.add_argument("model", nargs="?", help="only its versions (default: all)")
    verify.add_argument("version", nargs="?", help="only this one")
    verify.set_defaults(command=_verify)

    diff = commands.add_parser("diff", parents=[bucket], help="what differs between two versions of a model")
    diff.add_argument("model")
    diff.add_argument("version")
    diff.add_argument("other", metavar="OTHER_VERSION")
    diff.set_defaults(command=_diff)

    gc = commands.add_parser(
        "gc",
        parents=[bucket],
        help="find, and with --yes delete, versions that no stack names and uploads that were never finished",
        description="Name every stack config and desired state that uses the bucket: what they name is kept. What is "
        "deleted can be brought back for 90 days: see docs/operations.md.",
    )
    gc.add_argument(
        "--keep", type=Path, action="append", required=True, metavar="FILE", help="such as Pulumi.prod.yaml; repeatable"
    )
    gc.add_argument(
        "--days",
        type=int,
        default=GRACE_DAYS,
        help="leave what changed later than this many days ago (default: %(default)s)",
    )
    gc.add_argument("--role", metavar="ARN", help="the only one that may delete: `pulumi stack output catalogGcRole`")
    gc.add_argument("--yes", action="store_true", help="delete what was found (without it, it is only shown)")
    gc.set_defaults(command=_gc)


def _add_base(command: argparse.ArgumentParser) -> None:
    base = command.add_mutually_exclusive_group()
    base.add_argument(
        "--base",
        metavar="JSON|PATH",
        help="what it must fit: the output of `pulumi stack output baseModel`, or a config.json (default: not compared)",
    )
    base.add_argument("--stack-file", type=Path, metavar="FILE", help="the same, from a stack's Pulumi.<stack>.yaml")


def _base(options: argparse.Namespace) -> Base | None:
    if options.stack_file:
        return stack_file.read(options.stack_file).base
    return read_base(options.base) if options.base else None


def _check(options: argparse.Namespace) -> None:
    base = _base(options)
    facts = inspect(options.folder, base)
    for note in notes(options.folder):
        _tell(f"Note: {note}")
    if not base:
        _tell("Not compared with a base model: name one with --base or --stack-file.")
    trained_on = facts.base_model or "a model that it does not name"
    print(
        f"{options.folder} can be published: rank {facts.rank} on {', '.join(facts.target_modules)}, trained on {trained_on}"
        + (f", fits {base.name}" if base else "")
    )


def _publish(options: argparse.Namespace) -> None:
    base = _base(options)
    for note in notes(options.folder):
        _tell(f"Note: {note}")
    prompts = _probe_prompts(options)
    with _progress_bars("uploading") as progress:
        adapter = adapters.publish(
            Bucket(options.bucket),
            options.folder,
            options.model,
            options.version,
            options.name,
            progress,
            base=base,
            probe_prompts=prompts,
        )
    _tell("Published. Add to the stack config's list of adapters:")
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
    with _progress_bars("uploading") as progress:
        mirrored = base_weights.publish(
            Bucket(options.bucket), options.folder, options.model, options.version, progress
        )
    _tell("Mirrored. Set in the stack config:")
    print(mirror_setting(mirrored))
    if not base_weights.has_chat_template(options.folder):
        print("loraserve:baseModelHasChatTemplate: false")


def _list(options: argparse.Namespace) -> None:
    table = Table("model", "version", "kind", "MB", "last change (UTC)", box=None, pad_edge=False)
    for version in listing.versions(Bucket(options.bucket), options.model):
        kind = version.id.kind if version.published else f"{version.id.kind}, unfinished"
        _add_row(table, version.id.model, version.id.version, kind, _megabytes(version), _day(version.changed_at))
    _print(table)


def _show(options: argparse.Namespace) -> None:
    bucket = Bucket(options.bucket)
    found = listing.find(bucket, options.model, options.version)
    manifest, digest = listing.read_manifest(bucket, found.id)
    _tell(json.dumps(json.loads(manifest.to_json()), indent=2))
    if isinstance(manifest, AdapterManifest):
        print(stack_config_entry(manifest.entry(options.model, options.model, options.version, digest)))
    else:
        print(mirror_setting(manifest.entry(digest)))


def _verify(options: argparse.Namespace) -> int:
    bucket = Bucket(options.bucket)
    wanted = [v for v in listing.versions(bucket, options.model, options.version) if v.published]
    if options.version and not wanted:
        listing.find(bucket, options.model, options.version)
    damaged = 0
    for version in wanted:
        try:
            with _progress_bars(f"{version.id} reading") as progress:
                listing.verify(bucket, version, progress)
        except LoraserveError as error:
            damaged += 1
            print(f"{version.id}: DAMAGED\n{error}")
        else:
            print(f"{version.id}: good")
    return 1 if damaged else 0


def _diff(options: argparse.Namespace) -> None:
    bucket = Bucket(options.bucket)
    one, other = (listing.find(bucket, options.model, version).id for version in (options.version, options.other))
    table = Table("fact", one.version, other.version, box=None, pad_edge=False)
    for difference in listing.differences(bucket, one, other):
        _add_row(table, *difference)
    _print(table)


def _gc(options: argparse.Namespace) -> None:
    kept = garbage.named_versions(options.keep)
    bucket = Bucket(options.bucket, role=options.role)
    found = garbage.find_garbage(bucket, kept, datetime.now(UTC), timedelta(days=options.days))
    table = Table("what nobody names", "MB", "last change (UTC)", box=None, pad_edge=False)
    for version in found.versions:
        _add_row(table, str(version.id), _megabytes(version), _day(version.changed_at))
    for upload in found.uploads:
        _add_row(table, f"unfinished upload of {upload.key}", "", _day(upload.begun_at))
    if not found:
        _tell(f"Nothing to delete: all is named, or changed in the last {options.days} days.")
        return
    _print(table)
    if options.yes:
        garbage.delete(bucket, found)
        _tell("Deleted.")
    else:
        _tell("Only shown; delete it with --yes.")


def stack_config_entry(entry: Document) -> str:
    """YAML, one item of a list."""
    return "- " + "\n  ".join(_yaml_lines(entry))


def mirror_setting(mirror: Document) -> str:
    """YAML, one key of a stack config."""
    return "loraserve:baseModelMirror:\n  " + "\n  ".join(_yaml_lines(mirror))


def _yaml_lines(document: Document) -> list[str]:
    """JSON values, so that a version such as 1.0 stays text."""
    content = document.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return [f"{key}: {json.dumps(value)}" for key, value in content.items()]


def _tell(text: str) -> None:
    """Not part of what a script reads."""
    print(text, file=sys.stderr)


def _megabytes(version: listing.Version) -> str:
    return f"{version.size_bytes / 1e6:.1f}"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _add_row(table: Table, *cells: str) -> None:
    """Without rich's markup: the words come from the bucket."""
    table.add_row(*(Text(cell) for cell in cells))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


@contextmanager
def _progress_bars(doing: str) -> Iterator[OnProgress]:
    """Bars on a terminal, one line per file elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            tasks = {}

            def update(file: str, done: int, total: int) -> None:
                if file not in tasks:
                    tasks[file] = bars.add_task(file, total=total)
                bars.update(tasks[file], completed=done)

            yield update
    else:
        announced: set[str] = set()

        def announce(file: str, done: int, total: int) -> None:
            if file not in announced:
                announced.add(file)
                _tell(f"{doing} {file} ({total / 1e6:.1f} MB)")

        yield announce
