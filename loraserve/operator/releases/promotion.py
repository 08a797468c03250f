"""From one stack to another: only bytes that were evaluated, and a diff that a person reviews."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from loraserve.catalog import bundle as bundles
from loraserve.catalog import lineage, listing
from loraserve.catalog.bucket import Bucket
from loraserve.catalog.bundle import Bundle, Candidate
from loraserve.catalog.files import OnProgress, digest_of
from loraserve.catalog.gate import inspect
from loraserve.catalog.manifest import AdapterManifest, Manifest
from loraserve.contract.evaluation import BaseIdentity, Verdict
from loraserve.contract.served_name import ServedName
from loraserve.errors import LoraserveError
from loraserve.operator.access.pulumi import Pulumi
from loraserve.planning import stack_file, stack_file_edit
from loraserve.planning.stack_file_edit import Edit
from loraserve.planning.stack_settings import Settings


class NotPromoted(LoraserveError):
    """The version may not go there; the message says why and what to do."""


@dataclass(frozen=True)
class Stack:
    """A stack as a promotion needs it."""

    pulumi: Pulumi
    file: Path
    settings: Settings
    bucket: Bucket
    connection: dict[str, Any]
    """Region and profile of the bucket."""
    evaluator_role: str | None = None
    """Which alone may write evaluations into it; None: not known."""

    @property
    def name(self) -> str:
        return self.pulumi.stack

    @classmethod
    def open(cls, pulumi: Pulumi, bucket_name: str | None) -> Stack:
        """Its bucket is the stack's own, unless one is named.

        Raises InvalidSettings, PulumiFailed, NotPromoted (credentials of another account), CatalogUnavailable.
        """
        file = pulumi.folder / f"Pulumi.{pulumi.stack}.yaml"
        settings, config = stack_file.read(file), stack_file.config_of(file)
        outputs = {} if bucket_name else pulumi.outputs()
        name = bucket_name or outputs.get("adapterBucket")
        if not name:
            raise NotPromoted(f"stack {pulumi.stack} has no bucket yet: `pulumi up --stack {pulumi.stack}` makes it")
        connection: dict[str, Any] = {
            "region": config.get("aws:region"),
            "profile": pulumi.profile or config.get("aws:profile"),
        }
        bucket = Bucket(name, **connection)
        account, allowed = bucket.principal().split(":")[4], config.get("aws:allowedAccountIds")
        if allowed and account not in map(str, allowed):
            raise NotPromoted(
                f"these credentials are of account {account}, {file} allows {', '.join(map(str, allowed))}: "
                "name a profile of that account"
            )
        return cls(pulumi, file, settings, bucket, connection, outputs.get("evaluatorRole"))

    def named(self, name: str) -> list[Candidate]:
        """What the stack file says of this name: a stable version and a canary, or the mirrored base model."""
        if name == self.settings.base_model:
            mirror = self.settings.base_model_mirror
            return [Candidate(model=name, mirror=mirror)] if mirror else []
        entries = sorted(self.settings.adapters, key=lambda entry: entry.canary_percent is not None)
        return [Candidate(adapter=entry) for entry in entries if entry.name == name]

    def find(self, what: str) -> Candidate:
        """`faq@v3`, where this stack has it. Raises NotPromoted."""
        asked = ServedName(what)
        if not asked.adapter or not asked.version:
            raise NotPromoted(f"{what!r} names no version: say it as faq@v3")
        known = self.named(asked.adapter)
        for candidate in known:
            if candidate.entry.version == asked.version:
                return candidate
        there = ", ".join(each.entry.version for each in known) or "none"
        raise NotPromoted(
            f"{self.file} names no {what} (of {asked.adapter} it has: {there}): what is promoted has run in {self.name}"
        )

    def fits(self, manifest: Manifest, folder: Path) -> None:
        """Raises UnsafeFile: an adapter that this stack's base model cannot take."""
        if isinstance(manifest, AdapterManifest):
            inspect(folder, self.settings.base)


@dataclass(frozen=True)
class Terms:
    max_age: timedelta
    """An older evaluation does not count."""
    canary: int | None = None
    """The share of callers, where the version is to be a canary first."""
    evaluator_role: str | None = None
    """Writes the evaluations into the target's bucket, instead of the role that the stack names."""


@dataclass(frozen=True)
class Promotion:
    candidate: Candidate
    verdict: Verdict
    edit: Edit
    replaced: str | None


def promote(what: str, source: Stack, target: Stack, terms: Terms, progress: OnProgress) -> Promotion:
    """Copies a version and names it in the target's stack file. Nothing is changed where anything is wrong.

    Raises NotPromoted, and what reading, checking and writing a version does.
    """
    candidate = source.find(what)
    verdicts = bundles.verdicts_of(source.bucket, candidate)
    judge(candidate, verdicts, target, terms, source.bucket.url(""))
    with tempfile.TemporaryDirectory(prefix="loraserve-") as folder:
        bundle = bundles.collect(source.bucket, candidate, verdicts, Path(folder), target.fits, progress)
        return _admit(bundle, source.name, target, terms, source.bucket.url(""), progress)


def export(what: str, source: Stack, file: Path, progress: OnProgress) -> str:
    """Writes a version and all that is known of it as one file; returns the file's digest."""
    candidate = source.find(what)
    with tempfile.TemporaryDirectory(prefix="loraserve-") as folder:
        verdicts = bundles.verdicts_of(source.bucket, candidate)
        bundle = bundles.collect(source.bucket, candidate, verdicts, Path(folder), source.fits, progress)
        return bundle.pack(file)


def take_in(file: Path, digest: str, target: Stack, terms: Terms, progress: OnProgress) -> Promotion:
    """What `promote` does, from an exported file instead of another stack's bucket."""
    with tempfile.TemporaryDirectory(prefix="loraserve-") as folder:
        bundle = bundles.unpack(file, digest, Path(folder), target.fits)
        return _admit(bundle, None, target, terms, str(file), progress)


def _admit(
    bundle: Bundle, source: str | None, target: Stack, terms: Terms, where: str, progress: OnProgress
) -> Promotion:
    candidate = bundle.candidate
    verdict = judge(candidate, bundle.verdicts, target, terms, where)
    edit = _edit(target, candidate, terms.canary)
    standing = target.named(candidate.name)
    replaced = standing[0].entry.version if standing and terms.canary is None else None
    role = terms.evaluator_role or target.evaluator_role
    evaluator = Bucket(target.bucket.name, **target.connection, role=role) if role else target.bucket
    bundle.deliver(target.bucket, evaluator, progress)
    if edit.diff:
        lineage.record(
            target.bucket,
            candidate.id,
            "promoted",
            candidate.entry.digest,
            evaluations=(digest_of(verdict.to_json()),),
            from_stack=source,
            to_stack=target.name,
            replaced=replaced,
            reason=verdict.override and verdict.override.reason,
        )
        edit.write()
    return Promotion(candidate, verdict, edit, replaced)


def _edit(target: Stack, candidate: Candidate, canary: int | None) -> Edit:
    if candidate.adapter:
        entry = candidate.adapter.version_pin().model_copy(update={"canary_percent": canary})
        return stack_file_edit.with_adapter(target.file, entry)
    if canary is not None:
        raise NotPromoted(f"{candidate} is a whole model: a pod serves one, so it can be no canary")
    assert candidate.mirror
    return stack_file_edit.with_mirror(target.file, candidate.name, candidate.mirror)


def judge(candidate: Candidate, verdicts: tuple[Verdict, ...], target: Stack, terms: Terms, where: str) -> Verdict:
    """The newest verdict that speaks of these bytes on the target's base; it has to let them through.

    Raises NotPromoted.
    """
    again = "`loraserve evaluate` it"
    if not verdicts:
        raise NotPromoted(f"{candidate} has no evaluation in {where}: {again} first")
    of_bytes = [each for each in verdicts if each.candidate.digest == candidate.entry.digest]
    if not of_bytes:
        raise NotPromoted(
            f"the evaluation of {candidate} is of other bytes ({verdicts[-1].candidate.digest}), "
            f"the version has {candidate.entry.digest}: {again} again"
        )
    # A whole model is its own base.
    on_base = [each for each in of_bytes if candidate.mirror or _is_base(each.base, target.settings.base_identity)]
    if not on_base:
        raise NotPromoted(
            f"{candidate} was evaluated on {_spelt(of_bytes[-1].base)}, {target.name} serves "
            f"{_spelt(target.settings.base_identity)}: {again} on that"
        )
    verdict = on_base[-1]
    age = datetime.now(UTC) - verdict.evaluated_at
    if age > terms.max_age or age < -timedelta(hours=1):
        raise NotPromoted(
            f"the evaluation of {candidate} is of {verdict.evaluated_at:%Y-%m-%d}, and counts for "
            f"{terms.max_age.days} days: {again} again"
        )
    _check_against_production(candidate, verdict, target)
    if not verdict.allows_release:
        low, high = verdict.primary.interval
        raise NotPromoted(
            f"{candidate} did not pass its evaluation ({verdict.result}): {verdict.primary_score} "
            f"{verdict.primary.candidate_score:.3f} against {verdict.primary.score:.3f}, difference {low:+.3f} to "
            f"{high:+.3f}, at most -{verdict.margin:g} is allowed; `loraserve evaluate --override REASON "
            "--record` lets it through"
        )
    return verdict


def _check_against_production(candidate: Candidate, verdict: Verdict, target: Stack) -> None:
    """What production serves by now is what the version was compared with. Raises NotPromoted."""
    standing = [each.entry for each in target.named(candidate.name)[:1]]
    if target.settings.environment != "production" or candidate.mirror or not standing:
        return
    against = verdict.primary.against
    if standing[0].digest not in (candidate.entry.digest, against and against.digest):
        told = str(against) if against else "the base model"
        raise NotPromoted(
            f"{candidate} was compared with {told}, {target.name} serves {ServedName.of(candidate.name, standing[0].version)} by now: "
            "`loraserve evaluate` it against that"
        )


def _is_base(evaluated: BaseIdentity, served: BaseIdentity) -> bool:
    """Whether both are known to be the same weights: by their mirror, or else by a revision of the hub."""
    if evaluated.name != served.name:
        return False
    if evaluated.mirror and served.mirror:
        return evaluated.mirror == served.mirror
    return evaluated.revision is not None and evaluated.revision == served.revision


def _spelt(base: BaseIdentity) -> str:
    pin = f"mirror {base.mirror}" if base.mirror else f"revision {base.revision}"
    return f"{base.name} ({pin})"


@dataclass(frozen=True)
class Rollback:
    left: Candidate
    restored: Candidate
    edit: Edit


def rollback(name: str, target: Stack, version: str | None, reason: str | None, progress: OnProgress) -> Rollback:
    """Takes a canary away, or brings the version back that the last promotion replaced, or the one that is named.

    Its bytes are read again first; no evaluation is asked for. Raises NotPromoted, Damaged, ObjectMissing.
    """
    standing = target.named(name)
    if not standing:
        raise NotPromoted(f"{target.file} names no {name}")
    if len(standing) > 1 and version is None:
        restored, left = standing
        edit = stack_file_edit.without_canary(target.file, name)
    else:
        left = standing[0]
        restored = _published(target, left, version or _version_before(target, left), progress)
        edit = _edit(target, restored, None)
    if edit.diff:
        digest, restored_version = left.entry.digest, restored.entry.version
        lineage.record(
            target.bucket, left.id, "rolledBack", digest, to_stack=target.name, restored=restored_version, reason=reason
        )
        edit.write()
    return Rollback(left, restored, edit)


def _version_before(target: Stack, current: Candidate) -> str:
    for record in reversed(lineage.read(target.bucket, current.id)):
        if record.event == "promoted" and record.to_stack == target.name and record.replaced:
            return record.replaced
    raise NotPromoted(
        f"no promotion to {target.name} says what {current} has replaced: name it with --version "
        f"(`loraserve list {current.id.model} --bucket {target.bucket.name}`)"
    )


def _published(target: Stack, current: Candidate, version: str, progress: OnProgress) -> Candidate:
    """A version of the same model in the target's bucket, read again whole."""
    found = listing.find(target.bucket, current.id.model, version)
    listing.verify(target.bucket, found, progress)
    manifest, digest = listing.read_manifest(target.bucket, found.id)
    known = {record.digest for record in lineage.read(target.bucket, found.id)}
    if known and digest not in known:
        raise NotPromoted(f"{target.bucket.url(found.id.key())} holds other bytes than its lineage tells of")
    if isinstance(manifest, AdapterManifest):
        return Candidate(adapter=manifest.entry(current.name, found.id.model, version, digest))
    return Candidate(model=current.name, mirror=manifest.entry(digest))
