"""The `eks` plugin: the component `eks:index:Cluster`, with the children that the real one registers.

Left out: a default node group, default security groups, an OIDC provider, Auto Mode, Fargate, and the real one's wait
for the cluster's `/healthz`. Its kubeconfig is the file that `LORASERVE_KUBECONFIG` names: the cluster that stands in
for EKS's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import yaml
from pulumi.runtime.proto import provider_pb2, resource_pb2, resource_pb2_grpc

from local.stand_ins.provider import ConstructRequest, InvalidInput, Properties, Provider, ProviderError, serve
from local.stand_ins.values import UNKNOWN, from_struct, resource_reference, to_struct

CLUSTER = "eks:index:Cluster"

_SUBNETS = ("publicSubnetIds", "privateSubnetIds")
_PASSED_ON = ("name", "version", "enabledClusterLogTypes", "upgradePolicy")
_ENDPOINT = ("endpointPrivateAccess", "endpointPublicAccess", "publicAccessCidrs")
_KNOWN = frozenset(
    {
        *_SUBNETS,
        *_PASSED_ON,
        *_ENDPOINT,
        "accessEntries",
        "authenticationMode",
        "createOidcProvider",
        "kubeProxyAddonOptions",
        "skipDefaultNodeGroup",
        "skipDefaultSecurityGroups",
        "tags",
        "vpcCniOptions",
        "vpcId",
    }
)
_AWS_AUTH = frozenset({"instanceRole", "instanceRoles", "roleMappings", "userMappings"})
_CONFLICT_OPTIONS = {"resolveConflictsOnCreate", "resolveConflictsOnUpdate"}
_CNI_OPTIONS = {*_CONFLICT_OPTIONS, "addonVersion", "enableNetworkPolicy", "enablePrefixDelegation"}
_PROXY_OPTIONS = {*_CONFLICT_OPTIONS, "version"}
_ENTRY_OPTIONS = {"principalArn", "accessPolicies", "tags"}


def construct_cluster(request: ConstructRequest) -> provider_pb2.ConstructResponse:
    """Registers the component and its children. Raises InvalidInput for what the real component would refuse."""
    check(request.inputs)
    with grpc.insecure_channel(request.raw.monitorEndpoint) as channel:
        return _Construction(request, resource_pb2_grpc.ResourceMonitorStub(channel)).run()


def check(inputs: Properties) -> None:
    """Raises InvalidInput for an unknown property, and for combinations that cannot work."""
    mode = inputs.get("authenticationMode")
    _refuse_if(
        mode == "API" and bool(inputs.keys() & _AWS_AUTH),
        ", ".join(sorted(inputs.keys() & _AWS_AUTH)),
        "there is no aws-auth ConfigMap with authenticationMode API; use accessEntries",
    )
    for key in sorted(inputs.keys() - _KNOWN):
        raise InvalidInput(key, f"the stand-in cluster takes no such property; known: {', '.join(sorted(_KNOWN))}")
    _refuse_if(
        "accessEntries" in inputs and mode not in ("API", "API_AND_CONFIG_MAP"),
        "accessEntries",
        "need authenticationMode API or API_AND_CONFIG_MAP",
    )
    for key in ("skipDefaultNodeGroup", "skipDefaultSecurityGroups"):
        _refuse_if(not inputs.get(key), key, "the stand-in cluster makes none: set it to true")
    _refuse_if(
        inputs.get("createOidcProvider") is not False,
        "createOidcProvider",
        "the stand-in cluster makes none: set it to false and declare an aws.iam.OpenIdConnectProvider",
    )
    _refuse_if(not any(inputs.get(key) for key in _SUBNETS), "privateSubnetIds", "a cluster needs subnets in two zones")
    _refuse_if(
        not inputs.get("endpointPrivateAccess", False) and not inputs.get("endpointPublicAccess", True),
        "endpointPrivateAccess",
        "with neither the private nor the public endpoint nothing reaches the cluster",
    )
    for key, known, pin in (
        ("vpcCniOptions", _CNI_OPTIONS, "addonVersion"),
        ("kubeProxyAddonOptions", _PROXY_OPTIONS, "version"),
    ):
        options = inputs.get(key) or {}
        _check_options(key, options, known)
        _refuse_if(pin not in options, f"{key}.{pin}", "is needed here; add-on versions are pinned")
    for name, entry in (inputs.get("accessEntries") or {}).items():
        _check_options(f"accessEntries.{name}", entry, _ENTRY_OPTIONS)


def _refuse_if(wrong: bool, key: str, reason: str) -> None:
    if wrong:
        raise InvalidInput(key, reason)


def _check_options(key: str, options: Properties, known: set[str]) -> None:
    for option in sorted(options.keys() - known):
        raise InvalidInput(f"{key}.{option}", f"the stand-in cluster takes no such option; known: {sorted(known)}")


class _Registered:
    """A resource that the engine has registered; in a preview some of its outputs are not known yet."""

    def __init__(self, response: Any) -> None:
        self.urn: str = response.urn
        self.id: str = response.id or UNKNOWN
        self._outputs = from_struct(response.object)

    def __getitem__(self, key: str) -> Any:
        return self._outputs.get(key, UNKNOWN)


class _Construction:
    """One run of the component: what every child inherits, and the children in order."""

    def __init__(self, request: ConstructRequest, monitor: resource_pb2_grpc.ResourceMonitorStub) -> None:
        self.request = request
        self.name = request.name
        self.inputs = request.inputs
        self.tags: Properties = request.inputs.get("tags") or {}
        self.monitor = monitor
        self.input_urns = sorted({urn for part in request.raw.inputDependencies.values() for urn in part.urns})

    def run(self) -> provider_pb2.ConstructResponse:
        self.parent = ""
        self.parent = self._register_component()
        role, attachment = self._service_role()
        cluster = self._cluster(role, attachment)
        self._kube_proxy(cluster)
        self._vpc_cni(cluster)
        for name, entry in sorted((self.inputs.get("accessEntries") or {}).items()):
            self._access_entry(name, entry, cluster)
        outputs = self._outputs(cluster, role)
        state = to_struct(outputs)
        self.monitor.RegisterResourceOutputs(
            resource_pb2.RegisterResourceOutputsRequest(urn=self.parent, outputs=state)
        )
        on_cluster = provider_pb2.ConstructResponse.PropertyDependencies(urns=[cluster.urn])
        return provider_pb2.ConstructResponse(
            urn=self.parent, state=state, stateDependencies=dict.fromkeys(outputs, on_cluster)
        )

    def _register_component(self) -> str:
        raw = self.request.raw
        dependencies = resource_pb2.RegisterResourceRequest.PropertyDependencies
        return self.monitor.RegisterResource(
            resource_pb2.RegisterResourceRequest(
                type=CLUSTER,
                name=self.name,
                parent=raw.parent,
                object=raw.inputs,
                protect=raw.protect,
                aliases=raw.aliases,
                dependencies=raw.dependencies,
                propertyDependencies={key: dependencies(urns=part.urns) for key, part in raw.inputDependencies.items()},
                providers=raw.providers,
                deletedWith=raw.deletedWith,
                retainOnDelete=raw.retainOnDelete,
                supportsPartialValues=True,
                acceptSecrets=True,
            )
        ).urn

    def _child(self, kind: str, name: str, inputs: Properties, *after: _Registered) -> _Registered:
        raw = self.request.raw
        response = self.monitor.RegisterResource(
            resource_pb2.RegisterResourceRequest(
                type=kind,
                name=f"{self.name}-{name}",
                parent=self.parent,
                custom=True,
                object=to_struct(inputs),
                protect=raw.protect,
                provider=raw.providers.get("aws", ""),
                version=version("pulumi-aws"),
                dependencies=[*self.input_urns, *(resource.urn for resource in after)],
                deletedWith=raw.deletedWith,
                retainOnDelete=raw.retainOnDelete,
                supportsPartialValues=True,
                acceptSecrets=True,
            )
        )
        return _Registered(response)

    def _call(self, function: str, args: Properties) -> Properties:
        answer = self.monitor.Invoke(
            resource_pb2.ResourceInvokeRequest(
                tok=function,
                args=to_struct(args),
                provider=self.request.raw.providers.get("aws", ""),
                version=version("pulumi-aws"),
            )
        )
        for failure in answer.failures:
            raise ProviderError(f"{function}: {failure.property}: {failure.reason}")
        return from_struct(getattr(answer, "return"))

    def _service_role(self) -> tuple[_Registered, _Registered]:
        statement = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "eks.amazonaws.com"}}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        role = self._child(
            "aws:iam/role:Role",
            "eksRole-role",
            {
                "assumeRolePolicy": document,
                "description": "Allows EKS to manage clusters on your behalf.",
                "tags": self.tags,
            },
        )
        partition = self._call("aws:index/getPartition:getPartition", {})["partition"]
        policy = f"arn:{partition}:iam::aws:policy/AmazonEKSClusterPolicy"
        attachment = self._child(
            "aws:iam/rolePolicyAttachment:RolePolicyAttachment",
            f"eksRole-{sha256(policy.encode()).hexdigest()[:8]}",
            {"role": role["name"], "policyArn": policy},
            role,
        )
        return role, attachment

    def _cluster(self, role: _Registered, attachment: _Registered) -> _Registered:
        inputs = self.inputs
        vpc_config = {key: inputs[key] for key in _ENDPOINT if key in inputs}
        subnets = [inputs[key] for key in _SUBNETS if key in inputs]
        vpc_config["subnetIds"] = UNKNOWN if UNKNOWN in subnets else [subnet for group in subnets for subnet in group]
        wanted = {key: inputs[key] for key in _PASSED_ON if key in inputs}
        if "authenticationMode" in inputs:
            wanted["accessConfig"] = {"authenticationMode": inputs["authenticationMode"]}
        wanted |= {
            "roleArn": role["arn"],
            "vpcConfig": vpc_config,
            "tags": {"Name": f"{self.name}-eksCluster"} | self.tags,
        }
        return self._child("aws:eks/cluster:Cluster", "eksCluster", wanted, role, attachment)

    def _kube_proxy(self, cluster: _Registered) -> None:
        options = self.inputs["kubeProxyAddonOptions"]
        self._addon("kube-proxy", options["version"], cluster, options)

    def _vpc_cni(self, cluster: _Registered) -> None:
        options = self.inputs["vpcCniOptions"]
        values: Properties = {"env": {}}
        if "enablePrefixDelegation" in options:
            values["env"]["ENABLE_PREFIX_DELEGATION"] = json.dumps(options["enablePrefixDelegation"])
        if "enableNetworkPolicy" in options:
            values["enableNetworkPolicy"] = json.dumps(options["enableNetworkPolicy"])
        self._addon("vpc-cni", options["addonVersion"], cluster, options, json.dumps(values))

    def _addon(
        self, addon: str, pinned: str, cluster: _Registered, options: Properties, values: str | None = None
    ) -> None:
        self._child(
            "aws:eks/addon:Addon",
            addon,
            {
                "addonName": addon,
                "addonVersion": pinned,
                "clusterName": cluster["name"],
                "configurationValues": values,
                "resolveConflictsOnCreate": options.get("resolveConflictsOnCreate", "OVERWRITE"),
                "resolveConflictsOnUpdate": options.get("resolveConflictsOnUpdate", "OVERWRITE"),
                "tags": self.tags,
            },
            cluster,
        )

    def _access_entry(self, name: str, entry: Properties, cluster: _Registered) -> None:
        target = {"clusterName": cluster["name"], "principalArn": entry["principalArn"]}
        tagged = target | {"tags": entry.get("tags") or {}}
        registered = self._child("aws:eks/accessEntry:AccessEntry", name, tagged, cluster)
        for policy_name, policy in sorted((entry.get("accessPolicies") or {}).items()):
            self._child(
                "aws:eks/accessPolicyAssociation:AccessPolicyAssociation",
                f"{name}-{policy_name}",
                target | {"policyArn": policy["policyArn"], "accessScope": policy["accessScope"]},
                cluster,
                registered,
            )

    def _outputs(self, cluster: _Registered, role: _Registered) -> Properties:
        issuer, vpc_config = _issuer(cluster), cluster["vpcConfig"]
        kubeconfig = UNKNOWN if cluster["endpoint"] == UNKNOWN else _kubeconfig()
        eks_cluster = resource_reference(cluster.urn, "" if cluster.id == UNKNOWN else cluster.id)
        return {
            "autoModeNodeRoleName": "",
            "clusterIngressRuleId": "",
            "clusterSecurityGroupId": _member(vpc_config, "clusterSecurityGroupId"),
            "core": {
                "cluster": eks_cluster,
                "clusterIamRole": resource_reference(role.urn, "" if role.id == UNKNOWN else role.id),
                "endpoint": cluster["endpoint"],
                "instanceRoles": [],
                "subnetIds": _member(vpc_config, "subnetIds"),
                "vpcId": _member(vpc_config, "vpcId"),
            },
            "eksCluster": eks_cluster,
            "fargateProfileId": "",
            "fargateProfileStatus": "",
            "kubeconfig": kubeconfig,
            "kubeconfigJson": UNKNOWN if kubeconfig == UNKNOWN else json.dumps(kubeconfig),
            "nodeSecurityGroupId": "",
            "oidcIssuer": UNKNOWN if issuer == UNKNOWN else issuer.removeprefix("https://"),
            "oidcProviderArn": "",
            "oidcProviderUrl": issuer,
        }


def _issuer(cluster: _Registered) -> str:
    identities = cluster["identities"]
    return UNKNOWN if identities == UNKNOWN else identities[0]["oidcs"][0]["issuer"]


def _member(value: Any, key: str) -> Any:
    return value.get(key, UNKNOWN) if isinstance(value, Mapping) else UNKNOWN


def _kubeconfig() -> Any:
    path = os.environ.get("LORASERVE_KUBECONFIG")
    if not path:
        reason = "names no file: it must name the kubeconfig of the Kubernetes that stands in for EKS's"
        raise InvalidInput("LORASERVE_KUBECONFIG", f"{reason}; `make up` sets it")
    return yaml.safe_load(Path(path).read_text())


if __name__ == "__main__":
    serve(Provider(name="eks", version=version("pulumi-eks"), components={CLUSTER: construct_cluster}))
