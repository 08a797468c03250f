"""EKS: add-ons, access entries, version updates, and node groups with a real Auto Scaling group behind them."""

from __future__ import annotations

import uuid
from typing import Any

from moto.autoscaling.models import autoscaling_backends
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.eks import urls
from moto.eks.exceptions import ResourceNotFoundException
from moto.eks.models import Cluster, Nodegroup

from local.stand_ins.moto_gaps.eks_access import AccessCalls
from local.stand_ins.moto_gaps.eks_addons import AddonCalls
from local.stand_ins.moto_gaps.eks_base import DEFAULT_VERSION, addons, entries, updated

_KUBERNETES_VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36")
_CLUSTER = "clusters/(?P<name>[^/]+)"
_PATHS = (
    f"{_CLUSTER}/access-entries",
    f"{_CLUSTER}/access-entries/(?P<principalArn>.+)",
    f"{_CLUSTER}/addons",
    f"{_CLUSTER}/addons/(?P<addonName>[^/]+)",
    f"{_CLUSTER}/addons/(?P<addonName>[^/]+)/update",
    f"{_CLUSTER}/node-groups/(?P<nodegroupName>[^/]+)/update-version",
    f"{_CLUSTER}/updates",
)


def install() -> None:
    """Routes every EKS call of the server, those that moto knows and those it lacks, to `EksWithGaps`."""
    dispatch = EksWithGaps.dispatch
    urls.url_paths.update(dict.fromkeys(urls.url_paths, dispatch))
    urls.url_paths.update({f"{{0}}/{path}$": dispatch for path in _PATHS})


class EksWithGaps(AddonCalls, AccessCalls):
    """moto's EKS calls plus the missing ones."""

    def create_cluster(self) -> ActionResult:
        self.refuse(self.params.get("version", DEFAULT_VERSION) not in _KUBERNETES_VERSIONS, "unsupported version")
        vpc_id = self._vpc_of_two_zones(self.params["resourcesVpcConfig"]["subnetIds"])
        super().create_cluster()
        cluster = self.cluster()
        cluster.version = self.params.get("version", DEFAULT_VERSION)
        cluster.identity = {"oidc": {"issuer": _issuer(self.region)}}
        given = self.params.get("accessConfig", {})
        _set(
            cluster,
            access_config={"authenticationMode": "CONFIG_MAP"} | given,
            upgrade_policy={"supportType": "EXTENDED"} | self.params.get("upgradePolicy", {}),
            addons={},
            access_entries={},
        )
        endpoint = {
            "endpointPublicAccess": True,
            "endpointPrivateAccess": False,
            "publicAccessCidrs": ["0.0.0.0/0"],
            "securityGroupIds": [],
            "vpcId": vpc_id,
            "clusterSecurityGroupId": self._security_group(cluster.name, vpc_id),
        }
        cluster.resources_vpc_config = endpoint | cluster.resources_vpc_config
        return ActionResult({"cluster": cluster})

    def update_cluster_config(self) -> ActionResult:
        cluster = self.cluster()
        cluster.resources_vpc_config |= self.params.get("resourcesVpcConfig", {})
        cluster.logging = self.params.get("logging", cluster.logging)
        _set(
            cluster,
            access_config=vars(cluster)["access_config"] | self.params.get("accessConfig", {}),
            upgrade_policy=vars(cluster)["upgrade_policy"] | self.params.get("upgradePolicy", {}),
        )
        return updated("ConfigUpdate")

    def update_cluster_version(self) -> ActionResult:
        cluster, version = self.cluster(), self.params["version"]
        self.refuse(version not in _KUBERNETES_VERSIONS, f"unsupported version {version}")
        self.refuse(_minor(version) != _minor(cluster.version) + 1, "a version update goes one minor version up")
        cluster.version = version
        return updated("VersionUpdate")

    def delete_cluster(self) -> ActionResult:
        cluster = self.cluster()
        answer = super().delete_cluster()
        group = cluster.resources_vpc_config["clusterSecurityGroupId"]
        self._ec2.delete_security_group(group_id=group)
        return answer

    def create_nodegroup(self) -> ActionResult:
        cluster = self.cluster()
        self._check_sizes(self.params["scalingConfig"])
        super().create_nodegroup()
        group = cluster.nodegroups[self.params["nodegroupName"]]
        group.version = self.params.get("version", cluster.version)
        _set(
            group,
            update_config={"maxUnavailable": 1} | self.params.get("updateConfig", {}),
            remote_access=None,
            node_repair_config=self.params.get("nodeRepairConfig"),
            warm_pool_config=self.params.get("warmPoolConfig"),
        )
        group.release_version = self.params.get("releaseVersion", f"{group.version}.0-20260101")
        self._start_nodes(cluster, group)
        self._admit_nodes(cluster, group.node_role)
        self._let_nodes_join(group)
        return ActionResult({"nodegroup": group})

    def update_nodegroup_config(self) -> ActionResult:
        self._check_sizes(self._node_group().scaling_config | self.params.get("scalingConfig", {}))
        answer = super().update_nodegroup_config()
        group = self._node_group()
        _set(group, warm_pool_config=self.params.get("warmPoolConfig", vars(group)["warm_pool_config"]))
        scaling = group.scaling_config
        asg = self._autoscaling.autoscaling_groups[_asg_name(group)]
        asg.min_size, asg.max_size = scaling["minSize"], scaling["maxSize"]
        asg.set_desired_capacity(scaling["desiredSize"])
        return answer

    def update_nodegroup_version(self) -> ActionResult:
        group = self._node_group()
        group.version = self.params.get("version", self.cluster().version)
        group.release_version = self.params.get("releaseVersion", group.release_version)
        group.launch_template = self.params.get("launchTemplate", group.launch_template)
        return updated("VersionUpdate")

    def delete_nodegroup(self) -> ActionResult:
        cluster, group = self.cluster(), self._node_group()
        self._autoscaling.delete_auto_scaling_group(_asg_name(group))
        self._ec2.delete_launch_template(name=_asg_name(group), tid=None)
        answer = super().delete_nodegroup()
        if all(other.node_role != group.node_role for other in cluster.nodegroups.values()):
            entries(cluster).pop(group.node_role, None)
        return answer

    def tag_resource(self) -> ActionResult:
        self._tags().update(self.params["tags"])
        return ActionResult({})

    def untag_resource(self) -> ActionResult:
        tags = self._tags()
        for key in self.params["tagKeys"]:
            tags.pop(key, None)
        return ActionResult({})

    def list_tags_for_resource(self) -> ActionResult:
        return ActionResult({"tags": self._tags()})

    @property
    def _ec2(self) -> Any:
        return ec2_backends[self.current_account][self.region]

    @property
    def _autoscaling(self) -> Any:
        return autoscaling_backends[self.current_account][self.region]

    def _node_group(self) -> Nodegroup:
        return self.eks_backend.describe_nodegroup(self.cluster().name, self._get_param("nodegroupName"))

    def _tags(self) -> dict[str, str]:
        """The tags of whatever has the call's ARN."""
        wanted = self.params["resourceArn"]
        for cluster in self.eks_backend.clusters.values():
            if cluster.arn == wanted:
                return cluster.tags
            for group in cluster.nodegroups.values():
                if group.arn == wanted:
                    return group.tags
            for item in (*addons(cluster).values(), *entries(cluster).values()):
                if wanted in (item.get("addonArn"), item.get("accessEntryArn")):
                    return item["tags"]
        raise ResourceNotFoundException(message=f"Resource was not found: {wanted}")

    def _vpc_of_two_zones(self, subnet_ids: list[str]) -> str:
        subnets = self._ec2.describe_subnets(subnet_ids=subnet_ids)
        zones = {subnet.availability_zone for subnet in subnets}
        self.refuse(len(zones) < 2, "Subnets specified must be in at least two different AZs")
        return subnets[0].vpc_id

    def _security_group(self, cluster: str, vpc_id: str) -> str:
        name = f"eks-cluster-sg-{cluster}-{uuid.uuid4().hex[:8]}"
        tags = {f"kubernetes.io/cluster/{cluster}": "owned"}
        return self._ec2.create_security_group(name, "EKS created security group", vpc_id=vpc_id, tags=tags).id

    def _start_nodes(self, cluster: Cluster, group: Nodegroup) -> None:
        """EKS copies the launch template, adds its image, and runs an Auto Scaling group of its own from it."""
        name = _asg_name(group)
        security_group = cluster.resources_vpc_config["clusterSecurityGroupId"]
        image = next(iter(self._ec2.amis))
        data = {"ImageId": image, "InstanceType": group.instance_types[0], "SecurityGroupIds": [security_group]}
        self._ec2.create_launch_template(name, "", data, {})
        owned = {f"kubernetes.io/cluster/{cluster.name}": "owned", "eks:nodegroup-name": group.nodegroup_name}
        self._autoscaling.create_auto_scaling_group(
            name=name,
            availability_zones=[],
            desired_capacity=group.scaling_config["desiredSize"],
            max_size=group.scaling_config["maxSize"],
            min_size=group.scaling_config["minSize"],
            launch_config_name="",
            launch_template={"LaunchTemplateName": name},
            vpc_zone_identifier=",".join(group.subnets),
            default_cooldown=None,
            health_check_period=None,
            health_check_type=None,
            load_balancers=[],
            target_group_arns=[],
            placement_group=None,
            termination_policies=[],
            tags=[{"Key": key, "Value": value, "PropagateAtLaunch": True} for key, value in owned.items()],
        )
        group.resources = {"autoScalingGroups": [{"name": name}]}

    def _check_sizes(self, sizes: dict[str, int]) -> None:
        least, desired, most = (sizes[key] for key in ("minSize", "desiredSize", "maxSize"))
        self.refuse(desired < least, f"Minimum capacity {least} can't be greater than desired size {desired}")
        self.refuse(desired > most, f"desired capacity {desired} can't be greater than max size {most}")

    def _let_nodes_join(self, group: Nodegroup) -> None:
        """Nodes that reach nothing outside never join, and the group stays failed for ever."""
        if group.scaling_config["desiredSize"] and not all(self._has_way_out(subnet) for subnet in group.subnets):
            group.status = "CREATE_FAILED"
            message = "Instances failed to join the kubernetes cluster"
            group.health = {"issues": [{"code": "NodeCreationFailure", "message": message, "resourceIds": []}]}

    def _has_way_out(self, subnet: str) -> bool:
        wanted = {"association.subnet-id": [subnet], "route.destination-cidr-block": ["0.0.0.0/0"]}
        return bool(self._ec2.describe_route_tables(filters=wanted))

    def _admit_nodes(self, cluster: Cluster, role: str) -> None:
        """EKS makes the access entry of a managed node group's role by itself."""
        if role not in entries(cluster) and vars(cluster)["access_config"]["authenticationMode"] != "CONFIG_MAP":
            self.new_entry(cluster, role, "EC2_LINUX", {})


def _set(target: Cluster | Nodegroup, **attributes: Any) -> None:
    """Attributes that moto's classes lack; the answer's serializer finds them by name."""
    vars(target).update(attributes)


def _asg_name(group: Nodegroup) -> str:
    return f"eks-{group.nodegroup_name}-{group.uuid}"


def _issuer(region: str) -> str:
    return f"https://oidc.eks.{region}.amazonaws.com/id/{uuid.uuid4().hex.upper()}"


def _minor(version: str) -> int:
    return int(version.split(".")[1])
