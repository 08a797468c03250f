"""Kubernetes events about quarantined adapters, so that `kubectl describe pod` and `kubectl get events` show them."""

import asyncio
import hashlib
import logging
import queue
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loraserve.kubernetes import KubernetesApi
from loraserve.log import event

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
MOST_TOLD = 1000
LONGEST_NOTE = 1000
"""The API refuses notes of more than 1,024 bytes."""


@dataclass(frozen=True)
class PodReference:
    """The pod that events are about."""

    name: str
    namespace: str
    uid: str


class Events:
    """Written in the background and once per version and cause, however often the agent tries again or restarts."""

    def __init__(self, api: KubernetesApi, pod: PodReference) -> None:
        self._api = api
        self._pod = pod
        self._told: set[str] = set()
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._send, name="events", daemon=True)
        """Must not end."""
        self.thread.start()

    def quarantined(self, adapter: str, cause: str, reason: str) -> None:
        name = _name(self._pod, adapter, cause)
        if name not in self._told:
            if len(self._told) >= MOST_TOLD:  # the API server still knows them, and takes none twice
                self._told.clear()
            self._told.add(name)
            self._waiting.put(_warning(self._pod, name, f"{adapter}: {reason}"))

    def _send(self) -> None:
        problem = None
        while True:
            body = self._waiting.get()
            try:
                asyncio.run(self._api.create_event(self._pod.namespace, body))
            except Exception as error:
                if str(error) != problem:
                    problem = str(error)
                    log.warning(event("events wait", note=body["note"], reason=problem))
                self._waiting.put(body)
                time.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))
            else:
                problem = None


def _name(pod: PodReference, adapter: str, cause: str) -> str:
    digest = hashlib.sha256(f"{pod.uid} {adapter} {cause}".encode()).hexdigest()
    return f"{pod.name}.{digest[:16]}"


def _warning(pod: PodReference, name: str, note: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": pod.namespace},
        "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingController": "loraserve-agent",
        "reportingInstance": pod.name[:128],
        "regarding": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
        },
        "type": "Warning",
        "reason": "AdapterQuarantined",
        "action": "Quarantine",
        "note": note.encode()[:LONGEST_NOTE].decode(errors="ignore"),
    }
