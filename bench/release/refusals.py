"""What blocks a promotion, done to the bucket of dev and the file of prod by somebody who may do everything; each is undone by the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import yaml

from bench.release.stacks import Served
from loraserve.catalog.files import digest_of
from loraserve.catalog.gate import WEIGHTS_FILE
from loraserve.contract.addresses import ADAPTER_PREFIX, version_key
from loraserve.contract.evaluation import EvaluatedVersion, Verdict, verdict_key, verdict_prefix

_NOBODY = "sha256:" + "0" * 64
_DAYS = 40


def refused(dev: Served, prod: Served, name: str, promote: Callable[[str], None]) -> None:
    """`promote` is told what was done, and expects a refusal; `name` is an adapter whose v1 may go to prod."""
    s3, prefix = dev.cloud.client("s3"), verdict_prefix(name, "v1")
    with _another_base(prod):
        promote("prod serves another revision of the base")
    dev.cloud.enforce_iam(False)
    policy = s3.get_bucket_policy(Bucket=dev.bucket)["Policy"]
    s3.delete_bucket_policy(Bucket=dev.bucket)  # which lets nobody take anything away
    [*_, passed] = [Verdict.parse(each) for each in _take_away(s3, dev.bucket, prefix)]
    promote("without an evaluation")
    old = passed.model_copy(update={"evaluated_at": passed.evaluated_at - timedelta(days=_DAYS)})
    foreign = EvaluatedVersion(name=name, version="v1", digest=_NOBODY)
    for what, verdict in (
        (f"evaluated {_DAYS} days ago", old),
        ("with an evaluation of other bytes", passed.model_copy(update={"candidate": foreign})),
    ):
        content = verdict.to_json()
        _put(s3, dev.bucket, verdict_key(name, "v1", digest_of(content)), content)
        promote(what)
        _take_away(s3, dev.bucket, prefix)
    _put(s3, dev.bucket, verdict_key(name, "v1", _NOBODY), passed.to_json())
    promote("with a forged evaluation")
    _take_away(s3, dev.bucket, prefix)
    _put(s3, dev.bucket, verdict_key(name, "v1", digest_of(passed.to_json())), passed.to_json())
    weights = version_key(ADAPTER_PREFIX, name, "v1", WEIGHTS_FILE)
    content = s3.get_object(Bucket=dev.bucket, Key=weights)["Body"].read()
    _put(s3, dev.bucket, weights, content[:-1] + bytes([content[-1] ^ 1]))
    promote("one bit of its weights turned in the bucket")
    s3.put_bucket_policy(Bucket=dev.bucket, Policy=policy)
    dev.cloud.enforce_iam()


@contextmanager
def _another_base(prod: Served) -> Iterator[None]:
    before = prod.file.read_text()
    mirror = yaml.safe_load(before)["config"]["loraserve:baseModelMirror"]
    prod.set("baseModelMirror", mirror | {"version": "v2", "digest": _NOBODY})
    yield
    prod.file.write_text(before)


def _take_away(s3: Any, bucket: str, prefix: str) -> list[bytes]:
    """What was there, the newest last."""
    items = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    found = []
    for item in sorted(items, key=lambda item: item["LastModified"]):
        found.append(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
        s3.delete_object(Bucket=bucket, Key=item["Key"])
    return found


def _put(s3: Any, bucket: str, key: str, content: bytes) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=content)
