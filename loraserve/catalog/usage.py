"""The usage ledger in the bucket: usage/{day}/{process}/{sequence}.json, written once each and never again.

A gateway process writes all that it has counted on a day, over and over, so that the last object of each process counts and the
others need not be read. What a process that was killed had counted since is lost.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial

from loraserve.catalog.bucket import Bucket
from loraserve.contract.addresses import USAGE_PREFIX
from loraserve.contract.usage import UsageDay, Used

MAX_BYTES = 16 << 20
_READ_AT_ONCE = 8


def write(bucket: Bucket, day: date, process: str, sequence: int, used: Iterable[Used]) -> None:
    """Raises CatalogUnavailable."""
    key = f"{USAGE_PREFIX}/{day.isoformat()}/{process}/{sequence:08}.json"
    bucket.add(key, UsageDay(used=tuple(used)).to_json().encode())


def last_of_each_process(bucket: Bucket, day: date) -> dict[str, str]:
    """Keys by process. Raises CatalogUnavailable."""
    return {key.split("/")[2]: key for key in _last(bucket, day.isoformat())}


def read(bucket: Bucket, key: str) -> tuple[Used, ...]:
    """Raises ObjectMissing, CatalogUnavailable, InvalidUsage."""
    return UsageDay.parse(bucket.read(key, MAX_BYTES)).used


def read_month(bucket: Bucket, month: date) -> list[tuple[date, Used]]:
    """Of all processes and days of the month that this day lies in. Raises CatalogUnavailable, InvalidUsage."""
    keys = _last(bucket, f"{month:%Y-%m}")
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = pool.map(partial(read, bucket), keys)
        return [
            (date.fromisoformat(key.split("/")[1]), used)
            for key, of_process in zip(keys, found, strict=True)
            for used in of_process
        ]


def _last(bucket: Bucket, days: str) -> list[str]:
    """The key that counts, for each day of those that begin so, and each process."""
    keys = sorted(item["Key"] for item in bucket.objects(f"{USAGE_PREFIX}/{days}"))
    return list({key.rpartition("/")[0]: key for key in keys}.values())


def days_of(month: date) -> list[date]:
    """Those of the month that this day lies in."""
    first = month.replace(day=1)
    days = [first + timedelta(days=number) for number in range(31)]
    return [day for day in days if day.month == first.month]
