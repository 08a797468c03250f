"""Images run by the digests that were read from their registries, and by their tags until then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from infra import pinned_images
from local.images.digests import RegistryError, record
from tests.chart_values import RECORD, problems
from tests.unit.declared import Program, declare, run

INDEX = b'{"schemaVersion": 2, "manifests": []}'
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"


class Registry(BaseHTTPRequestHandler):
    """Serves one index under team/app:v1 to whoever brings its token, and the token to everybody; lies about team/liar."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/token":
            assert self.path.endswith("service=here&scope=repository%3Ateam%2Fapp%3Apull")
            self.answer(200, b'{"token": "anybody"}')
        elif path == "/v2/team/liar/manifests/v1":
            self.answer(200, INDEX, {"Docker-Content-Digest": f"sha256:{'0' * 64}"})
        elif path != "/v2/team/app/manifests/v1":
            self.answer(404, b"{}")
        elif self.headers.get("Authorization") != "Bearer anybody":
            realm = f"http://{self.headers['Host']}/token"
            challenge = f'Bearer realm="{realm}",service="here",scope="repository:team/app:pull"'
            self.answer(401, b"{}", {"WWW-Authenticate": challenge})
        else:
            assert "image.index" in self.headers["Accept"]
            self.answer(200, INDEX, {"Docker-Content-Digest": DIGEST})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_digest_is_read_from_the_registry_and_written_down(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    with httpx.Client(trust_env=False) as client:
        record([f"{registry}/team/app:v1"], path, client)
    assert json.loads(path.read_text()) == {f"{registry}/team/app:v1": DIGEST}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("team/app:v2", "team/app:v2: no digest from .*404"),
        ("team/liar:v1", "calls sha256:0+ what has the digest sha256:"),
    ],
)
def test_an_image_that_is_not_there_or_is_another_changes_nothing(
    registry: str, tmp_path: Path, image: str, message: str
) -> None:
    path = tmp_path / "digests.json"
    path.write_text("{}")
    with httpx.Client(trust_env=False) as client, pytest.raises(RegistryError, match=message):
        record([f"{registry}/team/app:v1", f"{registry}/{image}"], path, client)
    assert path.read_text() == "{}"


def test_what_was_recorded_belongs_to_images_that_are_run() -> None:
    assert pinned_images.recorded().keys() <= set(pinned_images.REFERENCES)


def images(program: Program) -> str:
    """All that the program says of images of its own pods, the build's base and the charts."""
    kinds = ("apps/v1:Deployment", "apps/v1:DaemonSet", "helm.sh/v4:Chart", ":Image")
    told = [resource for kind in kinds for resource in program.of_type(kind)]
    return json.dumps([resource.inputs for resource in told])


def test_without_a_digest_the_tag_is_run() -> None:
    assert f'"{pinned_images.VLLM}"' in images(declare("dev")) or pinned_images.recorded()


def test_every_image_is_pinned_once_its_digest_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {ref: f"sha256:{number:064x}" for number, ref in enumerate(pinned_images.REFERENCES, start=1)}
    recorded = tmp_path / "digests.json"
    recorded.write_text(json.dumps(digests))
    monkeypatch.setattr(pinned_images, "RECORD", recorded)
    program = run("dev", podLogDays=30)
    said = images(program)
    assert all(digest.partition(":")[2] in said for digest in digests.values())
    keda = program.one("helm.sh/v4:Chart", "keda").inputs["values"]
    assert keda["image"]["keda"]["tag"] == f"2.21.1@{digests['ghcr.io/kedacore/keda:2.21.1']}"
    assert keda["webhooks"] == {"enabled": False}, "nothing else is lost"
    for chart in program.of_type("helm.sh/v4:Chart"):
        assert list(problems(chart.inputs["values"], RECORD[chart.name]["values"])) == []
