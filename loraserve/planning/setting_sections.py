"""Structured settings that are this program's own; those of a subject with a module of its own are beside it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from loraserve.contract.base_model import Mirror
from loraserve.contract.document import AdapterName, HubId, PathSegment
from loraserve.contract.training import Training
from loraserve.planning.instance_types import GPU_INSTANCE_TYPES, GpuInstanceType
from loraserve.planning.setting_values import (
    Arn,
    OneGpuInstanceType,
    OptionalText,
    Schedule,
    Text,
    Url,
    refuse_duplicates,
)

_LONGEST_EVALUATED_NAME = 40
"""A CronJob's name has at most 52 characters, so that those of its Jobs have 63."""


def _unique_jobs(jobs: tuple[TrainingJob, ...]) -> tuple[TrainingJob, ...]:
    refuse_duplicates([f"{job.model} {job.version}" for job in jobs], "jobs", "a version is trained once")
    return jobs


class Section(BaseModel):
    """Frozen, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ClusterAccess(Section):
    """Who may use the cluster's API, as an EKS access entry."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
    principal_arn: Arn
    policy: Literal["admin", "edit", "view"] = "view"


class Budget(Section):
    """An AWS budget of the whole account, and whom it writes to."""

    dollars_per_month: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    emails: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$")], ...], Field(min_length=1, max_length=10)
    ]


class TrainingBase(Section):
    """The weights that adapters are trained on, where those that serve are quantised: another id of the same model."""

    name: HubId
    revision: Text | None = None
    """Of the hub's; or else `mirror`, as `loraserve mirror` prints it."""
    mirror: Mirror | None = None

    @model_validator(mode="after")
    def _pinned_once(self) -> Self:
        if (self.revision is None) == (self.mirror is None):
            raise ValueError("give a revision, the full commit hash, or a mirror, one of the two")
        return self


class ClusterEvaluation(Section):
    """An evaluation that runs in the cluster: by schedule, or whenever somebody makes a Job of it."""

    adapter: Annotated[AdapterName, StringConstraints(max_length=_LONGEST_EVALUATED_NAME)]
    file: Text
    """Path of the evaluation, relative to Pulumi.yaml."""
    schedule: Schedule = None
    """Cron's five fields, UTC; None: only when it is asked for."""


class TrainingJob(Section):
    """An adapter that is trained in the cluster, once, and published."""

    name: AdapterName
    model: PathSegment
    version: PathSegment
    settings: Training
    """As in the file of `loraserve train`."""

    @field_validator("settings")
    @classmethod
    def _reachable(cls, settings: Training) -> Training:
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/.+", settings.rows):
            raise ValueError("rows: in the cluster they are read from S3: give s3://bucket/key")
        if settings.evaluations:
            raise ValueError(
                "evaluations: are files of yours: compare with `loraserve train --dry-run`, and leave them out here"
            )
        return settings

    @property
    def rows_arn(self) -> str:
        """What follows the partition."""
        return f"s3:::{self.settings.rows.removeprefix('s3://')}"


class TrainingGroup(Section):
    """GPU nodes that are there while something is trained: at most one, of a type of its own."""

    instance_type: OneGpuInstanceType = "g6.xlarge"
    image: OptionalText = None
    """None: built by `up`."""
    jobs: Annotated[tuple[TrainingJob, ...], AfterValidator(_unique_jobs)] = ()

    @property
    def instance(self) -> GpuInstanceType:
        return GPU_INSTANCE_TYPES[self.instance_type]


class Local(Section):
    """What one machine has in the place of the cloud; without it, everything is the cloud's."""

    vllm_device: Literal["gpu", "cpu"] = "gpu"
    """cpu: the image has vLLM's CPU build. The pod is placed by the same rules."""
    single_node: bool = False
    """There is one node for all pods, and it carries the GPU group's taint."""
    adapters_in_memory: Annotated[int, Field(ge=1)] | None = None
    """How many adapters vLLM keeps in memory, where the pod would have room for more."""
    aws_endpoint_url: Url | None = None
    """Address of an emulated AWS that pods use instead of the real one."""
