"""The services of which the program uses one or two types: ecr, autoscaling, cloudwatch, budgets."""

from __future__ import annotations

from dataclasses import replace

from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.aws.shapes import camel, pascal, pick, tag_list, tag_map
from local.stand_ins.provider import Diff, Properties


class Repository(AwsResource):
    token = "aws:ecr/repository:Repository"
    service = "ecr"
    taggable = True
    optional = frozenset({"name", "forceDelete", "imageScanningConfiguration"})
    mutable = frozenset({"forceDelete", "imageScanningConfiguration"})
    name_property = "name"

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        return super().check(name.lower(), news, olds, seed)

    def make(self, inputs: Properties) -> str:
        wanted = pick(inputs, "imageScanningConfiguration")
        self.api.create_repository(repositoryName=inputs["name"], tags=tag_list(inputs["tagsAll"]), **wanted)
        return inputs["name"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.describe_repositories(repositoryNames=[resource_id])["repositories"][0]
        tags = self.api.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
        return pick(found, "imageScanningConfiguration", "registryId") | {
            "arn": found["repositoryArn"],
            "name": found["repositoryName"],
            "repositoryUrl": found["repositoryUri"],
            "tagsAll": tag_map(tags),
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if olds.get("imageScanningConfiguration") != news.get("imageScanningConfiguration"):
            scanning = news.get("imageScanningConfiguration", {"scanOnPush": False})
            self.api.put_image_scanning_configuration(repositoryName=resource_id, imageScanningConfiguration=scanning)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_repository(repositoryName=resource_id, force=bool(inputs.get("forceDelete")))

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        if added:
            self.api.tag_resource(resourceArn=outputs["arn"], tags=tag_list(added))
        if removed:
            self.api.untag_resource(resourceArn=outputs["arn"], tagKeys=removed)


class LifecyclePolicy(AwsResource):
    token = "aws:ecr/lifecyclePolicy:LifecyclePolicy"
    service = "ecr"
    required = frozenset({"repository", "policy"})
    mutable = frozenset({"policy"})

    def make(self, inputs: Properties) -> str:
        self.api.put_lifecycle_policy(repositoryName=inputs["repository"], lifecyclePolicyText=inputs["policy"])
        return inputs["repository"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.get_lifecycle_policy(repositoryName=resource_id)
        return {"policy": found["lifecyclePolicyText"], "registryId": found["registryId"]}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        self.make(news)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_lifecycle_policy(repositoryName=resource_id)


class AutoscalingTag(AwsResource):
    """One tag of an Auto Scaling group that something else owns."""

    token = "aws:autoscaling/tag:Tag"
    service = "autoscaling"
    required = frozenset({"autoscalingGroupName", "tag"})
    mutable = frozenset({"tag"})

    def diff(self, olds: Properties, news: Properties) -> Diff:
        diff = super().diff(olds, news)
        renamed = olds["tag"]["key"] != news["tag"]["key"]
        return replace(diff, replaces=diff.replaces | {"tag"}) if renamed else diff

    def make(self, inputs: Properties) -> str:
        group, tag = inputs["autoscalingGroupName"], inputs["tag"]
        self.api.create_or_update_tags(Tags=[_target(group) | pascal(tag)])
        return f"{group},{tag['key']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        group, key = resource_id.split(",", 1)
        filters = [{"Name": "auto-scaling-group", "Values": [group]}, {"Name": "key", "Values": [key]}]
        for tag in self.api.describe_tags(Filters=filters)["Tags"]:
            return {"tag": pick(camel(tag), "key", "value", "propagateAtLaunch")}
        return None

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        self.make(news)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        group, key = resource_id.split(",", 1)
        self.api.delete_tags(Tags=[_target(group) | {"Key": key}])


def _target(group: str) -> dict[str, str]:
    return {"ResourceId": group, "ResourceType": "auto-scaling-group"}


class LogGroup(AwsResource):
    token = "aws:cloudwatch/logGroup:LogGroup"
    service = "logs"
    taggable = True
    optional = frozenset({"name", "retentionInDays"})
    mutable = frozenset({"retentionInDays"})
    name_property = "name"

    def make(self, inputs: Properties) -> str:
        tags = {"tags": inputs["tagsAll"]} if inputs["tagsAll"] else {}
        self.api.create_log_group(logGroupName=inputs["name"], **tags)
        self.change(inputs["name"], {}, inputs)
        return inputs["name"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        for group in self.api.describe_log_groups(logGroupNamePrefix=resource_id)["logGroups"]:
            if group["logGroupName"] == resource_id:
                arn = group["arn"].removesuffix(":*")
                return pick(group, "retentionInDays") | {
                    "arn": arn,
                    "name": resource_id,
                    "tagsAll": self.api.list_tags_for_resource(resourceArn=arn)["tags"],
                }
        return None

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        days = news.get("retentionInDays")
        if days == olds.get("retentionInDays"):
            return
        if days:
            self.api.put_retention_policy(logGroupName=resource_id, retentionInDays=days)
        else:
            self.api.delete_retention_policy(logGroupName=resource_id)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_log_group(logGroupName=resource_id)

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        if added:
            self.api.tag_resource(resourceArn=outputs["arn"], tags=added)
        if removed:
            self.api.untag_resource(resourceArn=outputs["arn"], tagKeys=removed)


class Budget(AwsResource):
    token = "aws:budgets/budget:Budget"
    service = "budgets"
    taggable = True
    required = frozenset({"budgetType", "limitAmount", "limitUnit", "timeUnit"})
    optional = frozenset({"name", "notifications"})
    mutable = required | {"notifications"}
    name_property = "name"

    def make(self, inputs: Properties) -> str:
        limit = {"Amount": inputs["limitAmount"], "Unit": inputs["limitUnit"]}
        names = {"BudgetName": inputs["name"], "BudgetType": inputs["budgetType"], "TimeUnit": inputs["timeUnit"]}
        self.api.create_budget(
            AccountId=self.account.id,
            Budget=names | {"BudgetLimit": limit},
            NotificationsWithSubscribers=[_notification(each) for each in inputs.get("notifications", [])],
        )
        return f"{self.account.id}:{inputs['name']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        account, name = resource_id.split(":", 1)
        found = self.api.describe_budget(AccountId=account, BudgetName=name)["Budget"]
        limit = found["BudgetLimit"]
        return pick(camel(found), "budgetType", "timeUnit") | {
            "name": name,
            "limitAmount": limit["Amount"],
            "limitUnit": limit["Unit"],
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        """Made anew: moto has no UpdateBudget."""
        if any(olds.get(key) != news.get(key) for key in self.mutable):
            self.remove(resource_id, olds)
            self.make(news)

    def remove(self, resource_id: str, inputs: Properties) -> None:
        account, name = resource_id.split(":", 1)
        self.api.delete_budget(AccountId=account, BudgetName=name)

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        """moto keeps no tags of budgets."""


def _notification(given: Properties) -> Properties:
    told = pascal({key: value for key, value in given.items() if key != "subscriberEmailAddresses"})
    to = [{"SubscriptionType": "EMAIL", "Address": address} for address in given["subscriberEmailAddresses"]]
    return {"Notification": told, "Subscribers": to}
