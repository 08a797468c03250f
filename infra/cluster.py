"""The EKS cluster: API authentication, pinned networking add-ons, an OIDC provider, nothing by default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

import pulumi
import pulumi_aws as aws
import pulumi_eks as eks
import pulumi_kubernetes as k8s

from infra import versions
from infra.iam import AUDIENCE, TokenIssuer, WorkloadRole
from infra.names import EBS_CSI_SERVICE_ACCOUNT, GPU_TAINT, HTTPS_PORT, SYSTEM_NAMESPACE
from infra.network import Network
from infra.tags import stack_tag
from loraserve.planning.pod_resources import DCGM_SERVER
from loraserve.planning.setting_sections import ClusterAccess

LOG_RETENTION_DAYS = 30
_EBS_CSI_POLICY = "arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
_ACCESS_POLICIES = {
    "admin": "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy",
    "edit": "arn:aws:eks::aws:cluster-access-policy/AmazonEKSEditPolicy",
    "view": "arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy",
}


def kubernetes_provider(cluster: str, kubeconfig: pulumi.Input[str], after: Sequence[pulumi.Resource]) -> k8s.Provider:
    """Reaches the API of the cluster of this name. What it makes goes before `after` does."""
    return k8s.Provider(
        "kubernetes",
        kubeconfig=kubeconfig,
        cluster_identifier=cluster,
        enable_server_side_apply=True,
        enable_config_map_mutable=True,
        enable_secret_mutable=True,
        # What is declared here wins over what others write; what they own (an autoscaler's fields) is not declared.
        enable_patch_force=True,
        # An update that was killed is taken up by the next one, which finds objects it has no record of.
        upsert_existing_objects=True,
        opts=pulumi.ResourceOptions(depends_on=list(after)),
    )


class Cluster(pulumi.ComponentResource):
    """Control plane, VPC CNI and kube-proxy. CoreDNS follows the system nodes (`install_coredns`)."""

    def __init__(
        self,
        name: str,
        *,
        network: Network,
        access: Sequence[ClusterAccess],
        public_access_cidrs: Sequence[IPv4Network],
        private_access_cidrs: Sequence[IPv4Network],
        logs: Sequence[str],
        deletion_protection: bool,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("loraserve:infra:Cluster", name, None, opts)
        self.name = name
        child = pulumi.ResourceOptions(parent=self)
        log_group = self._create_log_group(f"/aws/eks/{name}/cluster")
        self.eks = eks.Cluster(
            name,
            name=name,
            version=versions.KUBERNETES,
            vpc_id=network.vpc.id,
            # Its zones are those of its creation: EKS takes no others later.
            private_subnet_ids=[network.private_subnets[zone] for zone in network.zones.cluster],
            public_subnet_ids=[network.public_subnets[zone] for zone in network.zones.cluster],
            authentication_mode=eks.AuthenticationMode.API,
            access_entries={entry.name: _access_entry(entry) for entry in access},
            endpoint_private_access=True,
            endpoint_public_access=bool(public_access_cidrs),
            public_access_cidrs=[str(cidr) for cidr in public_access_cidrs] or None,
            enabled_cluster_log_types=list(logs),
            upgrade_policy={"support_type": "STANDARD"},
            skip_default_node_group=True,
            skip_default_security_groups=True,
            create_oidc_provider=False,
            vpc_cni_options=eks.VpcCniOptionsArgs(
                addon_version=versions.VPC_CNI, enable_network_policy=True, enable_prefix_delegation=True
            ),
            kube_proxy_addon_options=eks.KubeProxyAddonOptionsArgs(version=versions.KUBE_PROXY),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[log_group, network], protect=deletion_protection),
        )
        for cidr in private_access_cidrs:
            aws.vpc.SecurityGroupIngressRule(
                f"{name}-api-from-{cidr}",
                security_group_id=self.eks.cluster_security_group_id,
                ip_protocol="tcp",
                from_port=HTTPS_PORT,
                to_port=HTTPS_PORT,
                cidr_ipv4=str(cidr),
                opts=child,
            )
        issuer = self.eks.oidc_issuer
        provider = aws.iam.OpenIdConnectProvider(
            name, url=issuer.apply(lambda issuer: f"https://{issuer}"), client_id_lists=[AUDIENCE], opts=child
        )
        self.tokens = TokenIssuer(provider.arn, issuer)
        self.kubeconfig = self.eks.kubeconfig_json
        self.register_outputs({"name": name, "kubeconfig": self.kubeconfig})

    def _create_log_group(self, log_group: str) -> aws.cloudwatch.LogGroup:
        """EKS writes its last lines after `destroy` has deleted the group, and so makes it anew: that one is adopted."""
        found = aws.cloudwatch.get_log_groups(log_group_name_prefix=log_group).log_group_names or []
        return aws.cloudwatch.LogGroup(
            self.name,
            name=log_group,
            retention_in_days=LOG_RETENTION_DAYS,
            opts=pulumi.ResourceOptions(parent=self, import_=log_group if log_group in found else None),
        )

    def install_coredns(self, nodes: pulumi.Resource) -> aws.eks.Addon:
        """CoreDNS over the self-managed one that EKS starts with; its pods need the system nodes."""
        return self._install_addon("coredns", versions.COREDNS, nodes, configuration={"replicaCount": 2})

    def install_ebs_csi_driver(self, nodes: pulumi.Resource) -> aws.eks.Addon:
        """The EBS CSI driver with a role of its own, for stacks that ask for a volume."""
        role = WorkloadRole(
            f"{self.name}-ebs-csi",
            tokens=self.tokens,
            namespace=SYSTEM_NAMESPACE,
            service_account=EBS_CSI_SERVICE_ACCOUNT,
            managed_policy_arn=_EBS_CSI_POLICY,
            opts=pulumi.ResourceOptions(parent=self),
        )
        tagged = {"controller": {"extraVolumeTags": stack_tag()}}
        return self._install_addon(
            "aws-ebs-csi-driver", versions.EBS_CSI_DRIVER, nodes, configuration=tagged, role=role
        )

    def install_node_monitoring_agent(self, nodes: pulumi.Resource) -> aws.eks.Addon:
        """Finds what node auto repair acts on beyond a silent kubelet: a GPU's Xid errors, the kernel, disks, networking.

        The part that speaks to the GPU tolerates nothing by itself, and the agent calls a GPU broken that it cannot ask.
        """
        gpu_part = {"tolerations": [GPU_TAINT.toleration()], "resources": {"requests": DCGM_SERVER.quantities()}}
        return self._install_addon(
            "eks-node-monitoring-agent",
            versions.NODE_MONITORING_AGENT,
            nodes,
            configuration={"dcgmAgent": gpu_part},
        )

    def _install_addon(
        self,
        addon: str,
        version: str,
        nodes: pulumi.Resource,
        *,
        configuration: dict[str, Any] | None = None,
        role: WorkloadRole | None = None,
    ) -> aws.eks.Addon:
        return aws.eks.Addon(
            f"{self.name}-{addon}",
            cluster_name=self.name,
            addon_name=addon,
            addon_version=version,
            configuration_values=json.dumps(configuration) if configuration else None,
            resolve_conflicts_on_create="OVERWRITE",
            resolve_conflicts_on_update="OVERWRITE",
            service_account_role_arn=role.arn if role else None,
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[nodes, *([role] if role else [])],
                # One that never became healthy is made anew; the cluster has it once only.
                replace_on_changes=["#initerror"],
                delete_before_replace=True,
            ),
        )


def _access_entry(entry: ClusterAccess) -> eks.AccessEntryArgs:
    association = eks.AccessPolicyAssociationArgs(
        policy_arn=_ACCESS_POLICIES[entry.policy],
        access_scope=aws.eks.AccessPolicyAssociationAccessScopeArgs(type="cluster"),
    )
    return eks.AccessEntryArgs(
        principal_arn=entry.principal_arn, access_policies={entry.policy: association}, tags=stack_tag()
    )
