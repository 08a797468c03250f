"""Every version this program pins, once. Raising one is a reviewed diff; nothing here floats."""

from __future__ import annotations

from typing import Literal

VLLM = "0.32.0"
"""The image tag derives from it; a test holds the CPU build and the group `vllm` to it."""

KUBERNETES = "1.35"
"""Standard support ends 2027-03-27; the Cluster Autoscaler's minor version follows it."""

NODE_RELEASE = "1.35.6-20260714"
"""Of the EKS AMIs that nodes and the NAT instance start from; the newest is the first entry of amazon-eks-ami's CHANGELOG.

Raising it replaces the nodes one by one at the next `up`, which `preview` announces.
"""

# EKS add-ons for that Kubernetes version.
VPC_CNI = "v1.22.3-eksbuild.1"
"""1.21 can drop all traffic of pods on a fresh node where network policies are on (aws-network-policy-agent#570)."""
KUBE_PROXY = "v1.35.0-eksbuild.2"
COREDNS = "v1.13.2-eksbuild.1"
EBS_CSI_DRIVER = "v1.56.0-eksbuild.1"
NODE_MONITORING_AGENT = "v1.7.0-eksbuild.1"
ADDONS = {
    "vpc-cni": VPC_CNI,
    "kube-proxy": KUBE_PROXY,
    "coredns": COREDNS,
    "aws-ebs-csi-driver": EBS_CSI_DRIVER,
    "eks-node-monitoring-agent": NODE_MONITORING_AGENT,
}

CLUSTER_AUTOSCALER_IMAGE = "v1.35.2"
PYTHON_IMAGE = "python:3.12.12-slim-bookworm"
"""Base of the image that holds our own code."""


def node_image(architecture: Literal["x86_64", "arm64"], variant: Literal["standard", "nvidia"]) -> str:
    """SSM's name of the EKS AMI of the nodes' release."""
    date = NODE_RELEASE.partition("-")[2]
    family = f"/aws/service/eks/optimized-ami/{KUBERNETES}/amazon-linux-2023/{architecture}/{variant}"
    return f"{family}/amazon-eks-node-al2023-{architecture}-{variant}-{KUBERNETES}-v{date}/image_id"
