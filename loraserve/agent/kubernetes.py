"""The little of the Kubernetes API that the agent may use: follow one ConfigMap, and create events."""

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loraserve.errors import LoraserveError

ANSWER_SECONDS = 10.0
WATCH_SECONDS = 30
"""The API server ends a watch after this time, and the next one goes on from there: a dead connection is noticed."""


class ApiError(LoraserveError):
    """The Kubernetes API does not answer, or refuses."""

    transient = True


@dataclass(frozen=True)
class Pod:
    """The pod that this agent is part of."""

    name: str
    namespace: str
    uid: str


class KubernetesApi:
    """Methods raise ApiError. Safe to share by threads."""

    def __init__(self, url: str, credentials: Path) -> None:
        """`credentials` is the folder of `token` and `ca.crt`; both are renewed while the agent runs."""
        self._url = url
        self._credentials = credentials

    def follow_config_map(self, namespace: str, name: str) -> Iterator[dict[str, str]]:
        """Its data as it is, then after every change, until the API fails; nothing while there is no such ConfigMap."""
        path, one = f"/api/v1/namespaces/{namespace}/configmaps", {"fieldSelector": f"metadata.name={name}"}
        listed = self._ask("GET", path, params=one)
        yield from (item.get("data", {}) for item in listed["items"])
        version = listed["metadata"]["resourceVersion"]
        while True:
            watch = {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_SECONDS)}
            for change in self._stream(path, {**one, **watch, "resourceVersion": version}):
                if change["type"] == "ERROR":
                    raise ApiError(f"the watch of ConfigMap {name} ended: {change['object'].get('message')}")
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] in ("ADDED", "MODIFIED"):
                    yield change["object"].get("data", {})

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """One that exists by that name already is left as it is."""
        try:
            self._ask("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", json=body)
        except AlreadyExists:
            return

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        with self._client() as http:
            try:
                response = http.request(method, path, **request)
            except httpx.HTTPError as error:
                raise _unreachable(error) from error
            _check(response)
            return response.json()

    def _stream(self, path: str, params: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        with self._client() as http:
            try:
                with http.stream("GET", path, params=params, timeout=WATCH_SECONDS + ANSWER_SECONDS) as response:
                    if not response.is_success:
                        response.read()
                    _check(response)
                    yield from map(json.loads, response.iter_lines())
            except httpx.HTTPError as error:
                raise _unreachable(error) from error

    def _client(self) -> httpx.Client:
        try:
            token = (self._credentials / "token").read_text()
            context = ssl.create_default_context(cafile=self._credentials / "ca.crt")
        except OSError as error:
            raise ApiError(f"{self._credentials} holds no usable token and ca.crt: {error}") from error
        headers = {"Authorization": f"Bearer {token.strip()}"}
        return httpx.Client(
            base_url=self._url, headers=headers, verify=context, timeout=ANSWER_SECONDS, trust_env=False
        )


class AlreadyExists(ApiError):
    """An object of that name was created before."""


def _unreachable(error: httpx.HTTPError) -> ApiError:
    return ApiError(f"the Kubernetes API does not answer: {error or type(error).__name__}")


def _check(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.CONFLICT:
        raise AlreadyExists(response.text)
    if not response.is_success:
        path = response.request.url.path
        raise ApiError(f"the Kubernetes API answered {path} with {response.status_code}: {response.text[:500]}")
