"""The last verdict of each declared version, from the bucket, as metrics: whoever evaluates, it is exported here."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from loraserve.catalog.bucket import Bucket
from loraserve.catalog.evaluations import last_verdict
from loraserve.contract.evaluation import Verdict
from loraserve.errors import LoraserveError
from loraserve.gateway.metrics import Metrics
from loraserve.log import event

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 600.0


class Verdicts:
    """S3 is read in threads; what cannot be read keeps its last value."""

    def __init__(self, bucket: Bucket, metrics: Metrics, versions: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        """`versions`: the declared ones of each model."""
        self._bucket = bucket
        self._metrics = metrics
        self._versions = versions
        self._read: dict[tuple[str, str], tuple[str, Verdict] | None] = {}

    async def follow(self) -> None:
        """For ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def refresh(self) -> None:
        declared = [(model, version) for model, versions in self._versions().items() for version in versions]
        self._read = {pair: self._read.get(pair) for pair in declared}
        for pair in declared:
            try:
                self._read[pair] = await asyncio.to_thread(last_verdict, self._bucket, *pair, self._read[pair])
            except LoraserveError as error:
                log.error(event("verdict cannot be read", model=pair[0], version=pair[1], problem=error))
        self._metrics.evaluations.take({pair: found[1] for pair, found in self._read.items() if found})
