"""What a single value of a setting may be: types that refuse any other, and say what to give."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from loraserve.contract.addresses import SERVING_NAMESPACE, stack_name_problem
from loraserve.planning import traces
from loraserve.planning.envelope import SLOT_STEPS
from loraserve.planning.extra_args import read_levers
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, SYSTEM_INSTANCE_TYPES
from loraserve.planning.vllm_parsers import REASONING_PARSERS, TOOL_CALL_PARSERS

OCI = "oci://"
"""How the address of charts in an image registry begins."""
_MAX_VPC_PREFIX = 20
"""A smaller VPC leaves fewer than 1,024 addresses per zone."""
_CRON = re.compile(r"@(hourly|daily|midnight|weekly|monthly)|([\d*,/A-Za-z-]+ ){4}[\d*,/A-Za-z-]+")
_LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653)
_INSTANCE_TYPES = "loraserve/planning/instance_types.py"


def refuse_duplicates(names: Sequence[str], what: str, fix: str) -> None:
    """Raises ValueError."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two {what} have the name {', '.join(twice)}: {fix}")


def _known_namespaces(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise ValueError(f"{name!r} is no Kubernetes namespace: give lower-case letters, digits and inner hyphens")
    if SERVING_NAMESPACE in names:
        raise ValueError(
            f"{SERVING_NAMESPACE} is where the model runs, which no pod of it leaves: give the clients' own"
        )
    return names


def _certificate(arn: str | None) -> str | None:
    if arn and not re.fullmatch(r"arn:aws[a-z-]*:acm:[a-z0-9-]+:\d{12}:certificate/.+", arn):
        raise ValueError("give the ARN of an ACM certificate, or leave it empty for no load balancer")
    return arn


def _days_that_cloudwatch_knows(days: int) -> int:
    if days and days not in _LOG_DAYS:
        raise ValueError(f"CloudWatch keeps logs for {', '.join(map(str, _LOG_DAYS))} days: give one of these, or 0")
    return days


def _stack(name: str | None) -> str | None:
    if name and (problem := stack_name_problem(name)):
        raise ValueError(problem)
    return name


def _bucket_or_folder(state: str | None) -> str | None:
    if state and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.-]+)*", state):
        raise ValueError("give what follows s3:// in your `pulumi login`, such as acme-pulumi-state, or leave it empty")
    return state


def _cron(schedule: str | None) -> str | None:
    if schedule and not _CRON.fullmatch(schedule):
        raise ValueError("give cron's five fields (minute, hour, day, month, weekday; UTC), such as '0 3 * * 0'")
    return schedule


def _kms_key(arn: str | None) -> str | None:
    if arn and not re.fullmatch(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+", arn):
        raise ValueError("give the ARN of the key itself (…:key/…), not of its alias, or leave it empty")
    return arn


def _roomy_vpc(cidr: IPv4Network) -> IPv4Network:
    if not 16 <= cidr.prefixlen <= _MAX_VPC_PREFIX or not cidr.is_private:
        raise ValueError(f"use a private range between /16 and /{_MAX_VPC_PREFIX}, such as 10.0.0.0/16")
    return cidr


def _known_system_type(name: str) -> str:
    if name not in SYSTEM_INSTANCE_TYPES:
        raise ValueError(f"choose one of {', '.join(SYSTEM_INSTANCE_TYPES)}, or add its shape to {_INSTANCE_TYPES}")
    return name


def _known_gpu_type(name: str) -> str:
    if name not in GPU_INSTANCE_TYPES:
        why = "has no GPU" if name in SYSTEM_INSTANCE_TYPES else "is not a known instance type"
        raise ValueError(f"{why}; choose one of {', '.join(GPU_INSTANCE_TYPES)}, or add its shape to {_INSTANCE_TYPES}")
    return name


def _known_arguments(args: tuple[str, ...]) -> tuple[str, ...]:
    read_levers(args)
    return args


def _short_list(slots: int | None) -> int | None:
    if slots and slots not in SLOT_STEPS:
        listed = ", ".join(map(str, SLOT_STEPS))
        raise ValueError(
            f"vLLM compiles anew for each number: choose one of {listed}, 0 for no LoRA, or leave it empty"
        )
    return slots


def _with_one_gpu(name: str) -> str:
    if GPU_INSTANCE_TYPES[name].gpus > 1:
        single = [other.name for other in GPU_INSTANCE_TYPES.values() if other.gpus == 1]
        raise ValueError(f"a training uses one GPU: choose one of {', '.join(single)}")
    return name


def _readable_template(path: str | None) -> str | None:
    if path and not Path(path).is_file():
        raise ValueError("there is no such file; give a Jinja file's path relative to Pulumi.yaml, or leave it empty")
    return path


def _registered(parsers: Collection[str]) -> Callable[[str | None], str | None]:
    def check(name: str | None) -> str | None:
        if name and name not in parsers:
            raise ValueError(f"vLLM has no such parser; choose one of {', '.join(sorted(parsers))}, or leave it empty")
        return name

    return check


def _chart_address(address: str | None) -> str | None:
    if address and not re.fullmatch(rf"(https?://|{OCI})[^/\s]\S*", address):
        raise ValueError(
            "give the address of a Helm repository (https://…) or of a folder in an image registry (oci://…) that has all "
            "the charts, or leave it empty for the charts' own repositories"
        )
    return address and address.rstrip("/")


def _two_or_three_zones(zones: tuple[str, ...]) -> tuple[str, ...]:
    if zones and len(set(zones)) not in (2, 3):
        raise ValueError("name two or three different zones, or none to have them chosen")
    return zones


Text = Annotated[str, StringConstraints(min_length=1)]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: value or None)]
"""Pulumi.yaml cannot say 'no default': an empty text stands for none."""
OptionalShare = Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(lambda value: value or None)]
OptionalHours = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, BeforeValidator(lambda value: value or None)
]
OptionalSeconds = Annotated[
    Annotated[int, Field(ge=1)] | None, BeforeValidator(lambda value: None if value == "" else value)
]
Arn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:(role|user)/.+$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
LogDays = Annotated[int, AfterValidator(_days_that_cloudwatch_knows)]
Log = Literal["api", "audit", "authenticator", "controllerManager", "scheduler"]

VpcCidr = Annotated[IPv4Network, AfterValidator(_roomy_vpc)]
Zones = Annotated[tuple[str, ...], AfterValidator(_two_or_three_zones)]
Namespaces = Annotated[tuple[str, ...], AfterValidator(_known_namespaces)]
StackName = Annotated[OptionalText, AfterValidator(_stack)]
StateLocation = Annotated[OptionalText, AfterValidator(_bucket_or_folder)]
KmsKeyArn = Annotated[OptionalText, AfterValidator(_kms_key)]
CertificateArn = Annotated[OptionalText, AfterValidator(_certificate)]
ChartRepository = Annotated[OptionalText, AfterValidator(_chart_address)]
CollectorAddress = Annotated[OptionalText, AfterValidator(traces.endpoint)]
Scenario = Annotated[
    Literal["phases", "tenants", "overload", "sweep"] | None, BeforeValidator(lambda value: value or None)
]
"""Of `loraserve loadtest`."""
Schedule = Annotated[OptionalText, AfterValidator(_cron)]

SystemInstanceType = Annotated[str, AfterValidator(_known_system_type)]
GpuInstanceTypeName = Annotated[str, AfterValidator(_known_gpu_type)]
OneGpuInstanceType = Annotated[GpuInstanceTypeName, AfterValidator(_with_one_gpu)]

AdapterSlots = Annotated[
    Annotated[int, Field(ge=0)] | None,
    BeforeValidator(lambda value: None if value == "" else value),
    AfterValidator(_short_list),
]
TemplateFile = Annotated[OptionalText, AfterValidator(_readable_template)]
ToolCallParser = Annotated[OptionalText, AfterValidator(_registered(TOOL_CALL_PARSERS))]
ReasoningParser = Annotated[OptionalText, AfterValidator(_registered(REASONING_PARSERS))]
VllmArguments = Annotated[tuple[str, ...], AfterValidator(_known_arguments)]
