"""The images: vLLM's official one at the pinned version, and our own, built from one Containerfile."""

from __future__ import annotations

import json

import pulumi
import pulumi_aws as aws
import pulumi_docker_build as docker_build

from infra import versions
from infra.names import PROJECT

VLLM_IMAGE = f"vllm/vllm-openai:v{versions.VLLM}"
"""The official one; since CUDA 13 became its default it needs a driver of at least 580."""
CONTAINERFILE = "images/loraserve/Containerfile"
_KEPT_IMAGES = 20


class LoraserveImage(pulumi.ComponentResource):
    """Our image in a registry of the stack's own; pods run it by digest."""

    def __init__(self, name: str, *, deletion_protection: bool, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("loraserve:infra:LoraserveImage", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        repository = aws.ecr.Repository(
            name, force_delete=not deletion_protection, image_scanning_configuration={"scan_on_push": True}, opts=child
        )
        aws.ecr.LifecyclePolicy(name, repository=repository.name, policy=_keep_latest(), opts=child)
        credentials = aws.ecr.get_authorization_token_output(registry_id=repository.registry_id)
        image = docker_build.Image(
            name,
            context={"location": "."},
            dockerfile={"location": CONTAINERFILE},
            build_args={"BASE": versions.PYTHON_IMAGE},
            platforms=[docker_build.Platform.LINUX_AMD64],
            push=True,
            tags=[pulumi.Output.concat(repository.repository_url, ":latest")],
            registries=[
                {
                    "address": repository.repository_url,
                    "username": credentials.user_name,
                    "password": pulumi.Output.secret(credentials.password),
                }
            ],
            opts=child,
        )
        self.ref = image.ref
        self.register_outputs({"ref": self.ref})


def _keep_latest() -> str:
    rule = {
        "rulePriority": 1,
        "description": f"keep the last {_KEPT_IMAGES}",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": _KEPT_IMAGES},
        "action": {"type": "expire"},
    }
    return json.dumps({"rules": [rule]})


def loraserve_image(configured: str | None, *, deletion_protection: bool) -> pulumi.Output[str]:
    """The configured image, or one built and pushed by this update."""
    if configured:
        return pulumi.Output.from_input(configured)
    return LoraserveImage(PROJECT, deletion_protection=deletion_protection).ref
