"""`loraserve check | publish | mirror | list | show | verify | diff | gc`: what a publisher and an operator do to the bucket."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click

from loraserve.catalog import adapters, base_weights, garbage, lineage, listing
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import UnsafeFile
from loraserve.catalog.gate import inspect, notes
from loraserve.catalog.manifest import AdapterManifest
from loraserve.catalog.versions import VersionId
from loraserve.contract.base_model import Base, Mirror, read_base
from loraserve.errors import LoraserveError, reason
from loraserve.operator.access.terminal import (
    add_row,
    busy,
    json_option,
    plain,
    print_json,
    print_published,
    print_table,
    progress_bars,
    stack_config_entry,
    stack_config_setting,
    table,
    tell,
)
from loraserve.planning import stack_file
from loraserve.planning.known_models import KNOWN_MODELS

GRACE_DAYS = 30
_PATH = click.Path(path_type=Path)

_bucket = click.option("--bucket", "bucket_name", required=True, metavar="NAME", help="The stack's adapter bucket.")
_adapter_folder = click.argument("folder", type=_PATH)


def _base_options(command: Callable[..., Any]) -> Callable[..., Any]:
    base = click.option(
        "--base",
        "base_source",
        metavar="NAME|JSON|PATH",
        help="What it must fit: a hub id that `base-model` knows, the output of `pulumi stack output baseModel`, or a "
        "config.json (default: not compared).",
    )
    file = click.option(
        "--stack-file",
        "base_file",
        type=_PATH,
        metavar="FILE",
        help="The same, from a stack's Pulumi.<stack>.yaml.",
    )
    return base(file(command))


def _origin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is known of where a version comes from; handed on as `origin`."""
    file = click.option(
        "--lineage",
        "file",
        type=_PATH,
        metavar="FILE",
        help="JSON: data, code, training, note. What follows wins over it.",
    )
    data = click.option("--data-digest", "data", metavar="SHA256", help="Of the rows it was trained on: sha256:…")
    code = click.option("--code", metavar="COMMIT", help="Of the code that trained it.")
    note = click.option("--note", metavar="TEXT", help="Whatever else is worth knowing.")

    @wraps(command)
    def with_origin(file: Path | None, data: str | None, code: str | None, note: str | None, **others: Any) -> Any:
        told = {"data": data, "code": code, "note": note}
        return command(origin=lineage.Origin.told(file, **told), **others)

    return file(data(code(note(with_origin))))


def _base(source: str | None, file: Path | None) -> Base | None:
    if source and file:
        raise click.UsageError("--base and --stack-file say the same: give one of them")
    if file:
        return stack_file.read(file).base
    if source and (known := KNOWN_MODELS.get(source)):
        return Base(name=known.name, shape=known.shape.lora_shape)
    return read_base(source) if source else None


@click.command()
@_adapter_folder
@_base_options
@json_option
def check(folder: Path, base_source: str | None, base_file: Path | None, as_json: bool) -> None:
    """Say whether a PEFT folder can be published and served; needs no bucket.

    Passes FOLDER (adapter_config.json, adapter_model.safetensors) through the gate that publishing and every download
    pass. Nothing is uploaded.
    """
    base = _base(base_source, base_file)
    with busy(f"reading the weights in {folder}"):
        facts, noted = inspect(folder, base), notes(folder)
    if as_json:
        print_json(plain(facts) | {"fits": base and base.name, "notes": noted})
        return
    for note in noted:
        tell(f"Note: {note}")
    if not base:
        tell("Not compared with a base model: name one with --base or --stack-file.")
    trained_on = facts.base_model or "a model that it does not name"
    click.echo(
        f"{folder} can be published: rank {facts.rank} on {', '.join(facts.target_modules)}, trained on {trained_on}"
        + (f", fits {base.name}" if base else "")
    )


@click.command()
@_adapter_folder
@_bucket
@click.option("--model", required=True, help="Folder in the catalog, such as mistral-7b-aws-rag-qa.")
@click.option("--version", required=True, help="Such as v1; a version can be published only once.")
@click.option("--name", help="What clients call the adapter (default: MODEL).")
@_base_options
@click.option(
    "--probe-prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="A prompt on which it answers otherwise than the base model; repeatable.",
)
@click.option("--probe-prompts", "prompts_file", type=_PATH, metavar="FILE", help="Such prompts, one per line.")
@_origin_options
@json_option
def publish(
    folder: Path,
    bucket_name: str,
    model: str,
    version: str,
    name: str | None,
    base_source: str | None,
    base_file: Path | None,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    origin: lineage.Origin,
    as_json: bool,
) -> None:
    """Upload a PEFT folder as a new adapter version.

    Checks FOLDER, uploads it as a new, immutable version, records its lineage and prints the entry for the stack config.
    Credentials, region and AWS_ENDPOINT_URL are read as the AWS SDK does.
    """
    base = _base(base_source, base_file)
    prompts = (*prompts, *_lines(prompts_file))
    for note in notes(folder):
        tell(f"Note: {note}")
    bucket = Bucket(bucket_name)
    with progress_bars() as progress:
        entry = adapters.publish(bucket, folder, model, version, name, progress, base=base, probe_prompts=prompts)
    lineage.published(bucket, VersionId.of_adapter(entry), entry.digest, origin)
    print_published(entry, as_json)


def _lines(file: Path | None) -> list[str]:
    if not file:
        return []
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeError) as error:
        raise UnsafeFile(f"--probe-prompts {file} cannot be read: {reason(error)}") from None


@click.command()
@click.argument("folder", type=_PATH)
@_bucket
@click.option("--model", required=True, help="The stack's baseModel, such as mistralai/Mistral-7B-v0.1.")
@click.option("--version", required=True, help="Such as v1; a version can be mirrored only once.")
@_origin_options
@json_option
def mirror(folder: Path, bucket_name: str, model: str, version: str, origin: lineage.Origin, as_json: bool) -> None:
    """Upload the base model's weights to the bucket, where pods then fetch them.

    Uploads a model's FOLDER (config.json, *.safetensors, the tokenizer's files; nothing that could run) as a new,
    immutable version, records its lineage and prints the settings for the stack config.
    """
    bucket = Bucket(bucket_name)
    with progress_bars() as progress:
        mirrored = base_weights.publish(bucket, folder, model, version, progress)
    lineage.published(bucket, VersionId.of_base(model, version), mirrored.digest, origin)
    has_template = base_weights.has_chat_template(folder)
    if as_json:
        print_json({"baseModelMirror": plain(mirrored), "baseModelHasChatTemplate": has_template})
        return
    tell("Mirrored. Set in the stack config:")
    click.echo(mirror_setting(mirrored))
    if not has_template:
        click.echo("loraserve:baseModelHasChatTemplate: false")


def mirror_setting(mirror: Mirror) -> str:
    """YAML, one key of a stack config."""
    return stack_config_setting("baseModelMirror", mirror)


@click.command("list")
@click.argument("model", required=False)
@_bucket
@json_option
def list_versions(model: str | None, bucket_name: str, as_json: bool) -> None:
    """Show what the bucket holds, or only MODEL's versions."""
    found = listing.versions(Bucket(bucket_name), model)
    if as_json:
        print_json([_described(version) for version in found])
        return
    rows = table("model", "version", "kind", "MB", "last change (UTC)")
    for version in found:
        kind = version.id.kind if version.published else f"{version.id.kind}, unfinished"
        add_row(rows, version.id.model, version.id.version, kind, _megabytes(version), _day(version.changed_at))
    print_table(rows)


@click.command()
@click.argument("model")
@click.argument("version")
@_bucket
@json_option
def show(model: str, version: str, bucket_name: str, as_json: bool) -> None:
    """Show one version's manifest, its lineage, and its entry for the stack config."""
    bucket = Bucket(bucket_name)
    found = listing.find(bucket, model, version)
    manifest, digest = listing.read_manifest(bucket, found.id)
    content = json.loads(manifest.to_json())
    if isinstance(manifest, AdapterManifest):
        entry = manifest.entry(model, model, version, digest)
        text = stack_config_entry(entry)
    else:
        entry = manifest.entry(digest)
        text = mirror_setting(entry)
    records = lineage.read(bucket, found.id)
    if as_json:
        print_json({"manifest": content, "entry": plain(entry), "lineage": [plain(each) for each in records]})
        return
    tell(json.dumps(content, indent=2))
    for each in records:
        tell(_lineage_line(each, digest))
    click.echo(text)


@click.command()
@click.argument("model", required=False)
@click.argument("version", required=False)
@_bucket
@json_option
def verify(model: str | None, version: str | None, bucket_name: str, as_json: bool) -> int:
    """Read published versions again, byte by byte: all, MODEL's, or one.

    Exit code 1: something is damaged.
    """
    bucket = Bucket(bucket_name)
    wanted = [v for v in listing.versions(bucket, model, version) if v.published]
    if model and version and not wanted:
        listing.find(bucket, model, version)
    problems: dict[listing.Version, str | None] = {}
    for each in wanted:
        problems[each] = _damage(bucket, each)
        if not as_json:
            problem = problems[each]
            click.echo(f"{each.id}: DAMAGED\n{problem}" if problem else f"{each.id}: good")
    if as_json:
        print_json([_described(each) | {"problem": problem} for each, problem in problems.items()])
    return 1 if any(problems.values()) else 0


def _damage(bucket: Bucket, version: listing.Version) -> str | None:
    try:
        with progress_bars() as progress:
            listing.verify(bucket, version, progress)
    except LoraserveError as error:
        return str(error)
    return None


@click.command()
@click.argument("model")
@click.argument("version")
@click.argument("other", metavar="OTHER_VERSION")
@_bucket
@json_option
def diff(model: str, version: str, other: str, bucket_name: str, as_json: bool) -> None:
    """Show what differs between two versions of a model."""
    bucket = Bucket(bucket_name)
    before, after = (listing.find(bucket, model, each).id for each in (version, other))
    found = list(listing.differences(bucket, before, after))
    if as_json:
        print_json({fact: [one, another] for fact, one, another in found})
        return
    rows = table("fact", version, other)
    for difference in found:
        add_row(rows, *difference)
    print_table(rows)


@click.command()
@_bucket
@click.option(
    "--keep", type=_PATH, multiple=True, required=True, metavar="FILE", help="Such as Pulumi.prod.yaml; repeatable."
)
@click.option("--days", default=GRACE_DAYS, show_default=True, help="Leave what changed later than this many days ago.")
@click.option("--role", metavar="ARN", help="The only one that may delete: `pulumi stack output catalogGcRole`.")
@click.option("--yes", is_flag=True, help="Delete what was found (without it, it is only shown).")
@json_option
def gc(bucket_name: str, keep: tuple[Path, ...], days: int, role: str | None, yes: bool, as_json: bool) -> None:
    """Find, and with --yes delete, versions that no stack names and uploads that were never finished.

    Name every stack config and desired state that uses the bucket: what they name is kept. What is deleted can be brought
    back for 90 days: see docs/operations.md.
    """
    kept = garbage.named_versions(keep)
    bucket = Bucket(bucket_name, role=role)
    with busy("looking through the bucket"):
        found = garbage.find_garbage(bucket, kept, datetime.now(UTC), timedelta(days=days))
    if found and not as_json:
        _print_garbage(found)
    left: list[str] = []
    if found and yes:
        with busy("deleting"):
            left = [str(id) for id in garbage.delete(bucket, found, lambda: garbage.named_versions(keep))]
    if as_json:
        uploads = [{"key": upload.key, "begunAt": upload.begun_at.isoformat()} for upload in found.uploads]
        versions = [_described(each) for each in found.versions]
        print_json({"versions": versions, "uploads": uploads, "deleted": yes, "left": left})
    if not found:
        tell(f"Nothing to delete: all is named, or changed in the last {days} days.")
    elif yes:
        tell(f"Deleted, but for what is named or was changed since: {', '.join(left)}." if left else "Deleted.")
    else:
        tell("Only shown; delete it with --yes.")


def _print_garbage(found: garbage.Garbage) -> None:
    rows = table("what nobody names", "MB", "last change (UTC)")
    for version in found.versions:
        add_row(rows, str(version.id), _megabytes(version), _day(version.changed_at))
    for upload in found.uploads:
        add_row(rows, f"unfinished upload of {upload.key}", "", _day(upload.begun_at))
    print_table(rows)


COMMANDS = (check, publish, mirror, list_versions, show, verify, diff, gc)


def _described(version: listing.Version) -> dict[str, Any]:
    """For a machine."""
    return {
        "kind": version.id.kind,
        "model": version.id.model,
        "version": version.id.version,
        "published": version.published,
        "sizeBytes": version.size_bytes,
        "changedAt": version.changed_at.isoformat(),
    }


def _lineage_line(record: lineage.Record, digest: str) -> str:
    facts = {
        "from": record.from_stack,
        "to": record.to_stack,
        "instead of": record.replaced,
        "back to": record.restored,
        "because": record.reason,
        **(plain(record.origin) if record.origin else {}),
        "evaluations": ", ".join(record.evaluations),
        "of other bytes": record.digest if record.digest != digest else None,
    }
    told = "; ".join(f"{fact} {value}" for fact, value in facts.items() if value)
    return f"{_day(record.at)} {record.event} by {record.principal}" + (f": {told}" if told else "")


def _megabytes(version: listing.Version) -> str:
    return f"{version.size_bytes / 1e6:.1f}"


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
