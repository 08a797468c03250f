"""Samples of answers in the bucket: samples/{day}/{gateway process}/{sequence}.jsonl, written once each, gone in a week."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial

from loraserve.catalog.bucket import Bucket
from loraserve.contract.addresses import SAMPLE_PREFIX
from loraserve.contract.samples import Sample

MAX_BYTES = 32 << 20
_READ_AT_ONCE = 8


def write(bucket: Bucket, day: date, process: str, sequence: int, lines: Iterable[str]) -> None:
    """Each line is a Sample. Raises CatalogUnavailable."""
    key = f"{SAMPLE_PREFIX}/{day.isoformat()}/{process}/{sequence:08}.jsonl"
    bucket.add(key, "".join(f"{line}\n" for line in lines).encode())


def read(bucket: Bucket, model: str) -> Iterator[Sample]:
    """All that there are of a model. Raises CatalogUnavailable, InvalidSample."""
    keys = sorted(item["Key"] for item in bucket.objects(f"{SAMPLE_PREFIX}/"))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for content in pool.map(partial(bucket.read, max_bytes=MAX_BYTES), keys):
            found = (Sample.parse(line) for line in content.split(b"\n") if line)
            yield from (sample for sample in found if sample.model == model)
