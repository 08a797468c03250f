"""What the process does that the tests kill; a module of its own, so that it starts quickly."""

from multiprocessing.synchronize import Event
from pathlib import Path

from loraserve.catalog.adapters import Catalog
from loraserve.contract.desired_state import Adapter


def fetch(adapter: Adapter, bucket: str, disk: Path, begun: Event) -> None:
    catalog = Catalog(bucket, pause_seconds=0)
    begun.set()
    catalog.fetch(adapter, disk)
