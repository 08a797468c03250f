"""The one tag by which what a stack has, and what it has left behind, is found: on everything that AWS can tag."""

from __future__ import annotations

from typing import Any

import pulumi

from loraserve.contract.addresses import RETAINED_TAG, STACK_TAG


def stack_tag() -> dict[str, str]:
    """For what the program does not make itself: instances, their volumes and interfaces, volumes of Kubernetes."""
    return {STACK_TAG: pulumi.get_stack()}


def retained_tag() -> dict[str, str]:
    """For what `destroy` keeps."""
    return {RETAINED_TAG: "true"}


def tag_everything() -> None:
    """From now on each AWS resource with tags has the stack's. The program does it, since a stack file may be a copy."""
    pulumi.runtime.register_stack_transformation(_with_stack_tag)


def _with_stack_tag(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
    """The generated classes list every property that there is, those not given as None; components take `tags` as well."""
    if not args.type_.startswith(("aws:", "eks:")) or "tags" not in args.props:
        return None
    own: Any = args.props["tags"] or {}
    return pulumi.ResourceTransformationResult(props={**args.props, "tags": own | stack_tag()}, opts=args.opts)
