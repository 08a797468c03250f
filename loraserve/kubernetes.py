"""The little of the Kubernetes API that the servers use: follow the objects of one namespace, and create events."""

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from loraserve.contract.environment import KubernetesSettings
from loraserve.errors import LoraserveError
from loraserve.log import event

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
WATCH_SECONDS = 30
"""The API server ends a watch after this time, and the next one goes on from there: a dead connection is noticed."""
_PAUSE_SECONDS = 0.1
"""Between two watches: a server that ends them at once is not kept busy."""
_ANSWER = aiohttp.ClientTimeout(total=10)
_WATCH = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 10)
_LARGEST_EVENT = 8 << 20

Manifest = dict[str, Any]
OnChange = Callable[[list[Manifest]], object]
"""Called with every object of the collection, after the first list and after each change."""


class KubernetesUnavailable(LoraserveError):
    """The Kubernetes API does not answer, or refuses."""

    transient = True


class AlreadyExists(KubernetesUnavailable):
    """An object of that name was created before."""


@dataclass(frozen=True)
class Collection:
    """Objects of one kind that match a selector, such as `labelSelector` and `app=vllm`."""

    path: str
    selector: tuple[str, str]


def config_map(namespace: str, name: str) -> Collection:
    return Collection(f"/api/v1/namespaces/{namespace}/configmaps", ("fieldSelector", f"metadata.name={name}"))


def endpoint_slices(namespace: str, service: str) -> Collection:
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    return Collection(path, ("labelSelector", f"kubernetes.io/service-name={service}"))


class KubernetesApi:
    """The API server as the pod's service account sees it. Safe to share by threads."""

    def __init__(self, settings: KubernetesSettings) -> None:
        """Raises KubernetesUnavailable where the credentials cannot be used."""
        self._url = settings.url.rstrip("/")
        self._folder = settings.credentials
        self._credentials()

    async def follow(
        self, collection: Collection, on_change: OnChange, on_loss: Callable[[], object] = lambda: None
    ) -> None:
        """Runs until it is cancelled. While the API server is away, what was seen last stays in force.

        `on_loss` is called whenever changes are no longer seen at once, until `on_change` is again.
        """
        problem = None
        while True:
            try:
                async for objects in self._snapshots(collection):
                    problem = None
                    on_change(objects)
            except KubernetesUnavailable as error:
                if problem != (problem := str(error)):
                    log.warning(event("not followed for now", path=collection.path, problem=problem))
            except Exception:
                log.exception(event("watch failed", path=collection.path))
            on_loss()
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))

    async def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """One that exists by that name already is left as it is. Raises KubernetesUnavailable."""
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        with contextlib.suppress(AlreadyExists):
            async with self._ask("POST", path, _ANSWER, json=body):
                pass

    async def _snapshots(self, collection: Collection) -> AsyncIterator[list[Manifest]]:
        """The objects as they are, then after every change. Raises KubernetesUnavailable."""
        async with self._ask("GET", collection.path, _ANSWER, params=[collection.selector]) as answer:
            listed = await answer.json(content_type=None)
        objects = {_name(manifest): manifest for manifest in listed["items"]}
        version = listed["metadata"]["resourceVersion"]
        yield list(objects.values())
        while True:
            async for change in self._watch(collection, version):
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] != "BOOKMARK":
                    _apply(objects, change)
                    yield list(objects.values())
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _watch(self, collection: Collection, version: str) -> AsyncIterator[Manifest]:
        """What changed since that version."""
        watch = {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_SECONDS)}
        params = [collection.selector, *watch.items(), ("resourceVersion", version)]
        async with self._ask("GET", collection.path, _WATCH, params=params) as answer:
            async for line in answer.content:
                change = json.loads(line)
                if change["type"] == "ERROR":  # such as a version too old to go on from
                    raise KubernetesUnavailable(f"the watch ended: {change['object'].get('message')}")
                yield change

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, timeout: aiohttp.ClientTimeout, **request: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers, context = self._credentials()
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=_LARGEST_EVENT) as http,
                http.request(method, self._url + path, ssl=context, **request) as response,
            ):
                if response.status == 409:
                    raise AlreadyExists(await response.text())
                if not response.ok:
                    text = (await response.text())[:500]
                    raise KubernetesUnavailable(f"the Kubernetes API answered {path} with {response.status}: {text}")
                yield response
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            cause = getattr(error, "os_error", error)  # aiohttp's own words name the SSL context, each time another one
            problem = str(cause) or type(cause).__name__
            raise KubernetesUnavailable(f"the Kubernetes API does not answer {path}: {problem}") from error

    def _credentials(self) -> tuple[dict[str, str], ssl.SSLContext | bool]:
        """Read for every request, since both are renewed on disk."""
        try:
            token = (self._folder / "token").read_text().strip()
            secure = self._url.startswith("https:")
            context = ssl.create_default_context(cafile=self._folder / "ca.crt") if secure else True
        except OSError as error:
            raise KubernetesUnavailable(
                f"{self._folder} holds no usable token and ca.crt: {error}; KUBERNETES_CREDENTIALS names another folder"
            ) from error
        return {"Authorization": f"Bearer {token}"}, context


def _name(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]


def _apply(objects: dict[str, Manifest], change: Manifest) -> None:
    if change["type"] == "DELETED":
        objects.pop(_name(change["object"]), None)
    else:
        objects[_name(change["object"])] = change["object"]
