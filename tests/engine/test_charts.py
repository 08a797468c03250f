"""The charts, rendered with the program's values by the Helm that is in the real `kubernetes` provider.

Where the charts' repositories cannot be reached, tests/unit/test_chart_values.py has checked the values against our record
of the same versions, and this says so. LORASERVE_CHART_REPOSITORY names a mirror of them, over HTTP.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import yaml

from infra import names
from infra.pinned_images import CHART_IMAGES
from local.cluster.control_plane import ControlPlane
from local.cluster.kubectl import kubectl
from local.paths import CHECKOUT
from tests.chart_values import RECORD, record_errors
from tests.engine.throwaway import Throwaway
from tests.unit.declared import Program, declare

PROGRAM = """
import json
import pulumi
import pulumi_kubernetes as k8s
from pulumi_kubernetes.helm.v4 import Chart
from infra.addons import awaited_while_it_works

provider = k8s.Provider("cluster", kubeconfig=open("kubeconfig").read())
for chart in json.load(open("charts.json")):
    transforms = [awaited_while_it_works] if chart["name"] == "cluster-autoscaler" else []
    opts = pulumi.ResourceOptions(providers={"kubernetes": provider}, transforms=transforms)
    archive, name = chart["archive"], chart["name"]
    Chart(name, chart=archive, namespace=chart["namespace"], values=chart["values"], skip_crds=True, opts=opts)
"""
_LIMIT_S = 5
_READING = {"get", "list", "watch", "*"}
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def program() -> Program:
    return declare("prod")


@pytest.fixture(scope="module")
def archives(program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each chart at its version, as its repository has it; empty where one cannot be reached."""
    folder = tmp_path_factory.mktemp("charts")
    found: dict[str, Path] = {}
    for chart in program.of_type("helm.sh/v4:Chart"):
        repository = os.environ.get("LORASERVE_CHART_REPOSITORY") or chart.inputs["repositoryOpts"]["repo"]
        try:
            index = yaml.load(_get(f"{repository}/index.yaml"), yaml.CSafeLoader)
            (entry,) = (e for e in index["entries"][chart.name] if e["version"] == chart.inputs["version"])
            found[chart.name] = folder / f"{chart.name}.tgz"
            found[chart.name].write_bytes(_get(urljoin(f"{repository}/", entry["urls"][0])))
        except urllib.error.URLError:
            return {}
    return found


@pytest.fixture(scope="module")
def rendered(program: Program, archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """What the charts make of the values, as a preview against an API server shows it."""
    if not archives:
        pytest.skip("no chart repository can be reached: the values were checked against tests/chart_values.yaml")
    folder = tmp_path_factory.mktemp("project")
    charts = [
        {"name": chart.name, "archive": str(archives[chart.name])}
        | {key: chart.inputs[key] for key in ("namespace", "values")}
        for chart in program.of_type("helm.sh/v4:Chart")
    ]
    (folder / "charts.json").write_text(json.dumps(charts))
    with ControlPlane.start(folder / "cluster", die_with_parent=True) as plane:
        kubectl(plane.kubeconfig, "create", "namespace", names.MONITORING_NAMESPACE)
        # Not through the CLI, which takes a minute over these megabytes. The control plane has some of another version already.
        apply = ("apply", "--server-side", "--force-conflicts", "--filename=-")
        kubectl(plane.kubeconfig, *apply, stdin=definitions(archives["kube-prometheus-stack"]))
        (folder / "kubeconfig").write_text(plane.kubeconfig.read_text())
        project = Throwaway(folder, PROGRAM)
        project.environment["PYTHONPATH"] = str(CHECKOUT)
        previewed = project.run("preview", "--json")
    assert previewed.returncode == 0, previewed.stdout + previewed.stderr
    states = [step.get("newState", {}) for step in json.loads(previewed.stdout)["steps"]]
    return [state["inputs"] for state in states if "kind" in state.get("inputs", {})]


def test_values_fit_the_charts_or_at_least_our_record_of_them(
    archives: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    how = "charts rendered and compared with our record" if archives else "no repository reached, our record alone"
    with capsys.disabled():
        print(f"\nchart values: {how}")
    for name, archive in archives.items():
        assert list(record_errors(RECORD[name]["values"], default_values(name, archive))) == []


def test_nobody_but_the_prometheus_operator_reads_secrets_everywhere(rendered: Objects) -> None:
    readers = {role["metadata"]["name"] for role in of_kind(rendered, "ClusterRole") if reads_secrets(role)}
    assert readers == {"kube-prometheus-stack-operator"}


def test_up_waits_for_an_autoscaler_that_keeps_running_and_has_its_role(rendered: Objects) -> None:
    (autoscaler,) = (d for d in of_kind(rendered, "Deployment") if d["metadata"]["name"] == "cluster-autoscaler")
    assert autoscaler["spec"]["minReadySeconds"] == 30
    pod = autoscaler["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_REGION"} <= {e["name"] for e in container["env"]}
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"] for mount in container["volumeMounts"]]


def test_every_monitor_of_ours_finds_a_service_with_its_port(program: Program, rendered: Objects) -> None:
    services = of_kind(rendered, "Service")
    for monitor in program.of_type("monitoring.coreos.com/v1:ServiceMonitor"):
        namespace, spec = monitor.inputs["metadata"]["namespace"], monitor.inputs["spec"]
        if namespace == names.SERVING_NAMESPACE:
            continue
        ports = [
            port["name"]
            for service in services
            if service["metadata"]["namespace"] == namespace
            and spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            for port in service["spec"]["ports"]
        ]
        assert spec["endpoints"][0]["port"] in ports, monitor.name


def test_every_policy_in_the_monitoring_namespace_selects_pods_that_there_are(
    program: Program, rendered: Objects
) -> None:
    workloads = [*of_kind(rendered, "Deployment"), *of_kind(rendered, "DaemonSet")]
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads]
    labels += [{"app.kubernetes.io/name": name} for name in ("prometheus", "alertmanager")]  # the operator's own doing
    for policy in program.of_type("networking.k8s.io/v1:NetworkPolicy"):
        wanted = policy.inputs["spec"]["podSelector"].get("matchLabels", {})
        if policy.inputs["metadata"]["namespace"] == names.MONITORING_NAMESPACE:
            assert any(wanted.items() <= found.items() for found in labels), policy.name


def test_every_image_is_named_where_its_digest_would_be(rendered: Objects) -> None:
    text = json.dumps(rendered)
    named = {image.reference for image in CHART_IMAGES}
    assert {reference for reference in named if reference not in text} == set()
    workloads = [*of_kind(rendered, "Deployment"), *of_kind(rendered, "DaemonSet")]
    pods = [workload["spec"]["template"]["spec"] for workload in workloads]
    run = {c["image"] for pod in pods for c in [*pod.get("initContainers", []), *pod["containers"]]}
    assert {image.partition("@")[0] for image in run} <= named


def test_nothing_is_put_into_a_namespace_that_is_not_made(rendered: Objects) -> None:
    namespaces = {found["metadata"].get("namespace") for found in rendered}
    assert namespaces <= {None, names.SYSTEM_NAMESPACE, names.MONITORING_NAMESPACE, "default"}


def test_alerts_and_settings_are_as_asked(rendered: Objects) -> None:
    groups = [group for rules in of_kind(rendered, "PrometheusRule") for group in rules["spec"]["groups"]]
    alerts = {rule.get("alert", "") for group in groups for rule in group["rules"]}
    assert "KubePodCrashLooping" in alerts
    assert not {"KubeCPUOvercommit", "KubeMemoryOvercommit"} & alerts
    assert "PrometheusNotConnectedToAlertmanagers" in alerts
    (grafana,) = (m for m in of_kind(rendered, "ConfigMap") if "grafana.ini" in m.get("data", {}))
    assert "check_for_updates = false" in grafana["data"]["grafana.ini"]


def of_kind(rendered: Objects, kind: str) -> Objects:
    return [found for found in rendered if found["kind"] == kind]


def reads_secrets(role: dict[str, Any]) -> bool:
    return any(
        {"", "*"} & set(rule.get("apiGroups", []))
        and {"secrets", "*"} & set(rule.get("resources", []))
        and _READING & set(rule["verbs"])
        for rule in role.get("rules") or []
    )


def definitions(archive: Path) -> str:
    """The kinds that a chart brings with it."""
    with tarfile.open(archive) as packed:
        found = [packed.extractfile(m) for m in packed.getmembers() if "/crds/" in m.name and m.name.endswith(".yaml")]
        texts = [file.read().decode() for file in found if file]
    return "\n---\n".join(text for text in texts if "kind: CustomResourceDefinition" in text)


def default_values(name: str, archive: Path) -> dict[str, Any]:
    """A chart's own values, those of its dependencies below their names."""
    with tarfile.open(archive) as packed:
        files = {
            member.name.removeprefix(f"{name}/"): extracted.read()
            for member in packed.getmembers()
            if member.name.endswith("values.yaml") and (extracted := packed.extractfile(member))
        }
    own: dict[str, Any] = yaml.safe_load(io.BytesIO(files.pop("values.yaml")))
    for path, content in files.items():
        parts = path.split("/")
        if len(parts) == 3 and parts[0] == "charts":
            own[parts[1]] = _merged(yaml.safe_load(content) or {}, own.get(parts[1]) or {})
    return own


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], over[key]) for key in over if _are_maps(base.get(key), over[key])}
    return base | over | both


def _are_maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:
        return answer.read()
