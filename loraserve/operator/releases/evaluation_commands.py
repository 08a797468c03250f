"""`loraserve evaluate`: may a version be released?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.evaluations import write_verdict
from loraserve.contract.desired_state import Adapter, DesiredState, InvalidDesiredState
from loraserve.contract.evaluation import BaseIdentity, EvaluatedVersion, Override, Result
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.operator.access.gateway import gateway, namespace_option, url_option
from loraserve.operator.access.kubectl import context_option
from loraserve.operator.access.terminal import counted_bars, json_option, print_json, tell
from loraserve.planning import stack_file as stack_files
from loraserve.planning.stack_settings import Settings

if TYPE_CHECKING:
    from loraserve.evaluation.outcome import Compared, Outcome

EXIT_CODES = {Result.PASS: 0, Result.FAIL: 3, Result.INCONCLUSIVE: 4}
_PATH = click.Path(path_type=Path)


class NotDeclared(LoraserveError):
    """A stack file does not name what is to be evaluated."""


@click.command()
@click.argument("file", type=_PATH)
@click.option(
    "--candidate",
    required=True,
    metavar="NAME@VERSION",
    help="The version that is to be released: of an adapter, or of a mirrored base model by its id.",
)
@click.option(
    "--stack-file",
    type=_PATH,
    default=Path("Pulumi.dev.yaml"),
    show_default=True,
    help="Of the stack that is asked; it pins the candidate's digest and the base.",
)
@click.option(
    "--desired-state",
    "desired_file",
    type=_PATH,
    metavar="FILE",
    help="Instead of stack files, in the cluster: the document that is followed there. The candidate is NAME's canary, compared "
    "with its stable version, or where there is none that one, compared with the base.",
)
@click.option(
    "--base-revision", metavar="COMMIT", help="For --desired-state: of the base's weights, where the hub has them."
)
@click.option(
    "--production",
    "production_file",
    type=_PATH,
    metavar="FILE",
    help="The stack file that says which version of it is in production (default: none is, the base is compared with).",
)
@click.option(
    "--production-url",
    metavar="URL",
    help="Of that stack's API, for a whole model: one stack serves one. Its key is PRODUCTION_API_KEY.",
)
@click.option(
    "--output", type=_PATH, metavar="FOLDER", help="For answers and reports (default: beside FILE, NAME.results)."
)
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests at once.")
@click.option("--dry-run", is_flag=True, help="Check FILE and its rows and say what they can show; asks nothing.")
@click.option(
    "--record", is_flag=True, help="Write the verdict into the bucket, where `loraserve promote` looks for it."
)
@click.option("--bucket", "bucket_name", metavar="NAME", help="The stack's adapter bucket, for --record.")
@click.option("--role", metavar="ARN", help="For --record, the one role that may: the stack's output evaluatorRole.")
@click.option("--no-gate", is_flag=True, help="Exit code 0 whatever the verdict is, as for a run by schedule.")
@click.option(
    "--override", "reason", metavar="REASON", help="Let it through although it does not pass; recorded with your name."
)
@click.option("--key", envvar="OPENAI_API_KEY", help="API key; better set OPENAI_API_KEY to it.")
@url_option
@context_option
@namespace_option
@json_option
def evaluate(
    file: Path,
    candidate: str,
    stack_file: Path,
    desired_file: Path | None,
    base_revision: str | None,
    production_file: Path | None,
    production_url: str | None,
    output: Path | None,
    concurrency: int,
    dry_run: bool,
    record: bool,
    bucket_name: str | None,
    role: str | None,
    no_gate: bool,
    reason: str | None,
    key: str | None,
    url: str | None,
    context: str | None,
    namespace: str,
    as_json: bool,
) -> int:
    """Say whether a version may be released: it is no worse than what is in production by more than a margin.

    FILE (YAML) names the rows, how they are asked and scored, and the score that decides (docs/releases.md). Base,
    candidate and the version in production are asked all rows, below interactive traffic; a run that was interrupted
    goes on with the same command. Writes a JSON and an HTML report. Exit code 3: it is worse; 4: inconclusive, both block.
    """
    from loraserve.evaluation.definition import Plan
    from loraserve.evaluation.judge import KEY_VARIABLE
    from loraserve.evaluation.outcome import evaluate as run
    from loraserve.evaluation.outcome import expectation
    from loraserve.evaluation.runner import Asking, Endpoint

    plan = Plan(file)
    if desired_file:
        compared = _followed(candidate, desired_file, base_revision)
    else:
        compared = _compared(candidate, stack_file, production_file, production_url)
    for note in plan.notes:
        tell(f"Note: {note}")
    tell(expectation(plan))
    if dry_run:
        return 0
    if not key:
        raise click.UsageError("give an API key of the gateway's: set OPENAI_API_KEY")
    judge, judge_key = plan.evaluation.judge, os.environ.get(KEY_VARIABLE)
    if judge and judge.url and not judge_key:
        raise click.UsageError(f"the judge is at {judge.url}: set {KEY_VARIABLE} to a key of that service")
    open_bucket, override = _recording(record, bucket_name, role, reason)
    folder = output or file.with_name(f"{file.stem}.results")
    folder.mkdir(parents=True, exist_ok=True)
    with counted_bars() as on_progress:
        asking = Asking(
            plan,
            Endpoint(lambda: gateway(url, context, namespace), key),
            folder / "answers.jsonl",
            concurrency,
            on_progress,
        )
        outcome = run(plan, compared, asking, datetime.now(UTC), judge_key, override)
    code = _report(outcome, folder, open_bucket, as_json)
    return 0 if no_gate else code


def _followed(name: str, desired_file: Path, base_revision: str | None) -> Compared:
    """The newest version of what a cluster serves under this name. Raises NotDeclared."""
    from loraserve.evaluation.outcome import Compared

    try:
        state = DesiredState.parse(desired_file.read_bytes())
    except (OSError, InvalidDesiredState) as error:
        raise NotDeclared(f"{desired_file} cannot be read as a desired state: {error}") from None
    entries = sorted((each for each in state.adapters if each.name == name), key=lambda each: each.canary_percent or 0)
    if not entries:
        raise NotDeclared(
            f"{desired_file} declares no {name}: give a name without a version that `loraserve status` shows"
        )
    mirror = state.base.mirror
    base = BaseIdentity(
        name=state.base.name, revision=None if mirror else base_revision, mirror=mirror and mirror.digest
    )
    *stable, candidate = map(_evaluated, entries)
    return Compared(base, candidate, stable[0] if stable else None)


def _compared(candidate: str, stack_file: Path, production_file: Path | None, production_url: str | None) -> Compared:
    from loraserve.evaluation.outcome import Compared

    name = ServedName(candidate)
    if name.version is None:
        raise click.UsageError("--candidate has no version: say which, such as faq@v3")
    settings = stack_files.read(stack_file)
    base = settings.base_identity
    if name.adapter == base.name:
        return _whole_model(name, settings, stack_file, production_file, production_url)
    found = _declared(settings, name.adapter, name.version)
    if not found:
        raise NotDeclared(
            f"{stack_file} declares no {candidate}: add its entry, beside the stable version with a canaryPercent"
        )
    if not production_file:
        tell("No --production: the base is compared with.")
        return Compared(base, found)
    production = _declared(stack_files.read(production_file), name.adapter, None)
    if production and production.version == name.version:
        raise NotDeclared(f"{candidate} is in production by {production_file}: there is nothing to compare it with")
    if not production:
        tell(f"{production_file} declares no {name.adapter}: the base is compared with.")
    return Compared(base, found, production)


def _whole_model(
    name: ServedName, settings: Settings, stack_file: Path, production_file: Path | None, production_url: str | None
) -> Compared:
    """It is compared with the base model that another stack serves."""
    from loraserve.evaluation.outcome import Compared
    from loraserve.evaluation.runner import Endpoint

    mirror = settings.base_model_mirror
    if not mirror or mirror.version != name.version:
        raise NotDeclared(f"{stack_file} has no baseModelMirror of {name}: deploy it there first")
    key = os.environ.get("PRODUCTION_API_KEY")
    if not (production_file and production_url and key):
        raise click.UsageError(
            f"{name} is a whole model, compared with the one of another stack: give --production, --production-url and set "
            "PRODUCTION_API_KEY"
        )
    production = stack_files.read(production_file).base_identity
    if production == settings.base_identity:
        raise NotDeclared(f"{name} is in production by {production_file}: there is nothing to compare it with")
    candidate = EvaluatedVersion(name=name.adapter, version=mirror.version, digest=mirror.digest)
    return Compared(production, candidate, base_endpoint=Endpoint(lambda: gateway(production_url, None, ""), key))


def _declared(settings: Settings, name: str, version: str | None) -> EvaluatedVersion | None:
    """That version, or the stable one."""
    for entry in settings.adapters:
        wanted = entry.canary_percent is None if version is None else entry.version == version
        if entry.name == name and wanted:
            return _evaluated(entry)
    return None


def _evaluated(entry: Adapter) -> EvaluatedVersion:
    return EvaluatedVersion(name=entry.name, version=entry.version, digest=entry.digest)


def _recording(
    record: bool, bucket_name: str | None, role: str | None, reason: str | None
) -> tuple[Callable[[], Bucket] | None, Override | None]:
    """Before anything is asked: that it can be written down, and by whom."""
    if reason and not record:
        raise click.UsageError("--override lets through what is recorded: add --record")
    if not record:
        return None, None
    if not bucket_name:
        raise click.UsageError("--record needs --bucket")
    open_bucket = partial(Bucket, bucket_name, role=role)
    open_bucket()  # opened anew in the end: a role's credentials live an hour
    # Who overrides is who assumes the role, not the role.
    return open_bucket, Override(reason=reason, by=Bucket(bucket_name).principal()) if reason else None


def _report(outcome: Outcome, folder: Path, open_bucket: Callable[[], Bucket] | None, as_json: bool) -> int:
    from loraserve.evaluation import report

    found = report.as_json(outcome)
    (folder / "report.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(report.as_html(outcome), encoding="utf-8")
    if open_bucket:
        bucket = open_bucket()
        tell(f"Recorded: {bucket.url(write_verdict(bucket, outcome.verdict))}")
    if as_json:
        print_json({key: found[key] for key in found if key != "sets"} | {"report": str(folder / "report.json")})
    else:
        click.echo(report.sentence(outcome))
        tell(f"Report: {folder / 'report.html'}")
    return 0 if outcome.verdict.allows_release else EXIT_CODES[outcome.verdict.result]


COMMANDS = (evaluate,)
