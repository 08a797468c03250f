"""The aws functions (`aws.get_caller_identity` and the like) that the program calls."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from local.stand_ins.aws.account import Account
from local.stand_ins.aws.shapes import camel, pascal, pick, tag_map
from local.stand_ins.provider import Properties

Function = Callable[[Account, Properties], Properties]


def caller_identity(account: Account, args: Properties) -> Properties:
    found = account.client("sts").get_caller_identity()
    return {"accountId": found["Account"], "arn": found["Arn"], "userId": found["UserId"], "id": found["Account"]}


def partition(account: Account, args: Properties) -> Properties:
    name = account.partition
    return {"partition": name, "dnsSuffix": "amazonaws.com", "reverseDnsPrefix": "com.amazonaws", "id": name}


def region(account: Account, args: Properties) -> Properties:
    name = args.get("region") or args.get("name") or account.region
    endpoint = f"ec2.{name}.amazonaws.com"
    return {"name": name, "region": name, "id": name, "description": name, "endpoint": endpoint}


def instance_type_offerings(account: Account, args: Properties) -> Properties:
    location = {"LocationType": args["locationType"]} if "locationType" in args else {}
    pages = account.client("ec2").get_paginator("describe_instance_type_offerings")
    offers = pages.paginate(Filters=_filters(args), **location).build_full_result()["InstanceTypeOfferings"]
    return args | {
        "id": account.region,
        "instanceTypes": [offer["InstanceType"] for offer in offers],
        "locations": [offer["Location"] for offer in offers],
        "locationTypes": [offer["LocationType"] for offer in offers],
    }


def ssm_parameter(account: Account, args: Properties) -> Properties:
    answer = account.client("ssm").get_parameter(Name=args["name"], WithDecryption=args.get("withDecryption", True))
    found = answer["Parameter"]
    return args | {
        "arn": found["ARN"],
        "id": found["Name"],
        "insecureValue": found["Value"],
        "type": found["Type"],
        "value": found["Value"],
        "version": found["Version"],
    }


def ecr_authorization_token(account: Account, args: Properties) -> Properties:
    found = account.client("ecr").get_authorization_token()["authorizationData"][0]
    user, password = base64.b64decode(found["authorizationToken"]).decode().split(":", 1)
    return args | {
        "authorizationToken": found["authorizationToken"],
        "expiresAt": found["expiresAt"].isoformat(),
        "id": account.region,
        "password": password,
        "proxyEndpoint": found["proxyEndpoint"],
        "userName": user,
    }


def eks_clusters(account: Account, args: Properties) -> Properties:
    pages = account.client("eks").get_paginator("list_clusters")
    return args | {"id": account.region, "names": pages.paginate().build_full_result()["clusters"]}


def tagged_resources(account: Account, args: Properties) -> Properties:
    api = account.client("resourcegroupstaggingapi")
    wanted = {"ResourceTypeFilters": args.get("resourceTypeFilters", []), "TagFilters": pascal(args["tagFilters"])}
    found = api.get_paginator("get_resources").paginate(**wanted).build_full_result()["ResourceTagMappingList"]
    listed = [{"resourceArn": one["ResourceARN"], "tags": tag_map(one["Tags"])} for one in found]
    return args | {"id": account.region, "resourceTagMappingLists": listed}


def log_groups(account: Account, args: Properties) -> Properties:
    pages = account.client("logs").get_paginator("describe_log_groups")
    found = pages.paginate(logGroupNamePrefix=args["logGroupNamePrefix"]).build_full_result()["logGroups"]
    names = {"logGroupNames": [group["logGroupName"] for group in found], "arns": [group["arn"] for group in found]}
    return args | {"id": account.region} | names


def eks_cluster(account: Account, args: Properties) -> Properties:
    found = account.client("eks").describe_cluster(name=args["name"])["cluster"]
    return args | {"id": found["name"], "version": found["version"], "vpcConfig": found["resourcesVpcConfig"]}


def eks_node_groups(account: Account, args: Properties) -> Properties:
    pages = account.client("eks").get_paginator("list_nodegroups").paginate(clusterName=args["clusterName"])
    return args | {"id": args["clusterName"], "names": pages.build_full_result()["nodegroups"]}


def eks_node_group(account: Account, args: Properties) -> Properties:
    names = {"clusterName": args["clusterName"], "nodegroupName": args["nodeGroupName"]}
    found = account.client("eks").describe_nodegroup(**names)["nodegroup"]
    return args | pick(found, "releaseVersion", "status", "version") | {"scalingConfigs": [found["scalingConfig"]]}


def availability_zones(account: Account, args: Properties) -> Properties:
    """The filter `opt-in-status` is left to the reader: moto has no other zones."""
    found = account.client("ec2").describe_availability_zones()["AvailabilityZones"]
    zones = [zone for zone in found if zone["ZoneId"] not in args.get("excludeZoneIds", [])]
    return args | {
        "id": account.region,
        "names": [zone["ZoneName"] for zone in zones],
        "zoneIds": [zone["ZoneId"] for zone in zones],
    }


def subnets(account: Account, args: Properties) -> Properties:
    found = account.client("ec2").describe_subnets(Filters=_filters(args))["Subnets"]
    return args | {"id": account.region, "ids": [subnet["SubnetId"] for subnet in found]}


def subnet(account: Account, args: Properties) -> Properties:
    found = account.client("ec2").describe_subnets(SubnetIds=[args["id"]])["Subnets"][0]
    return args | pick(camel(found), "availabilityZone", "cidrBlock", "vpcId")


def s3_object(account: Account, args: Properties) -> Properties:
    wanted = {"Bucket": args["bucket"], "Key": args["key"], "ChecksumMode": args.get("checksumMode", "")}
    found = account.client("s3").head_object(**{key: value for key, value in wanted.items() if value})
    return args | {"id": f"{args['bucket']}/{args['key']}", "checksumSha256": found.get("ChecksumSHA256", "")}


FUNCTIONS: dict[str, Function] = {
    "aws:index/getCallerIdentity:getCallerIdentity": caller_identity,
    "aws:index/getPartition:getPartition": partition,
    "aws:index/getRegion:getRegion": region,
    "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": instance_type_offerings,
    "aws:ssm/getParameter:getParameter": ssm_parameter,
    "aws:ecr/getAuthorizationToken:getAuthorizationToken": ecr_authorization_token,
    "aws:cloudwatch/getLogGroups:getLogGroups": log_groups,
    "aws:resourcegroupstaggingapi/getResources:getResources": tagged_resources,
    "aws:index/getAvailabilityZones:getAvailabilityZones": availability_zones,
    "aws:ec2/getSubnet:getSubnet": subnet,
    "aws:ec2/getSubnets:getSubnets": subnets,
    "aws:s3/getObject:getObject": s3_object,
    "aws:eks/getCluster:getCluster": eks_cluster,
    "aws:eks/getClusters:getClusters": eks_clusters,
    "aws:eks/getNodeGroup:getNodeGroup": eks_node_group,
    "aws:eks/getNodeGroups:getNodeGroups": eks_node_groups,
}


def _filters(args: Properties) -> list[dict[str, Any]]:
    return pascal(args.get("filters", []))
