"""Requests to one Kubernetes API server, as plain dicts."""

from __future__ import annotations

import json
from typing import Any

import urllib3.exceptions
from kubernetes import config

from local.stand_ins.kubernetes.kinds import Kind
from local.stand_ins.provider import Properties, ProviderError

_TIMEOUT_S = (5, 60)


class ApiError(ProviderError):
    """The API server refused a request; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(ProviderError):
    """The API server does not answer."""


class Cluster:
    """One API server."""

    def __init__(self, kubeconfig: Properties, context: str | None) -> None:
        self._client = config.new_client_from_config_dict(kubeconfig, context=context, persist_config=False)

    def get(self, kind: Kind, namespace: str, name: str) -> Properties | None:
        """The object, or None where it does not exist (or its kind does not)."""
        try:
            return self.request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def apply(
        self, kind: Kind, manifest: Properties, manager: str, *, force: bool, dry_run: bool = False
    ) -> Properties:
        """Server-side apply with strict field validation. Raises ApiError with status 409 on a conflict."""
        query = {"fieldManager": manager, "force": json.dumps(force), "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        metadata = manifest["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        return self.request("PATCH", path, query, json.dumps(manifest), "application/apply-patch+yaml")

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Asks for deletion in the foreground; an object that is gone already is no error."""
        try:
            self.request("DELETE", kind.path(namespace, name), body={"propagationPolicy": "Foreground"})
        except ApiError as error:
            if error.status != 404:
                raise

    def list(self, path: str, **query: str) -> list[Properties]:
        """The items of a collection, for instance with `labelSelector`."""
        return self.request("GET", path, query)["items"]

    def request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Properties:
        """Raises ApiError or UnreachableError."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        method, url, headers, body, _ = self._client.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self._client.call_api(method, url, headers, body, _request_timeout=_TIMEOUT_S)
            content = response.read()
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(
                f"the Kubernetes API server {self._client.configuration.host} does not answer: {_cause(error)}"
            ) from error
        if response.status >= 400:
            raise ApiError(response.status, _message(content))
        return json.loads(content)


def _message(content: bytes) -> str:
    """The text of an error response, which is a `Status` object but for an unknown path."""
    try:
        return json.loads(content)["message"]
    except ValueError:
        return content.decode(errors="replace").strip()


def _cause(error: Exception) -> str:
    return str(error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error)
