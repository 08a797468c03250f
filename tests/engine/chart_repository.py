"""A Helm repository on this machine with a tiny chart under each name that the program installs, at the pinned version."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from infra import charts
from infra.charts import HelmChart

CHARTS = (
    charts.CLUSTER_AUTOSCALER,
    charts.DEVICE_PLUGIN,
    charts.DCGM_EXPORTER,
    charts.KUBE_PROMETHEUS_STACK,
    charts.KEDA,
)
RECEIPT = "chart-"
"""How the name of each chart's one object begins: a ConfigMap that says what the chart was given."""
_TEMPLATE = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: chart-{{ .Release.Name }}
  namespace: {{ .Release.Namespace }}
data:
  version: {{ .Chart.Version | quote }}
  values: {{ .Values | toYaml | quote }}
"""


class ChartRepository:
    """Serves until it is left."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for chart in CHARTS:
            _pack(folder / _archive(chart), chart)
        (folder / "index.yaml").write_text(yaml.safe_dump(_index()))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ChartRepository:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _index() -> Mapping[str, Any]:
    entries = {chart.name: [_metadata(chart) | {"urls": [_archive(chart)]}] for chart in CHARTS}
    return {"apiVersion": "v1", "entries": entries}


def _metadata(chart: HelmChart) -> dict[str, Any]:
    return {"apiVersion": "v2", "name": chart.name, "version": chart.version}


def _archive(chart: HelmChart) -> str:
    return f"{chart.name}-{chart.version}.tgz"


def _pack(path: Path, chart: HelmChart) -> None:
    files = {"Chart.yaml": yaml.safe_dump(_metadata(chart)), "templates/receipt.yaml": _TEMPLATE}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{chart.name}/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
