"""A way in from the VPC: an internal load balancer with TLS, declared here, so that nothing of it outlives `destroy`.

It hands requests to a port of the system nodes, in TLS again: a key is never in clear on a wire. It is an application
load balancer: a network load balancer's TLS listener cuts what is silent for 350 s, and no setting changes that.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as k8s

from infra.cluster import Cluster
from infra.names import (
    GATEWAY_ENDPOINT,
    GATEWAY_SELECTOR,
    GATEWAY_TLS_PORT,
    HTTPS_PORT,
    PROJECT,
    SYSTEM_NODE_GROUP,
)
from infra.network import Network
from infra.node_groups import NodeGroups, autoscaling_group_name

NODE_PORT = 30443
_BALANCER = f"{PROJECT}-gateway"
"""AWS takes 32 characters, which the name of a stack may fill; the tag says whose it is."""
_TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"


class InternalEndpoint(pulumi.ComponentResource):
    """The load balancer, its listener, and the node port behind it."""

    def __init__(
        self,
        name: str,
        *,
        certificate_arn: str,
        idle_seconds: int,
        network: Network,
        cluster: Cluster,
        nodes: NodeGroups,
        namespace: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:InternalEndpoint", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        service = k8s.core.v1.Service(
            GATEWAY_ENDPOINT,
            metadata={"name": GATEWAY_ENDPOINT, "namespace": namespace},
            spec={
                "type": "NodePort",
                "selector": GATEWAY_SELECTOR,
                "ports": [{"port": HTTPS_PORT, "target_port": GATEWAY_TLS_PORT, "node_port": NODE_PORT}],
            },
            opts=child,
        )
        balancer = aws.lb.LoadBalancer(
            _BALANCER,
            internal=True,
            load_balancer_type="application",
            subnets=list(network.private_subnets.values()),
            security_groups=[self._admit_the_vpc(name, network, cluster).id],
            idle_timeout=idle_seconds,
            drop_invalid_header_fields=True,
            opts=child,
        )
        targets = aws.lb.TargetGroup(
            _BALANCER,
            port=NODE_PORT,
            protocol="HTTPS",
            target_type="instance",
            vpc_id=network.vpc.id,
            # A gateway refuses whoever has no key, and so shows that it answers.
            health_check={"protocol": "HTTPS", "path": "/v1/models", "matcher": "401", "interval": 10},
            opts=child,
        )
        aws.lb.Listener(
            _BALANCER,
            load_balancer_arn=balancer.arn,
            port=HTTPS_PORT,
            protocol="HTTPS",
            certificate_arn=certificate_arn,
            ssl_policy=_TLS_POLICY,
            default_actions=[{"type": "forward", "target_group_arn": targets.arn}],
            opts=child,
        )
        aws.autoscaling.Attachment(
            f"{name}-{SYSTEM_NODE_GROUP}",
            autoscaling_group_name=nodes.system.resources.apply(autoscaling_group_name),
            lb_target_group_arn=targets.arn,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[service]),
        )
        self.host_name = balancer.dns_name
        self.register_outputs({"hostName": self.host_name})

    def _admit_the_vpc(self, name: str, network: Network, cluster: Cluster) -> aws.ec2.SecurityGroup:
        """Clients in the VPC reach the balancer, the balancer reaches the nodes' port, and nothing else."""
        child = pulumi.ResourceOptions(parent=self)
        group = aws.ec2.SecurityGroup(name, vpc_id=network.vpc.id, description="Internal load balancer", opts=child)
        aws.vpc.SecurityGroupIngressRule(
            f"{name}-from-vpc",
            security_group_id=group.id,
            ip_protocol="tcp",
            from_port=HTTPS_PORT,
            to_port=HTTPS_PORT,
            cidr_ipv4=network.vpc.cidr_block,
            opts=child,
        )
        between = {"ip_protocol": "tcp", "from_port": NODE_PORT, "to_port": NODE_PORT}
        nodes = cluster.eks.cluster_security_group_id
        aws.vpc.SecurityGroupEgressRule(
            f"{name}-to-nodes", **between, security_group_id=group.id, referenced_security_group_id=nodes, opts=child
        )
        aws.vpc.SecurityGroupIngressRule(
            f"{name}-into-nodes", **between, security_group_id=nodes, referenced_security_group_id=group.id, opts=child
        )
        return group
