"""The aws functions (`aws.get_caller_identity` and the like) that the program calls."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from local.plugins.aws.account import Account
from local.plugins.aws.shapes import camel, pascal, pick, tag_map
from local.plugins.provider import InvalidInput, Properties

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


def availability_zones(account: Account, args: Properties) -> Properties:
    state = [{"Name": "state", "Values": [args["state"]]}] if "state" in args else []
    answer = account.client("ec2").describe_availability_zones(Filters=_filters(args) + state)
    zones = [
        zone
        for zone in answer["AvailabilityZones"]
        if zone["ZoneName"] not in args.get("excludeNames", []) and zone["ZoneId"] not in args.get("excludeZoneIds", [])
    ]
    return args | {
        "id": account.region,
        "names": [zone["ZoneName"] for zone in zones],
        "zoneIds": [zone["ZoneId"] for zone in zones],
        "groupNames": sorted({zone.get("GroupName", account.region) for zone in zones}),
    }


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


def instance_type(account: Account, args: Properties) -> Properties:
    answer = account.client("ec2").describe_instance_types(InstanceTypes=[args["instanceType"]])
    found = answer["InstanceTypes"][0]
    gpus = [
        {
            "count": gpu["Count"],
            "manufacturer": gpu["Manufacturer"],
            "memorySize": gpu["MemoryInfo"]["SizeInMiB"],
            "name": gpu["Name"],
        }
        for gpu in found.get("GpuInfo", {}).get("Gpus", [])
    ]
    return args | {
        "id": args["instanceType"],
        "defaultVcpus": found["VCpuInfo"]["DefaultVCpus"],
        "memorySize": found["MemoryInfo"]["SizeInMiB"],
        "gpuses": gpus,
        "totalGpuMemory": sum(gpu["count"] * gpu["memorySize"] for gpu in gpus),
        "totalInstanceStorage": found.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0),
        "supportedArchitectures": found["ProcessorInfo"]["SupportedArchitectures"],
    }


def instance_types(account: Account, args: Properties) -> Properties:
    pages = account.client("ec2").get_paginator("describe_instance_types")
    found = pages.paginate(Filters=_filters(args)).build_full_result()["InstanceTypes"]
    return args | {"id": account.region, "instanceTypes": [item["InstanceType"] for item in found]}


def ami(account: Account, args: Properties) -> Properties:
    """The newest image that matches. Raises InvalidInput where none does, or several do without `mostRecent`."""
    owners = {"Owners": args["owners"]} if "owners" in args else {}
    images = account.client("ec2").describe_images(Filters=_filters(args), **owners)["Images"]
    pattern = re.compile(args.get("nameRegex", ""))
    images = sorted(
        filter(lambda image: pattern.search(image["Name"]), images), key=lambda image: image["CreationDate"]
    )
    if not images:
        raise InvalidInput("filters", "no image matches; the local stack knows the images that moto carries")
    if len(images) > 1 and not args.get("mostRecent"):
        raise InvalidInput("mostRecent", f"{len(images)} images match: set mostRecent, or narrow the filters")
    image = images[-1]
    found = camel({key: value for key, value in image.items() if key not in ("Tags", "BlockDeviceMappings")})
    return args | found | {"id": image["ImageId"], "tags": tag_map(image.get("Tags"))}


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


def eks_cluster(account: Account, args: Properties) -> Properties:
    found = account.client("eks").describe_cluster(name=args["name"])["cluster"]
    logs = found.get("logging", {}).get("clusterLogging", [])
    return pick(found, "arn", "endpoint", "name", "platformVersion", "roleArn", "status", "tags", "version") | {
        "id": found["name"],
        "accessConfigs": [found["accessConfig"]],
        "certificateAuthorities": [found["certificateAuthority"]],
        "createdAt": found["createdAt"].isoformat(),
        "enabledClusterLogTypes": [kind for log in logs if log["enabled"] for kind in log["types"]],
        "identities": [{"oidcs": [found["identity"]["oidc"]]}],
        "kubernetesNetworkConfigs": [found["kubernetesNetworkConfig"]],
        "upgradePolicies": [found["upgradePolicy"]],
        "vpcConfig": found["resourcesVpcConfig"],
    }


def eks_addon_version(account: Account, args: Properties) -> Properties:
    answer = account.client("eks").describe_addon_versions(
        addonName=args["addonName"], kubernetesVersion=args["kubernetesVersion"]
    )
    versions = [version for addon in answer["addons"] for version in addon["addonVersions"]]
    if not versions:
        raise InvalidInput("addonName", f"no version of {args['addonName']} for Kubernetes {args['kubernetesVersion']}")
    default = next((item for item in versions if item["compatibilities"][0].get("defaultVersion")), versions[0])
    chosen = versions[0] if args.get("mostRecent") else default
    return args | {"id": args["addonName"], "version": chosen["addonVersion"]}


FUNCTIONS: dict[str, Function] = {
    "aws:index/getCallerIdentity:getCallerIdentity": caller_identity,
    "aws:index/getPartition:getPartition": partition,
    "aws:index/getRegion:getRegion": region,
    "aws:index/getAvailabilityZones:getAvailabilityZones": availability_zones,
    "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": instance_type_offerings,
    "aws:ec2/getInstanceType:getInstanceType": instance_type,
    "aws:ec2/getInstanceTypes:getInstanceTypes": instance_types,
    "aws:ec2/getAmi:getAmi": ami,
    "aws:ssm/getParameter:getParameter": ssm_parameter,
    "aws:ecr/getAuthorizationToken:getAuthorizationToken": ecr_authorization_token,
    "aws:eks/getCluster:getCluster": eks_cluster,
    "aws:eks/getAddonVersion:getAddonVersion": eks_addon_version,
}


def _filters(args: Properties) -> list[dict[str, Any]]:
    return pascal(args.get("filters", []))
