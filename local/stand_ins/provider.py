"""The part that every provider plugin here shares: Pulumi's provider protocol over plain Python dicts.

A plugin is a `Provider` holding one `ResourceType` per type token. Property values are JSON-like; a value that is not
known yet (during a preview) is the string `UNKNOWN`. Secrets arrive unwrapped, and what is returned in their place is
marked as secret again.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime import proto
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2

from local.stand_ins.values import UNKNOWN as UNKNOWN
from local.stand_ins.values import Properties, from_struct, to_struct
from local.stand_ins.values import contains_unknown as contains_unknown

_MAX_MESSAGE_BYTES = 400 * 1024 * 1024


class ProviderError(Exception):
    """An operation failed for a reason that the text explains to the user; other exceptions show their class too."""


class InvalidInput(Exception):
    """An input property that the resource type cannot accept. `reason` says what to do about it."""

    def __init__(self, property: str, reason: str) -> None:
        super().__init__(f"{property}: {reason}")
        self.property = property
        self.reason = reason


class PartlyCreated(Exception):
    """The object exists but did not become healthy: its state is kept, so that nothing is lost."""

    def __init__(self, resource_id: str, outputs: Properties, inputs: Properties, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.resource_id = resource_id
        self.outputs = outputs
        self.inputs = inputs
        self.reasons = reasons


@dataclass(frozen=True)
class Diff:
    """What changed between the last applied inputs and the new ones: property names, top level."""

    changed: frozenset[str] = frozenset()
    replaces: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ReadResult:
    """An object as the outside holds it now: the inputs that would produce it, and its outputs."""

    inputs: Properties
    outputs: Properties


class ResourceType:
    """One Pulumi resource type. Subclasses declare their properties and say how to create, read, update and delete."""

    token: ClassVar[str]
    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    replace_on: ClassVar[frozenset[str]] = frozenset()
    """Inputs whose change means a new object."""
    name_property: ClassVar[str | None] = None
    """The property that is auto-named from the resource's name where the program gives none."""

    def check(self, name: str, news: Properties, olds: Properties, seed: bytes) -> Properties:
        """The inputs with defaults filled in. Raises InvalidInput for an unknown, missing or malformed property."""
        news = {key: value for key, value in news.items() if key not in ("__defaults", "__internal")}
        for key in news:
            if key not in self.required | self.optional:
                raise InvalidInput(key, f"{self.token} takes no such property here; known: {self._known()}")
        for key in sorted(self.required - news.keys()):
            raise InvalidInput(key, f"{self.token} needs this property")
        if self.name_property and self.name_property not in news:
            news[self.name_property] = olds.get(self.name_property) or autoname(name, seed)
        return news

    def diff(self, olds: Properties, news: Properties) -> Diff:
        """Compares checked inputs with checked inputs."""
        changed = frozenset(key for key in olds.keys() | news.keys() if olds.get(key) != news.get(key))
        return Diff(changed, changed & self.replace_on)

    def preview(self, inputs: Properties, outputs: Properties) -> Properties:
        """The outputs that a create or an update would give, as far as they can be told without doing it.

        `outputs` are the last known ones (empty before a create). What is left out, or UNKNOWN, is known after the
        update only.
        """
        return outputs | inputs

    def create(self, inputs: Properties) -> tuple[str, Properties]:
        """Returns the new object's id and its outputs (inputs included)."""
        raise NotImplementedError(self.token)

    def read(self, resource_id: str, inputs: Properties, outputs: Properties) -> ReadResult | None:
        """The object as it is now, or None where it is gone."""
        raise NotImplementedError(self.token)

    def update(self, resource_id: str, olds: Properties, news: Properties, outputs: Properties) -> Properties:
        """Changes the object from `olds` to `news` (inputs) and returns its outputs; `outputs` are the last known."""
        raise NotImplementedError(self.token)

    def delete(self, resource_id: str, inputs: Properties, outputs: Properties) -> None:
        """Deletes the object; an object that is gone already is no error."""
        raise NotImplementedError(self.token)

    def _known(self) -> str:
        return ", ".join(sorted(self.required | self.optional))


@dataclass(frozen=True)
class ConstructRequest:
    """A component resource (`remote=True`) to build through the engine's own resource monitor."""

    type: str
    name: str
    inputs: Properties
    raw: provider_pb2.ConstructRequest


@dataclass
class Provider:
    """A plugin: its resource types, its functions (`invoke`), and its components, each by token."""

    name: str
    version: str
    resources: Mapping[str, ResourceType] = field(default_factory=dict)
    functions: Mapping[str, Callable[[Properties], Properties]] = field(default_factory=dict)
    components: Mapping[str, Callable[[ConstructRequest], provider_pb2.ConstructResponse]] = field(default_factory=dict)
    configure: Callable[[Properties], None] = lambda _: None
    """Called once with the provider's configuration before anything else; raises InvalidInput."""


def autoname(name: str, seed: bytes) -> str:
    """`name` plus seven random hexadecimal digits, the same for the same `seed`, as the real providers do."""
    return f"{name}-{random.Random(seed or None).randbytes(4).hex()[:7]}"


def serve(provider: Provider) -> None:
    """Runs a provider plugin until the engine goes away."""
    servicer = _Servicer(provider)
    serve_plugin(lambda server: provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server))


def serve_plugin(add_servicer: Callable[[grpc.Server], None]) -> None:
    """Serves a plugin of any kind: prints the port on standard output, as the engine expects."""
    logging.basicConfig(level=logging.WARNING)
    limits = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(max_workers=64), options=limits)
    add_servicer(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    with suppress(KeyboardInterrupt):  # how the engine ends its plugins
        wait_for_end_of_input()
    server.stop(grace=None)


def wait_for_end_of_input() -> None:
    """The engine holds the other end of standard input, which closes even where the engine is killed."""
    while os.read(0, 1024):
        pass


class _Servicer(provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return proto.PluginInfo(version=self._provider.version)

    def Attach(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def GetSchema(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.GetSchemaResponse(schema="{}")

    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        olds, news = from_struct(request.old_inputs), from_struct(request.news)
        changed = frozenset(key for key in olds.keys() | news.keys() if olds.get(key) != news.get(key))
        return _diff_response(Diff(changed))

    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _handling(request, context):
            self._provider.configure(from_struct(request.args))
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        news, olds = from_struct(request.news), from_struct(request.olds)
        with _handling(request, context):
            kind = self._kind(request.urn)
            try:
                inputs = kind.check(_name(request.urn), news, olds, request.randomSeed)
            except InvalidInput as error:
                return provider_pb2.CheckResponse(failures=[_failure(error)])
        return provider_pb2.CheckResponse(inputs=to_struct(inputs, request.news))

    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _handling(request, context):
            return _diff_response(
                self._kind(request.urn).diff(from_struct(request.old_inputs), from_struct(request.news))
            )

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = from_struct(request.properties)
        with _handling(request, context):
            kind = self._kind(request.urn)
            resource_id, outputs = ("", kind.preview(inputs, {})) if request.preview else kind.create(inputs)
        return provider_pb2.CreateResponse(id=resource_id, properties=to_struct(outputs, request.properties))

    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs, outputs = from_struct(request.inputs), from_struct(request.properties)
        with _handling(request, context):
            result = self._kind(request.urn).read(request.id, inputs, outputs)
        if result is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(
            id=request.id,
            inputs=to_struct(result.inputs, request.inputs),
            properties=to_struct(result.outputs, request.properties),
        )

    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:
        olds, news, outputs = (from_struct(part) for part in (request.old_inputs, request.news, request.olds))
        with _handling(request, context):
            kind = self._kind(request.urn)
            preview = request.preview
            updated = kind.preview(news, outputs) if preview else kind.update(request.id, olds, news, outputs)
        return provider_pb2.UpdateResponse(properties=to_struct(updated, request.news, request.olds))

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs, outputs = from_struct(request.old_inputs), from_struct(request.properties)
        with _handling(request, context):
            self._kind(request.urn).delete(request.id, inputs, outputs)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _handling(request, context):
            function = _lookup(self._provider.name, self._provider.functions, request.tok)
            try:
                result = function(from_struct(request.args))
            except InvalidInput as error:
                return provider_pb2.InvokeResponse(failures=[_failure(error)])
        response = provider_pb2.InvokeResponse()
        getattr(response, "return").CopyFrom(to_struct(result))
        return response

    def Construct(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _handling(request, context):
            component = _lookup(self._provider.name, self._provider.components, request.type)
            return component(ConstructRequest(request.type, request.name, from_struct(request.inputs), request))

    def _kind(self, urn: str) -> ResourceType:
        token = urn.split("::")[2].split("$")[-1]
        return _lookup(self._provider.name, self._provider.resources, token)


@contextmanager
def _handling(request: Any, context: grpc.ServicerContext) -> Iterator[None]:
    """Turns an exception of the code that serves the request into one clear gRPC error."""
    try:
        yield
    except InvalidInput as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except PartlyCreated as error:
        _abort_partly_created(context, error, request)
    except ProviderError as error:
        context.abort(grpc.StatusCode.UNKNOWN, str(error))
    except Exception as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _abort_partly_created(context: grpc.ServicerContext, error: PartlyCreated, request: Any) -> NoReturn:
    secrets = request.properties if hasattr(request, "properties") else request.news
    detail = provider_pb2.ErrorResourceInitFailed(
        id=error.resource_id,
        properties=to_struct(error.outputs, secrets),
        inputs=to_struct(error.inputs, secrets),
        reasons=error.reasons,
    )
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(error))
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, str(error))


def _lookup(provider: str, known: Mapping[str, Any], token: str) -> Any:
    if token not in known:
        raise InvalidInput(
            token, f"the stand-in {provider} plugin does not know this; it knows {', '.join(sorted(known))}"
        )
    return known[token]


def _diff_response(diff: Diff) -> Any:
    response = provider_pb2.DiffResponse
    return response(
        changes=response.DIFF_SOME if diff.changed else response.DIFF_NONE,
        diffs=sorted(diff.changed),
        replaces=sorted(diff.replaces),
    )


def _failure(error: InvalidInput) -> Any:
    return provider_pb2.CheckFailure(property=error.property, reason=error.reason)


def _name(urn: str) -> str:
    return urn.split("::", 3)[3]
