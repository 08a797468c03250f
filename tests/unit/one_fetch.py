"""What the process does that the tests kill; a module of its own, so that it starts quickly."""

from multiprocessing.synchronize import Event
from pathlib import Path

from loraserve.catalog import adapters
from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import Adapter


def fetch(adapter: Adapter, bucket: str, disk: Path, begun: Event) -> None:
    opened = Bucket(bucket, pause_seconds=0)
    begun.set()
    adapters.fetch(opened, adapter, disk)
