"""Follows objects of one namespace through the Kubernetes API: list, then watch, for ever."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from loraserve.log import event

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
WATCH_SECONDS = 30
"""The API server ends a watch after this time, so that a dead connection is noticed."""
_ANSWER = aiohttp.ClientTimeout(total=10)
_WATCH = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 10)
_LARGEST_EVENT = 8 << 20

Manifest = dict[str, Any]
OnChange = Callable[[list[Manifest]], None]
"""Called with every object of the collection, after the first list and after each change."""


@dataclass(frozen=True)
class Collection:
    """Objects of one kind that match a selector, such as `labelSelector=app=vllm`."""

    path: str
    selector: tuple[str, str]


def config_map(namespace: str, name: str) -> Collection:
    return Collection(f"/api/v1/namespaces/{namespace}/configmaps", ("fieldSelector", f"metadata.name={name}"))


def endpoint_slices(namespace: str, service: str) -> Collection:
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    return Collection(path, ("labelSelector", f"kubernetes.io/service-name={service}"))


class KubernetesApi:
    """The API server as the pod's service account sees it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, credentials: Path) -> None:
        """`credentials` is the folder of `token` and `ca.crt`. Raises OSError."""
        self._http = http
        self._url = url.rstrip("/")
        self._token_file = credentials / "token"
        self._ssl: ssl.SSLContext | bool = (
            ssl.create_default_context(cafile=credentials / "ca.crt") if url.startswith("https:") else True
        )

    async def follow(self, collection: Collection, on_change: OnChange) -> None:
        """Runs until it is cancelled. While the API server is away, what was seen last stays in force."""
        problem = None
        while True:
            try:
                objects, version = await self._list(collection)
                problem = None
                on_change(list(objects.values()))
                async for change in self._watch(collection, version):
                    _apply(objects, change)
                    on_change(list(objects.values()))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                if problem != (problem := str(error) or type(error).__name__):
                    log.warning(event("not followed for now", path=collection.path, problem=problem))
                await asyncio.sleep(RETRY_SECONDS)

    async def _list(self, collection: Collection) -> tuple[dict[str, Manifest], str]:
        async with self._get(collection, {}, _ANSWER) as response:
            answer = await response.json()
        return {_name(manifest): manifest for manifest in answer["items"]}, answer["metadata"]["resourceVersion"]

    async def _watch(self, collection: Collection, version: str) -> AsyncIterator[Manifest]:
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        async with self._get(collection, query, _WATCH) as response:
            async for line in response.content:
                change = json.loads(line)
                if change["type"] == "ERROR":  # such as a version too old to go on from
                    raise ValueError(change["object"].get("message"))
                yield change

    def _get(self, collection: Collection, query: dict[str, str], timeout: aiohttp.ClientTimeout) -> Any:
        return self._http.get(
            self._url + collection.path,
            params=dict([collection.selector]) | query,
            headers={"Authorization": f"Bearer {self._token_file.read_text().strip()}"},  # it is renewed on disk
            ssl=self._ssl,
            timeout=timeout,
            raise_for_status=True,
            read_bufsize=_LARGEST_EVENT,
        )


def _name(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]


def _apply(objects: dict[str, Manifest], change: Manifest) -> None:
    if change["type"] == "DELETED":
        objects.pop(_name(change["object"]), None)
    else:
        objects[_name(change["object"])] = change["object"]
