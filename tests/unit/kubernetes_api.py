"""A Kubernetes API server, as far as the agent may ask one: one ConfigMap, and events."""

import http.server
import json
import queue
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from local.cluster import certificates
from loraserve.contract.environment import KubernetesSettings

NAMESPACE = "ml-models"
CONFIG_MAP = "desired-state"
KEY = "desired.json"


class FakeKubernetesApi:
    """Attributes may be changed while it runs; `put` changes the ConfigMap."""

    def __init__(self, folder: Path) -> None:
        """Writes the credentials for it to `folder`."""
        certificates.create(folder / "keys", [certificates.LOOPBACK])
        self.credentials = folder / "credentials"
        self.credentials.mkdir()
        (self.credentials / "ca.crt").write_bytes((folder / "keys" / "ca.crt").read_bytes())
        self.token = ""
        self.renew_token("first")
        self.refuses = False
        """While True, every answer is 403."""
        self.expires_watches = False
        """While True, a watch is told that its version is too old."""
        self.events: dict[str, dict[str, Any]] = {}
        self.posts = 0
        self.lists = 0
        self.watches: queue.SimpleQueue[int] = queue.SimpleQueue()
        """The version from which each watch went on, put when it begins."""
        self._texts: list[str] = []
        self._changed = threading.Condition()
        self._ended = 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "keys" / "server.crt", folder / "keys" / "server.key")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self.settings = KubernetesSettings(url=self.url, namespace=NAMESPACE, credentials=self.credentials)

    def put(self, text: str) -> None:
        with self._changed:
            self._texts.append(text)
            self._changed.notify_all()

    def end_watches(self) -> None:
        """Cuts the connections of all that run."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def renew_token(self, token: str) -> None:
        (self.credentials / "token").write_text(token)
        self.token = token

    def stop(self) -> None:
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()

    def _config_map(self, version: int) -> dict[str, Any]:
        metadata = {"name": CONFIG_MAP, "resourceVersion": str(version)}
        return {"metadata": metadata, "data": {KEY: self._texts[version - 1]}}

    def _list(self) -> dict[str, Any]:
        self.lists += 1
        version = len(self._texts)
        items = [self._config_map(version)] if version else []
        return {"metadata": {"resourceVersion": str(version)}, "items": items}

    def _watch(self, version: int) -> Iterator[dict[str, Any]]:
        if self.expires_watches:
            yield {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
            return
        with self._changed:
            ended = self._ended
            self.watches.put(version)  # under the lock: who hears of this watch can end it
            while True:
                self._changed.wait_for(lambda version=version: len(self._texts) > version or self._ended > ended)
                if self._ended > ended:
                    return
                version += 1
                yield {"type": "MODIFIED", "object": self._config_map(version)}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(address.query).items()}
                asked = (address.path, query.get("fieldSelector"))
                if (
                    asked != (f"/api/v1/namespaces/{NAMESPACE}/configmaps", f"metadata.name={CONFIG_MAP}")
                    or not self._is_allowed()
                ):
                    self._refuse(403)
                elif "watch" not in query:
                    self._answer(200, fake._list())
                else:
                    self.send_response(200)
                    self.end_headers()
                    for change in fake._watch(int(query["resourceVersion"])):
                        self.wfile.write(json.dumps(change).encode() + b"\n")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.posts += 1
                name = body["metadata"]["name"]
                if self.path != f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events" or not self._is_allowed():
                    self._refuse(403)
                elif name in fake.events:
                    self._refuse(409)
                else:
                    fake.events[name] = body
                    self._answer(201, body)

            def _is_allowed(self) -> bool:
                return not fake.refuses and self.headers["Authorization"] == f"Bearer {fake.token}"

            def _refuse(self, status: int) -> None:
                self._answer(status, {"kind": "Status", "code": status})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
