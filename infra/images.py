"""The images of our own code: one for the pods that serve, and where something is trained one that has torch."""

from __future__ import annotations

import json
from pathlib import Path

import pulumi
import pulumi_aws as aws
import pulumi_docker_build as docker_build

from infra import pinned_images
from infra.names import PROJECT

CONTAINERFILE = "images/loraserve/Containerfile"
TRAINING_CONTAINERFILE = "images/training/Containerfile"
_BUILD_CONTEXTS = Path(".build")
_KEPT_IMAGES = 20


class LoraserveImage(pulumi.ComponentResource):
    """An image of ours in a registry of the stack's own; pods run it by digest."""

    def __init__(
        self,
        name: str,
        *,
        containerfile: str = CONTAINERFILE,
        deletion_protection: bool,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:LoraserveImage", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        repository = aws.ecr.Repository(
            name, force_delete=not deletion_protection, image_scanning_configuration={"scan_on_push": True}, opts=child
        )
        aws.ecr.LifecyclePolicy(name, repository=repository.name, policy=_keep_latest(), opts=child)
        credentials = aws.ecr.get_authorization_token_output(registry_id=repository.registry_id)
        image = docker_build.Image(
            name,
            context={"location": str(build_context(Path(), Path(containerfile).parent))},
            dockerfile={"location": containerfile},
            build_args={"BASE": pinned_images.pinned(pinned_images.PYTHON)},
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


def build_context(checkout: Path, image: Path = Path(CONTAINERFILE).parent) -> Path:
    """A copy of what the build reads, with the same file modes everywhere.

    The provider's hash of a build covers them (pulumi-docker-build, `hashFile`): a checkout under another umask would be
    another image, and restart every pod that runs it.
    """
    context = checkout / _BUILD_CONTEXTS / image.name
    sources = [path for folder in (PROJECT, image) for path in (checkout / folder).rglob("*") if path.is_file()]
    wanted = {context / path.relative_to(checkout): path for path in sources if "__pycache__" not in path.parts}
    for left in [path for path in context.rglob("*") if path.is_file() and path not in wanted]:
        left.unlink()
    for copy, source in wanted.items():
        content = source.read_bytes()
        if not copy.exists() or copy.read_bytes() != content:  # another stack's build may be reading it
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        copy.chmod(0o644)
    return context


def _keep_latest() -> str:
    rule = {
        "rulePriority": 1,
        "description": f"keep the last {_KEPT_IMAGES}",
        "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": _KEPT_IMAGES},
        "action": {"type": "expire"},
    }
    return json.dumps({"rules": [rule]})


def loraserve_image(
    configured: str | None, there: pulumi.Input[str] | None, *, deletion_protection: bool
) -> pulumi.Output[str]:
    """The configured image, or that which is there, or one built and pushed by this update."""
    given = configured if configured else there
    if given is not None:
        return pulumi.Output.from_input(given)
    if deletion_protection:
        pulumi.log.warn(
            f"this stack builds an image of its own. Set {PROJECT}:loraserveImage to the output `image` of the stack that "
            "tried it out, and the same bytes run here (docs/operations.md)"
        )
    return LoraserveImage(PROJECT, deletion_protection=deletion_protection).ref


def training_image(configured: str | None, *, deletion_protection: bool) -> pulumi.Output[str]:
    """The same, of what trains: gigabytes, so only where something does."""
    if configured:
        return pulumi.Output.from_input(configured)
    name = f"{PROJECT}-training"
    return LoraserveImage(name, containerfile=TRAINING_CONTAINERFILE, deletion_protection=deletion_protection).ref
