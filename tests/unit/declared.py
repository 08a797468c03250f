"""Runs the real program with the real stack files under Pulumi's mocks, and keeps what it declared."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pulumi
from pulumi.runtime import config as runtime_config
from pulumi.runtime import mocks, resource
from pulumi.runtime.proto import source_pb2

from infra import versions
from infra.names import PROJECT
from tests.stack_values import stack_file, stack_values

ACCOUNT = "123456789012"
CALLER = f"arn:aws:sts::{ACCOUNT}:assumed-role/deployer/session"
ZONES = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
SUPPORTED = [{"clusterVersion": versions.KUBERNETES, "endOfStandardSupportDate": "2099-03-27T00:00:00Z"}]
ISSUER = "oidc.eks.eu-central-1.amazonaws.com/id/TEST"


@dataclass(frozen=True)
class Resource:
    """One registration: what the program asked the engine for."""

    type: str
    name: str
    urn: str
    inputs: dict[str, Any]
    protect: bool
    ignore_changes: list[str]
    depends_on: list[str]
    retain_on_delete: bool
    import_id: str
    replace_on_changes: list[str]
    delete_before_replace: bool
    hooks: list[str]
    """Before its creation, and before an update."""


@dataclass
class Program:
    """Everything one run declared and said."""

    resources: list[Resource] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def of_type(self, suffix: str) -> list[Resource]:
        """Resources whose type ends so, such as `eks/nodeGroup:NodeGroup`."""
        return [resource for resource in self.resources if resource.type.endswith(suffix)]

    def policies(self) -> dict[str, Any]:
        """Every policy document, by resource and property."""
        keys = ("policy", "assumeRolePolicy")
        texts = {f"{r.urn} {key}": r.inputs[key] for r in self.resources for key in keys if key in r.inputs}
        return {where: json.loads(text) for where, text in texts.items() if isinstance(text, str)}

    def one(self, suffix: str, name: str | None = None) -> Resource:
        """The only resource of that type (and name)."""
        found = [r for r in self.of_type(suffix) if name in (None, r.name)]
        assert len(found) == 1, f"{len(found)} resources {suffix} {name or ''}: {[r.name for r in found]}"
        return found[0]


class _Recorder(logging.Handler):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program

    def emit(self, record: logging.LogRecord) -> None:
        self._program.messages.append(record.getMessage())


class _Aws(mocks.Mocks):
    """Answers with the flat outputs that the program reads, and echoes the rest."""

    def __init__(
        self,
        last_outputs: Mapping[str, Any],
        standing: Mapping[str, Any] | None,
        offering: list[str],
        quotas: Mapping[str, float],
        nat_gateways: Sequence[str],
        retained: Sequence[str],
        published: Mapping[str, str],
        denied: Sequence[str],
        host: Mapping[str, Any] | None,
    ) -> None:
        self._host = host
        self._standing = standing
        self._quotas = quotas
        self._nat_gateways = list(nat_gateways)
        self._retained = [{"resourceArn": f"arn:aws:s3:::{bucket}"} for bucket in retained]
        self._last_outputs = last_outputs
        self._published = published
        self._denied = denied
        self._offering = offering

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]] | None]:
        answers: dict[str, dict[str, Any]] = {
            "pulumi:pulumi:readStackOutputs": {"outputs": dict(self._last_outputs), "secretOutputNames": []},
            "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": ACCOUNT, "arn": CALLER},
            "aws:cloudwatch/getLogGroups:getLogGroups": {"logGroupNames": []},
            "aws:resourcegroupstaggingapi/getResources:getResources": {"resourceTagMappingLists": self._retained},
            "aws:eks/getClusters:getClusters": {"names": []},
            "aws:eks/getClusterVersions:getClusterVersions": {"clusterVersions": SUPPORTED},
            "aws:eks/getAddonVersion:getAddonVersion": {"version": versions.ADDONS.get(args.args.get("addonName", ""))},
            "aws:iam/getSessionContext:getSessionContext": {"issuerArn": f"arn:aws:iam::{ACCOUNT}:role/deployer"},
            "aws:iam/getPrincipalPolicySimulation:getPrincipalPolicySimulation": {
                "results": self._simulated(args.args)
            },
            "aws:ec2/getVpcs:getVpcs": {"ids": ["vpc-default"]},
            "aws:ec2/getVpc:getVpc": {"cidrBlock": "172.31.0.0/16"},
            "aws:ec2/getEips:getEips": {"allocationIds": []},
            "aws:ec2/getNatGateways:getNatGateways": {"ids": self._nat_gateways},
            "aws:s3/getObject:getObject": {"checksumSha256": self._checksum(args.args)},
            "aws:index/getAvailabilityZones:getAvailabilityZones": {"names": ZONES},
            "aws:ec2/getSubnets:getSubnets": {"ids": ["subnet-of-another-stack"]},
            "aws:servicequotas/getServiceQuota:getServiceQuota": {"value": self._quota(args.args)},
            "aws:index/getRegion:getRegion": {"region": "eu-central-1"},
            "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": {"locations": self._offering},
            "aws:ssm/getParameter:getParameter": {"value": "ami-0123456789abcdef0"},
            "aws:ecr/getImage:getImage": {"imageDigest": args.args.get("imageDigest")},
            "aws:ecr/getAuthorizationToken:getAuthorizationToken": {"userName": "AWS", "password": "token"},
        }
        if self._standing:
            answers |= self._of_the_cluster(self._standing, args.args)
        return answers[args.token], []

    def _quota(self, asked: Mapping[str, Any]) -> float:
        return self._quotas.get(asked.get("quotaCode", ""), 64)

    def _simulated(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"actionName": name, "allowed": name not in self._denied} for name in asked.get("actionNames", [])]

    def _checksum(self, asked: Mapping[str, Any]) -> str:
        """As S3 has it; empty where there is no such object."""
        digest = self._published.get(asked.get("key", ""), "")
        return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()

    def _of_the_cluster(self, standing: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Subnets are named after their zones, private ones only."""
        vpc = {"vpcId": "vpc-1", "subnetIds": standing["zones"]}
        return {
            "aws:eks/getClusters:getClusters": {"names": [standing["cluster"]]},
            "aws:eks/getCluster:getCluster": {"version": standing["version"], "vpcConfig": vpc},
            "aws:ec2/getSubnets:getSubnets": {"ids": standing["zones"] + standing.get("addedZones", [])},
            "aws:ec2/getSubnet:getSubnet": {"availabilityZone": asked.get("id")},
            "aws:eks/getNodeGroups:getNodeGroups": {"names": list(standing["groups"])},
            "aws:eks/getNodeGroup:getNodeGroup": standing["groups"].get(asked.get("nodeGroupName")) or {},
        }

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        outputs = {"name": args.name, "arn": f"arn:aws:mock:::{args.name}"} | args.inputs
        match args.typ:
            case "pulumi:pulumi:StackReference":
                outputs |= {"outputs": self._host or {}, "secretOutputNames": []}
            case "eks:index:Cluster":
                outputs |= {"kubeconfigJson": "{}", "oidcIssuer": ISSUER, "clusterSecurityGroupId": "sg-1"}
            case "aws:eks/nodeGroup:NodeGroup":
                outputs |= {"resources": [{"autoscalingGroups": [{"name": f"asg-{args.name}"}]}]}
            case "aws:ec2/launchTemplate:LaunchTemplate":
                outputs |= {"latestVersion": crc32(json.dumps(args.inputs, sort_keys=True).encode())}
            case "aws:s3/bucket:Bucket":
                outputs |= {"arn": f"arn:aws:s3:::{args.name}"}
            case "aws:ec2/instance:Instance":
                outputs |= {"primaryNetworkInterfaceId": "eni-1"}
            case "aws:ecr/repository:Repository":
                outputs |= {"repositoryUrl": f"{ACCOUNT}.dkr.ecr/{args.name}", "registryId": ACCOUNT}
            case "docker-build:index:Image":
                outputs |= {"ref": f"{args.inputs['tags'][0]}@sha256:{'1' * 64}"}
            case "random:index/randomPassword:RandomPassword":
                outputs |= {"result": "not-a-secret"}
        return f"{args.name}-id", outputs


class _Monitor(mocks.MockMonitor):
    def __init__(self, answers: _Aws, program: Program) -> None:
        super().__init__(answers)
        self._program = program

    def RegisterResource(self, request: Any) -> Any:
        response = super().RegisterResource(request)
        if request.type == "pulumi:pulumi:Stack":
            return response  # the SDK's, not the program's
        inputs = pulumi.runtime.rpc.deserialize_properties(request.object)
        self._program.resources.append(
            Resource(
                request.type,
                request.name,
                response.urn,
                _plain(inputs),
                request.protect,
                list(request.ignoreChanges),
                list(request.dependencies),
                request.retainOnDelete,
                request.importId,
                list(request.replaceOnChanges),
                request.deleteBeforeReplace,
                [*request.hooks.before_create, *request.hooks.before_update],
            )
        )
        return response


_declared: dict[str, Program] = {}


def declare(stack: str, **options: Any) -> Program:
    """What the program declares with these options of `run`: run once for all tests, which only look at it."""
    asked = json.dumps([stack, options], sort_keys=True)
    if asked not in _declared:
        _declared[asked] = run(stack, **options)
    return _declared[asked]


def run(
    stack: str,
    *,
    preview: bool = False,
    last_outputs: Mapping[str, Any] | None = None,
    standing: Mapping[str, Any] | None = None,
    offering: list[str] | None = None,
    quotas: Mapping[str, float] | None = None,
    nat_gateways: Sequence[str] = (),
    retained: Sequence[str] = (),
    published: Mapping[str, str] | None = None,
    denied: Sequence[str] = (),
    host: Mapping[str, Any] | None = None,
    secrets: Sequence[str] = (),
    named: str | None = None,
    program: Program | None = None,
    **changes: Any,
) -> Program:
    """Runs the program. `last_outputs` are the stack's outputs of an earlier update; `standing` is the cluster in
    AWS with its node groups; `published` are the digests of manifests in the bucket, by key, `denied`
    the actions that IAM's simulator denies; `quotas` are those of the account that are not 64, by code, `nat_gateways` what each zone has; `changes` are config values.

    `host` are the outputs of the stack in whose cluster this one serves.

    The stack has the name of its file, or is `named`. A given `program` is filled, and so tells what was declared before an error.
    """
    program = program or Program()
    offered = ZONES if offering is None else offering
    answers = _Aws(
        last_outputs or {}, standing, offered, quotas or {}, nat_gateways, retained, published or {}, denied, host
    )
    logger = logging.getLogger(f"program-{id(program)}")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Recorder(program))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    mocks.set_mocks(
        answers,
        project=PROJECT,
        stack=named or stack,
        preview=preview,
        logger=logger,
        monitor=_Monitor(answers, program),
    )
    configured = {f"{PROJECT}:{key}": _as_text(value) for key, value in stack_values(stack, **changes).items()}
    provider_keys = {k: _as_text(v) for k, v in stack_file(stack).items() if k.startswith("aws:")}
    runtime_config.set_all_config(configured | provider_keys, [f"{PROJECT}:{key}" for key in secrets])

    @pulumi.runtime.test
    def deployed() -> None:
        from infra.program import deploy

        deploy()

    try:
        with _no_stack_traces():
            deployed()
    finally:
        loop.close()
    return program


def _no_stack_traces() -> Any:
    """Where in the source each resource is made is told to the engine, which takes half of all time; here nobody asks."""
    return patch.object(resource, "_get_stack_trace", source_pb2.StackTrace)


def _as_text(value: Any) -> str:
    """The CLI hands every value over as text, structured ones as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    """Without the secret marks."""
    if isinstance(value, dict):
        if value.get("4dabf18193072939515e22adb298388d"):
            return _plain(value.get("value"))
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def environment_in_pod(container: Mapping[str, Any]) -> dict[str, str]:
    """A container's variables as its process finds them, beside those that every pod has."""
    declared = {entry["name"]: entry.get("value", "known in the pod only") for entry in container["env"]}
    return {"KUBERNETES_SERVICE_HOST": "172.20.0.1", "KUBERNETES_SERVICE_PORT": "443"} | declared
