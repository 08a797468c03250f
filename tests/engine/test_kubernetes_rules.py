"""The rules of the stand-in `kubernetes` provider that need no cluster: names, replacements, settings, charts."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from pulumi.runtime.proto import provider_pb2

from local.stand_ins.kubernetes.chart import CHART, construct_chart
from local.stand_ins.kubernetes.kinds import KINDS
from local.stand_ins.kubernetes.objects import KubernetesObject
from local.stand_ins.kubernetes.settings import Connection, parse_settings, replaces_every_object
from local.stand_ins.provider import UNKNOWN, ConstructRequest, InvalidInput, Properties, ProviderError


def _type(kind: str, server: str = "https://nowhere.invalid", **settings: bool) -> KubernetesObject:
    connection = Connection()
    connection.configure({"kubeconfig": _kubeconfig_of(server), **settings})
    return KubernetesObject(next(known for known in KINDS if known.name == kind), connection)


def _inputs(kind: str, **properties: Any) -> Properties:
    return _type(kind).check("x", properties, {}, b"seed")


@pytest.mark.parametrize(
    ("kind", "olds", "news", "replaces"),
    [
        ("Secret", {"type": "Opaque"}, {"type": "kubernetes.io/tls"}, {"type"}),
        ("Secret", {"stringData": {"a": "1"}}, {"stringData": {"a": "2"}}, {"stringData"}),
        ("Deployment", {"spec": {"selector": {"a": "1"}}}, {"spec": {"selector": {"a": UNKNOWN}}}, {"spec.selector"}),
        ("Deployment", {"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, set()),
        ("Service", {"spec": {"clusterIP": "None"}}, {"spec": {}}, {"spec.clusterIP"}),
        ("StorageClass", {"parameters": {"type": "gp2"}}, {"parameters": {"type": "gp3"}}, {"parameters"}),
    ],
)
def test_what_kubernetes_cannot_change_in_place_is_replaced(
    kind: str, olds: Properties, news: Properties, replaces: set[str]
) -> None:
    named = {"metadata": {"name": "same"}}

    diff = _type(kind).diff(_inputs(kind, **olds, **named), _inputs(kind, **news, **named))

    assert diff.replaces == replaces
    assert diff.changed
    assert diff.delete_before_replace


def test_generated_names_are_kept_and_let_the_new_object_come_first() -> None:
    olds = _inputs("ConfigMap", data={"a": "1"})
    news = _type("ConfigMap").check("x", {"data": {"a": "2"}}, olds, b"another seed")

    diff = _type("ConfigMap").diff(olds, news)

    assert news["metadata"] == olds["metadata"]
    assert len(olds["metadata"]["name"]) == len("x-") + 8
    assert diff.replaces == {"data"}
    assert not diff.delete_before_replace


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "kubeconfig: missing"),
        ({"kubeconfig": "no-such-file"}, "cannot read the file no-such-file"),
        ({"kubeconfig": "{}", "renderYamlToDirectory": "x"}, "renderYamlToDirectory: the stand-in kubernetes provider"),
        ({"kubeconfig": "{}", "enableServerSideApply": "false"}, "only server-side apply"),
        ({"kubeconfig": "{}", "context": "other"}, "no context named 'other'"),
    ],
)
def test_a_provider_setting_that_cannot_work_is_refused(config: Properties, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_settings(config)


def test_only_another_cluster_makes_every_object_anew() -> None:
    here = {"kubeconfig": _kubeconfig_of("https://a")}
    there = {"kubeconfig": _kubeconfig_of("https://b")}

    assert not replaces_every_object(here, here | {"enablePatchForce": "true"})
    assert replaces_every_object(here, there) == {"kubeconfig"}
    assert not replaces_every_object(here | {"clusterIdentifier": "x"}, there | {"clusterIdentifier": "x"})


def test_an_unreachable_cluster_is_a_clear_error_and_can_be_given_up() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{unused.getsockname()[1]}"
    inputs = _inputs("ConfigMap")

    with pytest.raises(ProviderError, match=r"does not answer: .*refused.*; where the cluster is gone for good"):
        _type("ConfigMap", server).delete("", inputs, {})
    _type("ConfigMap", server, deleteUnreachable=True).delete("", inputs, {})


def _kubeconfig_of(server: str) -> str:
    return json.dumps(
        {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
    )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"chart": "m", "namespace": "n", "repositoryOpts": {"repo": "r"}}, "version: a chart needs this property"),
        ({"chart": "m", "version": "1", "namespace": "n"}, "repositoryOpts.repo: needed"),
        ({"chart": "oci://m", "version": "1", "namespace": "n", "devel": True}, "devel: the stand-in chart takes no"),
    ],
)
def test_a_chart_with_a_wrong_property_is_refused(inputs: Properties, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        construct_chart(ConstructRequest(CHART, "metrics", inputs, provider_pb2.ConstructRequest()))
