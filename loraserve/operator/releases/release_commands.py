"""`loraserve promote | rollback | canary | export | import | release`: from stack to stack."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loraserve.operator.access.kubectl import context_option
from loraserve.operator.access.pulumi import Pulumi, PulumiFailed
from loraserve.operator.access.terminal import (
    add_row,
    json_option,
    plain,
    print_json,
    print_table,
    progress_bars,
    table,
    tell,
)

if TYPE_CHECKING:
    from rich.table import Table

    from loraserve.operator.releases.canary import Difference, Judgement, Side
    from loraserve.operator.releases.promotion import Promotion, Stack, Terms

MAX_AGE_DAYS = 30
_PATH = click.Path(path_type=Path)

_no_preview = click.option("--no-preview", is_flag=True, help="Do not run `pulumi preview` on the edited stack.")


def _stacks(**roles: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that name stacks, by the role that each plays; the command gets them opened."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def opened(project: Path, **options: Any) -> Any:
            from loraserve.operator.releases.promotion import Stack

            for role in roles:
                name, bucket, profile = (options.pop(f"{role}{part}") for part in ("", "_bucket", "_profile"))
                options[role] = Stack.open(Pulumi(project, name, profile), bucket)
            return command(**options)

        decorated = click.option(
            "--project", type=_PATH, default=Path(), metavar="FOLDER", help="With the stacks' files (default: here)."
        )(opened)
        for role, option in reversed(roles.items()):
            prefix = "" if option == "stack" else f"{option}-"
            for add in (
                click.option(f"--{prefix}profile", f"{role}_profile", metavar="NAME", help="Of ~/.aws/config, for it."),
                click.option(
                    f"--{prefix}bucket", f"{role}_bucket", metavar="NAME", help="Its bucket (default: its output)."
                ),
                click.option(f"--{option}", role, required=True, metavar="STACK", help="Such as dev: Pulumi.dev.yaml."),
            ):
                decorated = add(decorated)
        return decorated

    return decorate


def _terms(command: Callable[..., Any]) -> Callable[..., Any]:
    @click.option(
        "--max-age-days",
        type=click.IntRange(1),
        default=MAX_AGE_DAYS,
        show_default=True,
        help="An older evaluation does not count.",
    )
    @click.option(
        "--canary", type=click.IntRange(1, 99), metavar="PERCENT", help="Of the callers first, beside stable."
    )
    @click.option(
        "--evaluator-role",
        metavar="ARN",
        help="Writes the evaluations there (default: the stack's output evaluatorRole).",
    )
    @wraps(command)
    def with_terms(max_age_days: int, canary: int | None, evaluator_role: str | None, **options: Any) -> Any:
        from loraserve.operator.releases.promotion import Terms

        return command(terms=Terms(timedelta(days=max_age_days), canary, evaluator_role), **options)

    return with_terms


@click.command()
@click.argument("what", metavar="NAME@VERSION")
@_stacks(source="from", target="to")
@_terms
@_no_preview
@json_option
def promote(what: str, source: Stack, target: Stack, terms: Terms, no_preview: bool, as_json: bool) -> None:
    """Take a version that one stack has run to another: faq@v3, or a mirrored model by its hub id.

    Reads every byte in the source's bucket, asks for an evaluation of these bytes on the target's base model, copies them
    (nothing is overwritten), reads them there, edits the target's stack file and shows what `pulumi preview` says. Deploying
    stays `pulumi up`.
    """
    from loraserve.operator.releases import promotion

    with progress_bars() as progress:
        done = promotion.promote(what, source, target, terms, progress)
    _show_promotion(done, target, as_json)
    _preview(target, no_preview or as_json)
    if not (no_preview or as_json):
        _tell_of_the_program(source, target)


@click.command()
@click.argument("name")
@_stacks(target="to")
@click.option("--version", metavar="VERSION", help="Back to this one (default: what the last promotion replaced).")
@click.option("--reason", metavar="TEXT", help="For the lineage of the version that goes.")
@_no_preview
@json_option
def rollback(
    name: str,
    target: Stack,
    version: str | None,
    reason: str | None,
    no_preview: bool,
    as_json: bool,
) -> None:
    """Take NAME back to the version before, or take its canary away; no evaluation is asked for.

    Reads that version's bytes again, edits the stack file and shows what `pulumi preview` says.
    """
    from loraserve.operator.releases import promotion

    with progress_bars() as progress:
        done = promotion.rollback(name, target, version, reason, progress)
    if as_json:
        print_json({"left": str(done.left), "restored": str(done.restored), "diff": done.edit.diff})
    else:
        click.echo(done.edit.diff, nl=False)
        tell(f"{target.file} goes from {done.left} back to {done.restored}.")
    _preview(target, no_preview or as_json)


@click.command()
@click.argument("what", metavar="NAME@VERSION")
@click.argument("file", type=_PATH)
@_stacks(source="stack")
@json_option
def export(what: str, file: Path, source: Stack, as_json: bool) -> None:
    """Write a version, its evaluations and its lineage to FILE, for a stack that cannot reach this bucket.

    Prints the file's digest, which `import` asks for: send it on another way than the file.
    """
    from loraserve.operator.releases import promotion

    with progress_bars() as progress:
        digest = promotion.export(what, source, file, progress)
    if as_json:
        print_json({"file": str(file), "digest": digest})
    else:
        click.echo(digest)


@click.command("import")
@click.argument("file", type=_PATH)
@click.option("--digest", required=True, metavar="SHA256", help="Of FILE, as `export` printed it.")
@_stacks(target="stack")
@_terms
@_no_preview
@json_option
def take_in(file: Path, digest: str, target: Stack, terms: Terms, no_preview: bool, as_json: bool) -> None:
    """Take in what `export` wrote, as `promote` does: the same checks, the same edit, the same record."""
    from loraserve.operator.releases import promotion

    with progress_bars() as progress:
        done = promotion.take_in(file, digest, target, terms, progress)
    _show_promotion(done, target, as_json)
    _preview(target, no_preview or as_json)


@click.command()
@click.argument("name")
@click.option(
    "--stack-file", type=_PATH, default=Path("Pulumi.prod.yaml"), show_default=True, help="That names both versions."
)
@click.option("--url", metavar="URL", help="Of Prometheus (default: the stack's, by `kubectl port-forward`).")
@click.option("--window", default="1h", show_default=True, metavar="RANGE", help="Of the 95th percentile of latency.")
@click.option(
    "--error-margin",
    default=0.01,
    show_default=True,
    metavar="SHARE",
    help="So many more requests may fail: 0.01 is 1%.",
)
@click.option("--latency-margin", default=0.1, show_default=True, metavar="SHARE", help="So much slower may they be.")
@click.option(
    "--bucket",
    "bucket_name",
    metavar="NAME",
    help="The stack's adapter bucket: judge the answers too, that tenants let be sampled.",
)
@click.option(
    "--evaluation",
    type=_PATH,
    metavar="FILE",
    help="Of `loraserve evaluate`: its patterns and JSON schemas say what form a sampled answer has.",
)
@click.option(
    "--quality-margin",
    default=0.02,
    show_default=True,
    metavar="SHARE",
    help="So many more sampled answers may have a fault.",
)
@context_option
@json_option
def canary(
    name: str,
    stack_file: Path,
    url: str | None,
    window: str,
    error_margin: float,
    latency_margin: float,
    bucket_name: str | None,
    evaluation: Path | None,
    quality_margin: float,
    context: str | None,
    as_json: bool,
) -> int:
    """Compare NAME's canary with its stable version: shares, errors, latency, quality; promote, wait, or roll back?

    Intervals are of callers, who are assigned to a version, not of requests. Exit code 0: promote; 3: roll back; 4: wait.
    """
    from loraserve.operator.access.prometheus import reached
    from loraserve.operator.releases import canary as canaries
    from loraserve.planning import stack_file as stack_files

    named = [entry for entry in stack_files.read(stack_file).adapters if entry.name == name]
    split = {entry.canary_percent is not None: entry.version for entry in named}
    if len(split) < 2:
        raise canaries.NotJudged(f"{stack_file} names no canary of {name}: `loraserve promote … --canary 10` makes one")
    with reached(url, context) as prometheus:
        stable, candidate = canaries.read(prometheus, name, split[False], split[True], window)
    margins = canaries.Margins(error_margin, latency_margin, quality_margin)
    sampled = _sampled(bucket_name, name, (stable.version, candidate.version), evaluation) if bucket_name else None
    found = canaries.judge(stable, candidate, margins, sampled)
    if as_json:
        print_json(found.plain())
    else:
        print_table(_canary_table(found))
        click.echo(f"{found.advice}: {found.reason}")
    return {canaries.Advice.PROMOTE: 0, canaries.Advice.ROLL_BACK: 3, canaries.Advice.WAIT: 4}[found.advice]


def _sampled(bucket: str, name: str, versions: tuple[str, str], evaluation: Path | None) -> tuple[Side, Side]:
    from loraserve.catalog import samples
    from loraserve.catalog.bucket import Bucket
    from loraserve.operator.releases import canary_samples

    found = samples.read(Bucket(bucket), name)
    return canary_samples.sides(name, found, versions, canary_samples.scorers_of(evaluation))


def _canary_table(found: Judgement) -> Table:
    stable, candidate = found.stable, found.canary
    rows = table("", f"stable {stable.version}", f"canary {candidate.version}", "difference, 95% interval")
    add_row(rows, "callers, at least", f"{stable.callers:,}", f"{candidate.callers:,}", "")
    shares = (
        f"{side.requests:,.0f} ({share:.1%})" for side, share in ((stable, 1 - found.share), (candidate, found.share))
    )
    add_row(rows, "requests", *shares, "")
    for label, what, difference in (("failed", "failures", found.errors), ("mean seconds", "seconds", found.latency)):
        form = "{:.2%}" if what == "failures" else "{:.2f}"
        means = (form.format(side.mean(what)) for side in (stable, candidate))
        add_row(rows, label, *means, _told(difference, form))
    if found.sampled:
        add_row(
            rows,
            "answers sampled",
            *(f"{side.requests:,.0f} of {side.callers:,} callers" for side in found.sampled),
            "",
        )
        means = (f"{side.mean('faults'):.2%}" for side in found.sampled)
        add_row(rows, "with a fault", *means, _told(found.quality, "{:.2%}"))
    slow = ("-" if side.p95_seconds is None else f"{side.p95_seconds:.2f}" for side in (stable, candidate))
    add_row(rows, "95th percentile", *slow, "not judged")
    return rows


def _told(difference: Difference | None, form: str) -> str:
    if not difference:
        return "too few callers"
    return "{}, {} to {}".format(*map(form.format, (difference.value, difference.low, difference.high)))


@click.group()
def release() -> None:
    """The program itself as it goes from stack to stack."""


@release.command("diff")
@click.option("--from", "source", required=True, metavar="STACK", help="What has run, such as dev.")
@click.option("--to", "target", metavar="STACK", help="Such as prod (default: this checkout, what `up` would deploy).")
@click.option("--from-profile", metavar="NAME", help="Of ~/.aws/config, for its state.")
@click.option("--to-profile", metavar="NAME", help="Likewise.")
@click.option("--project", type=_PATH, default=Path(), metavar="FOLDER", help="Of the program (default: here).")
@json_option
def release_diff(
    source: str, target: str | None, from_profile: str | None, to_profile: str | None, project: Path, as_json: bool
) -> int:
    """Name what differs between the programs that two stacks' last `up` was of.

    Commit, Kubernetes, vLLM, charts and images, from the outputs `release`. Without --to: whether this checkout is the
    program that has run there. Exit code 1: something differs.
    """
    from loraserve.operator.releases.release import differences, not_run

    if target is None:
        odd = not_run(Pulumi(project, source, from_profile))
        if as_json:
            print_json({"problem": odd})
        else:
            tell(f"{odd}: not what has run there." if odd else f"This checkout is the program that {source} runs.")
        return int(bool(odd))
    found = differences(Pulumi(project, source, from_profile), Pulumi(project, target, to_profile))
    if as_json:
        print_json({what: {source: one, target: other} for what, one, other in found})
    elif found:
        rows = table("what", source, target)
        for row in found:
            add_row(rows, *row)
        print_table(rows)
    else:
        tell(f"{target} runs what {source} runs.")
    return int(bool(found))


def _show_promotion(done: Promotion, target: Stack, as_json: bool) -> None:
    verdict = done.verdict
    if as_json:
        entry = plain(done.candidate.entry)
        print_json({"entry": entry, "verdict": plain(verdict), "replaced": done.replaced, "diff": done.edit.diff})
        return
    click.echo(done.edit.diff, nl=False)
    passed = (
        f"let through: {verdict.override.reason}" if verdict.override else f"evaluated {verdict.evaluated_at:%Y-%m-%d}"
    )
    changed = f"{target.file} names it" if done.edit.diff else f"{target.file} has named it before; nothing changes"
    tell(f"{done.candidate} ({passed}) is in s3://{target.bucket.name}; {changed}.")


def _preview(target: Stack, skipped: bool) -> None:
    if skipped:
        return
    if Pulumi.installed():
        target.pulumi.preview()
    else:
        tell(f"pulumi is not installed here: `pulumi preview --stack {target.name}` shows what this changes.")


def _tell_of_the_program(source: Stack, target: Stack) -> None:
    """An adapter goes alone; the program that it ran on may be another there."""
    from loraserve.operator.releases.release import differences, not_run

    try:
        odd, found = not_run(source.pulumi), differences(source.pulumi, target.pulumi)
    except PulumiFailed as error:
        tell(f"Whether {target.name} runs the program that {source.name} runs is not known: {error}")
        return
    if odd:
        tell(f"{odd}: `up` would deploy a program that has not run in {source.name}")
    if found:
        told = "; ".join(f"{what} {one} -> {other}" for what, one, other in found)
        tell(f"{target.name} runs another program than {source.name} does ({source.name} -> {target.name}): {told}")


COMMANDS = (promote, rollback, canary, export, take_in, release)
