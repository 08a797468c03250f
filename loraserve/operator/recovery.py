"""What a `pulumi up` that was killed left in AWS without a record of it.

The engine notes each creation before it asks for it, and the id once it has it. Killed in between, it leaves an object
that its state does not know: the next `up` makes a second one, or fails because the first is in the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from loraserve.errors import LoraserveError
from loraserve.operator.aws_objects import FINDERS, Connect, Found, InputMissing, Inputs, is_gone, recorded_id

REPEATABLE = frozenset(
    {
        "aws:autoscaling/tag:Tag",
        "aws:ecr/lifecyclePolicy:LifecyclePolicy",
        "aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
        "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
        "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        "aws:s3/bucketOwnershipControls:BucketOwnershipControls",
        "aws:s3/bucketPolicy:BucketPolicy",
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "aws:s3/bucketVersioning:BucketVersioning",
    }
)
"""Types whose creation sets something on another object: the next `up` does it again, to no other effect."""

_BY_HAND = "look for it in AWS by hand"


class RecoveryError(LoraserveError):
    """The state cannot be read, or AWS cannot be asked."""


@dataclass(frozen=True)
class Verdict:
    """What became of one creation that was under way."""

    name: str
    type: str
    text: str
    orphan: Found | None = None
    """The one object that fits and that the state does not know."""
    needs_a_person: bool = False


def recover(export: str, *, delete: bool) -> bool:
    """Prints what became of each pending creation of an exported state; deletes the orphans where asked to.

    Returns whether nothing is left to delete. Raises RecoveryError.
    """
    verdicts = examine(export)
    _print_table(verdicts)
    orphans = {(verdict.type, verdict.orphan.id): verdict.orphan for verdict in verdicts if verdict.orphan}
    if orphans and not delete:
        print("Nothing was deleted: to delete what was found, run this again with --yes.")
        return False
    deleted = [_deleted(orphan) for orphan in orphans.values()]
    return all(deleted) and not any(verdict.needs_a_person for verdict in verdicts)


def examine(export: str) -> list[Verdict]:
    """What became of each pending creation of an exported state. Raises RecoveryError."""
    deployment = _deployment(export)
    resources = deployment.get("resources") or []
    known = frozenset(recorded_id(resource) for resource in resources)
    connect_for = _connections(resources)
    pending = [item["resource"] for item in deployment.get("pending_operations") or [] if item["type"] == "creating"]
    with _explained():
        return [_examined(creation, known, connect_for) for creation in pending]


def _deployment(export: str) -> Mapping[str, Any]:
    try:
        return json.loads(export)["deployment"]
    except (ValueError, KeyError, TypeError):
        hint = "pipe it in: pulumi stack export --stack dev | python -m loraserve recover"
        raise RecoveryError(f"standard input holds no exported state: {hint}") from None


def _connections(resources: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], Connect]:
    """For a creation, the clients of its region, in an account that its stack allows."""
    providers = {item["urn"]: item.get("inputs", {}) for item in resources if item["type"] == "pulumi:providers:aws"}
    connected = cache(_connected)

    def connect_for(creation: Mapping[str, Any]) -> Connect:
        settings = providers.get(creation.get("provider", "").rpartition("::")[0], {})
        region = creation["inputs"].get("region") or settings.get("region")
        return connected(region, str(settings.get("allowedAccountIds", "")))

    return connect_for


def _connected(region: str | None, allowed_accounts: str) -> Connect:
    connect = partial(boto3.client, region_name=region)
    account = connect("sts").get_caller_identity()["Account"]
    if allowed_accounts and account not in allowed_accounts:
        hint = "use those of that `pulumi up` (AWS_PROFILE)"
        raise RecoveryError(f"this stack is for account {allowed_accounts}, your credentials are of {account}: {hint}")
    return connect


def _examined(
    creation: Mapping[str, Any], known: frozenset[str], connect_for: Callable[[Mapping[str, Any]], Connect]
) -> Verdict:
    name, kind = creation["urn"].rpartition("::")[2], creation["type"]
    if not kind.startswith("aws:") or kind in REPEATABLE:
        return Verdict(name, kind, "needs nothing: the next up repeats it")
    if kind not in FINDERS:
        return Verdict(name, kind, f"a type not known here: {_BY_HAND}", needs_a_person=True)
    try:
        orphans = _orphans(kind, connect_for(creation), Inputs(creation["inputs"]), known)
    except InputMissing as missing:
        return Verdict(name, kind, f"no {missing} recorded to know it by: {_BY_HAND}", needs_a_person=True)
    if len(orphans) > 1:
        twins = ", ".join(orphan.id for orphan in orphans)
        return Verdict(name, kind, f"left alone, cannot be told apart: {twins}; delete by hand", needs_a_person=True)
    if orphans:
        return Verdict(name, kind, "will be deleted", orphans[0])
    return Verdict(name, kind, "nothing in AWS that the state does not know")


def _orphans(kind: str, connect: Connect, wanted: Inputs, known: frozenset[str]) -> list[Found]:
    try:
        fitting = list(FINDERS[kind](connect, wanted))
    except ClientError as error:
        if is_gone(error):
            return []
        raise
    tags = wanted.every_tag.items()
    return [found for found in fitting if found.id not in known and tags <= found.tags.items()]


def _print_table(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        print("No creation was under way: there is nothing to recover.")
        return
    rows = [("RESOURCE", "TYPE", "AWS ID", "")]
    rows += [(item.name, item.type, item.orphan.id if item.orphan else "-", item.text) for item in verdicts]
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for *cells, text in rows:
        aligned = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        print("  ".join([*aligned, text]).rstrip())


def _deleted(orphan: Found) -> bool:
    print(f"deleting {orphan.id}, and waiting until it is gone", flush=True)
    try:
        orphan.delete()
    except (BotoCoreError, ClientError) as error:
        print(f"not deleted: {error}; {_BY_HAND}")
        return False
    return True


@contextmanager
def _explained() -> Iterator[None]:
    """Turns AWS's errors into one that says what to do."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        hint = "use the credentials of that `pulumi up` (AWS_PROFILE), and set AWS_REGION where the state has none"
        raise RecoveryError(f"AWS cannot be asked: {error}; {hint}") from error
