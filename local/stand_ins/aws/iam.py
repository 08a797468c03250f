"""aws:iam: roles, their policies, and OpenID Connect providers."""

from __future__ import annotations

import json
from typing import Any, ClassVar
from urllib.parse import unquote

from local.stand_ins.aws.resource import AwsResource
from local.stand_ins.aws.shapes import camel, pick, tag_list, tag_map
from local.stand_ins.provider import InvalidInput, Properties, contains_unknown

_POLICY_CHARACTERS = 10_240
"""AWS's limit for all inline policies of a role, without white space."""


class IamResource(AwsResource):
    """An IAM object: tagged through calls of its own type."""

    service = "iam"
    kind: ClassVar[str]
    """IAM's name of the type in its calls, for example `open_id_connect_provider`."""
    identifier: ClassVar[str]
    """The parameter of those calls that takes the id."""

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        target = {self.identifier: resource_id}
        if added:
            getattr(self.api, f"tag_{self.kind}")(**target, Tags=tag_list(added))
        if removed:
            getattr(self.api, f"untag_{self.kind}")(**target, TagKeys=removed)


class Role(IamResource):
    token = "aws:iam/role:Role"
    kind = "role"
    identifier = "RoleName"
    taggable = True
    required = frozenset({"assumeRolePolicy"})
    optional = frozenset({"name", "description"})
    mutable = frozenset({"assumeRolePolicy", "description"})
    name_property = "name"

    def make(self, inputs: Properties) -> str:
        self.api.create_role(
            RoleName=inputs["name"],
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            Description=inputs.get("description", ""),
            Tags=tag_list(inputs["tagsAll"]),
        )
        return inputs["name"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        role = self.api.get_role(RoleName=resource_id)["Role"]
        return pick(camel(role), "arn", "description") | {
            "name": role["RoleName"],
            "uniqueId": role["RoleId"],
            "createDate": role["CreateDate"].isoformat(),
            "assumeRolePolicy": _document(role["AssumeRolePolicyDocument"]),
            "tagsAll": tag_map(self.api.list_role_tags(RoleName=resource_id)["Tags"]),
        }

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        if olds.get("assumeRolePolicy") != news["assumeRolePolicy"]:
            self.api.update_assume_role_policy(RoleName=resource_id, PolicyDocument=news["assumeRolePolicy"])
        if olds.get("description") != news.get("description"):
            self.api.update_role(RoleName=resource_id, Description=news.get("description", ""))

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_role(RoleName=resource_id)


class RolePolicy(IamResource):
    token = "aws:iam/rolePolicy:RolePolicy"
    required = frozenset({"role", "policy"})
    optional = frozenset({"name"})
    mutable = frozenset({"policy"})
    name_property = "name"

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        return _with_checked_policy(super().check(name, news, olds, seed))

    def make(self, inputs: Properties) -> str:
        self.change("", {}, inputs)
        return f"{inputs['role']}:{inputs['name']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        role, name = resource_id.split(":", 1)
        found = self.api.get_role_policy(RoleName=role, PolicyName=name)
        return {"role": role, "name": name, "policy": _document(found["PolicyDocument"])}

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        self.api.put_role_policy(RoleName=news["role"], PolicyName=news["name"], PolicyDocument=news["policy"])

    def remove(self, resource_id: str, inputs: Properties) -> None:
        role, name = resource_id.split(":", 1)
        self.api.delete_role_policy(RoleName=role, PolicyName=name)


class RolePolicyAttachment(IamResource):
    token = "aws:iam/rolePolicyAttachment:RolePolicyAttachment"
    required = frozenset({"role", "policyArn"})

    def make(self, inputs: Properties) -> str:
        self.api.attach_role_policy(RoleName=inputs["role"], PolicyArn=inputs["policyArn"])
        return f"{inputs['role']}/{inputs['policyArn']}"

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        attached = self.api.list_attached_role_policies(RoleName=inputs["role"])["AttachedPolicies"]
        if any(policy["PolicyArn"] == inputs["policyArn"] for policy in attached):
            return pick(inputs, "role", "policyArn")
        return None

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.detach_role_policy(RoleName=inputs["role"], PolicyArn=inputs["policyArn"])


class OpenIdConnectProvider(IamResource):
    """Thumbprints are left to AWS, which no longer needs them for EKS issuers.

    moto cannot change the client ids, so here a change makes a new provider; the real one updates in place.
    """

    token = "aws:iam/openIdConnectProvider:OpenIdConnectProvider"
    kind = "open_id_connect_provider"
    identifier = "OpenIDConnectProviderArn"
    taggable = True
    required = frozenset({"url", "clientIdLists"})

    def make(self, inputs: Properties) -> str:
        created = self.api.create_open_id_connect_provider(
            Url=_with_scheme(inputs["url"]),
            ClientIDList=inputs["clientIdLists"],
            ThumbprintList=[],
            Tags=tag_list(inputs["tagsAll"]),
        )
        return created["OpenIDConnectProviderArn"]

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        found = self.api.get_open_id_connect_provider(OpenIDConnectProviderArn=resource_id)
        return {
            "arn": resource_id,
            "url": inputs["url"] if inputs.get("url", "").endswith(found["Url"]) else found["Url"],
            "clientIdLists": found["ClientIDList"],
            "thumbprintLists": found["ThumbprintList"],
            "tagsAll": tag_map(found.get("Tags")),
        }

    def remove(self, resource_id: str, inputs: Properties) -> None:
        self.api.delete_open_id_connect_provider(OpenIDConnectProviderArn=resource_id)


def _with_checked_policy(inputs: Properties) -> Properties:
    policy = inputs["policy"]
    if contains_unknown(policy):
        return inputs
    try:
        length = len(json.dumps(json.loads(policy), separators=(",", ":")))
    except (TypeError, ValueError) as error:
        raise InvalidInput("policy", f"must be a JSON document: {error}") from error
    if length > _POLICY_CHARACTERS:
        reason = f"has {length} characters; AWS takes {_POLICY_CHARACTERS} at most: use fewer statements"
        raise InvalidInput("policy", reason)
    return inputs


def _document(value: Any) -> str:
    """A policy document as text: boto3 decodes most of them, moto leaves some URL-encoded."""
    return json.dumps(value) if isinstance(value, dict) else unquote(value)


def _with_scheme(url: str) -> str:
    return url if url.startswith("https://") else f"https://{url}"
