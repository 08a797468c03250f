"""The verdicts of evaluations in the bucket: added to, never changed; each lies under the digest of its own bytes.

evaluations/{adapter name}/{version}/{digest of the verdict}.json
"""

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.files import digest_of
from loraserve.contract.evaluation import InvalidVerdict, Verdict, verdict_key, verdict_prefix
from loraserve.contract.served_name import ServedName

MAX_VERDICT_BYTES = 64 << 10


def write_verdict(bucket: Bucket, verdict: Verdict) -> str:
    """Its key. Writing it again changes nothing. Raises CatalogUnavailable, also where this role may not write here."""
    content = verdict.to_json()
    key = verdict_key(verdict.candidate.name, verdict.candidate.version, digest_of(content))
    bucket.create(key, content)
    return key


def read_verdicts(bucket: Bucket, name: str, version: str) -> list[Verdict]:
    """All of one version, the newest last. Raises InvalidVerdict, CatalogUnavailable."""
    keys = [item["Key"] for item in bucket.objects(verdict_prefix(name, version))]
    return sorted((_read(bucket, name, version, key) for key in keys), key=lambda verdict: verdict.evaluated_at)


def last_verdict(
    bucket: Bucket, name: str, version: str, known: tuple[str, Verdict] | None = None
) -> tuple[str, Verdict] | None:
    """The key and the verdict that were written last; `known`, as returned before, is not read again.

    Raises InvalidVerdict, CatalogUnavailable.
    """
    items = list(bucket.objects(verdict_prefix(name, version)))
    last = max((item["LastModified"] for item in items), default=None)
    keys = [item["Key"] for item in items if item["LastModified"] == last]  # S3 tells whole seconds
    if known and keys == [known[0]]:
        return known
    found = [(key, _read(bucket, name, version, key)) for key in keys]
    return max(found, key=lambda pair: pair[1].evaluated_at, default=None)


def _read(bucket: Bucket, name: str, version: str, key: str) -> Verdict:
    content = bucket.read(key, MAX_VERDICT_BYTES)
    try:
        verdict = Verdict.parse(content)
    except InvalidVerdict as error:
        raise InvalidVerdict(f"{bucket.url(key)}: {error}") from None
    if key != verdict_key(verdict.candidate.name, verdict.candidate.version, digest_of(content)):
        raise InvalidVerdict(
            f"{bucket.url(key)} is no verdict that `loraserve evaluate` wrote on {ServedName.of(name, version)}: find out who did with "
            "evaluatorRole, and publish these bytes as another version"
        )
    return verdict
