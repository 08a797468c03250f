"""What every AWS resource type here shares: a type is four short methods over boto3, in Pulumi's property names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from local.stand_ins.aws.account import Account
from local.stand_ins.aws.shapes import observed, pick
from local.stand_ins.provider import UNKNOWN, PartlyCreated, Properties, ProviderError, ReadResult, ResourceType


class AwsError(ProviderError):
    """AWS refused a call; the text carries its error code."""


class AwsResource(ResourceType):
    """A resource type of one AWS service. What is not `mutable` is replaced when it changes."""

    service: ClassVar[str]
    mutable: ClassVar[frozenset[str]] = frozenset()
    taggable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.taggable:
            cls.optional = cls.optional | {"tags"}
        cls.replace_on = (cls.required | cls.optional) - cls.mutable - {"tags"}

    def __init__(self, account: Account) -> None:
        self.account = account

    @property
    def api(self) -> Any:
        """The service's boto3 client."""
        return self.account.client(self.service)

    def make(self, inputs: Properties) -> str:
        """Creates the object, returns its id."""
        raise NotImplementedError(self.token)

    def settle(self, resource_id: str, inputs: Properties) -> None:
        """Waits until a new object is usable. One that never becomes so is kept, as the real plugin keeps it."""

    def find(self, resource_id: str, inputs: Properties) -> Properties | None:
        """The object's properties as AWS holds them now; None (or AWS's not-found error) where it is gone."""
        raise NotImplementedError(self.token)

    def change(self, resource_id: str, olds: Properties, news: Properties) -> None:
        """Brings the `mutable` properties from `olds` to `news`; tags are not its business."""

    def remove(self, resource_id: str, inputs: Properties) -> None:
        """Deletes the object and waits until it is gone."""
        raise NotImplementedError(self.token)

    def retag(self, resource_id: str, outputs: Properties, added: dict[str, str], removed: list[str]) -> None:
        """Sets and removes tags of a `taggable` object."""
        raise NotImplementedError(self.token)

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        inputs = super().check(name, news, olds, seed)
        if self.taggable:
            tags = inputs.get("tags") or {}
            inputs["tagsAll"] = UNKNOWN if tags == UNKNOWN else self.account.default_tags | tags
        return inputs

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        with self._explained("create"):
            resource_id = self.make(inputs)
        try:
            with self._explained("create"):
                self.settle(resource_id, inputs)
                return resource_id, self._outputs(resource_id, inputs)
        except AwsError as error:
            raise PartlyCreated(resource_id, inputs, inputs, [str(error)]) from error

    def read(self, resource_id: str, inputs: Properties, outputs: Properties) -> ReadResult | None:
        with self._explained("read"):
            found = self._find(resource_id, inputs)
        if found is None:
            return None
        return ReadResult(self._as_inputs(inputs, found), outputs | found)

    def update(self, resource_id: str, olds: Properties, news: Properties, outputs: Properties) -> Properties:
        with self._explained("update"):
            self.change(resource_id, olds, news)
            before, after = olds.get("tagsAll") or {}, news.get("tagsAll") or {}
            if before != after:
                added = {key: value for key, value in after.items() if before.get(key) != value}
                self.retag(resource_id, outputs, added, sorted(before.keys() - after.keys()))
            return self._outputs(resource_id, news)

    def delete(self, resource_id: str, inputs: Properties, outputs: Properties) -> None:
        with self._explained("delete"):
            try:
                self.remove(resource_id, inputs)
            except Exception as error:
                if not is_gone(error) or self._find(resource_id, inputs) is not None:
                    raise  # another object than this one may be what was not found

    def _outputs(self, resource_id: str, inputs: Properties) -> Properties:
        found = self._find(resource_id, inputs)
        if found is None:
            raise AwsError(f"{self.token}: {resource_id} vanished while it was being written")
        return inputs | found

    def _find(self, resource_id: str, inputs: Properties) -> Properties | None:
        try:
            return self.find(resource_id, inputs)
        except Exception as error:
            if is_gone(error):
                return None
            raise

    def _as_inputs(self, inputs: Properties, found: Properties) -> Properties:
        if not inputs:  # it is imported
            inputs = {key: value for key, value in found.items() if key in self.required | self.optional}
            inputs |= pick(found, "tagsAll")
        seen = {key: observed(value, found[key], key) if key in found else value for key, value in inputs.items()}
        if "tagsAll" in found:
            declared, defaults = inputs.get("tags") or {}, self.account.default_tags
            tags = {k: v for k, v in found["tagsAll"].items() if k in declared or defaults.get(k) != v}
            seen = seen | ({"tags": tags} if tags or declared else {})
        return seen

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turns boto3's errors into one line that names the type."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            detail = error.response["Error"]
            text = f"{verb} {self.token}: AWS answered {detail.get('Code')}: {detail.get('Message')}"
            raise AwsError(text) from error
        except (BotoCoreError, ProviderError) as error:
            raise AwsError(f"{verb} {self.token}: {error}") from error


def is_gone(error: Exception) -> bool:
    """Whether AWS said that the object does not exist."""
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
    return "NotFound" in code or code.startswith("NoSuch") or code == "404"
