"""The two HTTP surfaces: what clients may call, and what Prometheus, KEDA and the kubelet ask. Nothing else exists."""

import asyncio
import functools
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from loraserve.contract.keys import Key
from loraserve.gateway.completion import Completion
from loraserve.gateway.doors import DOORS, Door
from loraserve.gateway.errors import ApiError, BadRequest, NoChatTemplate, NoSuchPage, TooLarge, TooSlow, WrongMethod
from loraserve.gateway.exchange import SERVER, Exchange, Gateway
from loraserve.gateway.in_flight import Claim
from loraserve.gateway.openapi import DOCUMENT
from loraserve.gateway.record import CLIENT_GONE, Record
from loraserve.gateway.routing import no_such_model
from loraserve.monitoring.metrics import OK

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RECORD = web.RequestKey("record", Record)
KEY = web.RequestKey("key", Key)
_LARGE_BODY = 64 << 10
"""Such bodies are read one after the other: everybody waits while one is."""
_REQUEST_ID = re.compile(r"(?!.*lsk-)[A-Za-z0-9._:-]{1,128}")
"""A key is none: ids are logged, here and by vLLM."""
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class PublicApi:
    """OpenAI's API, as far as it is open."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._turn = asyncio.Lock()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._recorded])
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{model:.+}", self.model)
        for door in DOORS:
            app.router.add_post(door.path, functools.partial(self.complete, door), expect_handler=_not_yet)
        app.router.add_post("/v1/embeddings", self.embeddings, expect_handler=_not_yet)
        return app

    async def health(self, _: web.Request) -> web.Response:
        """That this replica lives; it says nothing about any model, and needs no key."""
        return _json({"status": "alive"})

    async def models(self, request: web.Request) -> web.Response:
        """Every model that the key allows, asleep or not."""
        key = self._authenticate(request)
        data = [self._described(model, key) for model in self._gateway.routes.models if key.allows(model)]
        return _json({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        """One of them, or one version of it."""
        key, model = self._authenticate(request), request.match_info["model"]
        route = self._gateway.routes.resolve(model, key.tenant)
        if not key.allows(route.model):
            raise no_such_model(model)
        return _json(self._described(model, key))

    def _described(self, model: str, key: Key) -> dict[str, Any]:
        """OpenAI's fields, vLLM's `parent` and `max_model_len`, and a word on whether it is awake."""
        routes, route = self._gateway.routes, self._gateway.routes.resolve(model, key.tenant)
        return {
            "id": model,
            "object": "model",
            "created": 0,
            "owned_by": "loraserve",
            "parent": None if model == routes.base else routes.base,
            "max_model_len": routes.max_model_len,
            "status": self._gateway.pods.status(route),
        }

    async def complete(self, door: Door, request: web.Request) -> web.StreamResponse:
        """Whatever vLLM answers about one model."""
        key, gateway = self._authenticate(request), self._gateway
        if gateway.ledger and door.generates:
            gateway.ledger.check(key)
        with gateway.in_flight.claim(key.tenant) as claim:
            completion = await self._parse(door, await self._read(request, claim))
            if completion.is_conversation and not gateway.routes.has_chat_template:
                raise NoChatTemplate(gateway.routes.base)
            return await Exchange(gateway, request, request[RECORD], key, door, completion).run()

    async def embeddings(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        raise NoSuchPage(
            "The models here generate text and make no embeddings: one vLLM does one or the other. Serve an embedding model "
            "beside this stack."
        )

    def refuse(self, error: ApiError) -> web.Response:
        """The answer to what never became a request; it has its record too."""
        record = Record(path="other", request_id=uuid.uuid4().hex)
        response = _refuse(record, error)
        record.finish(self._gateway.metrics)
        return response

    def _authenticate(self, request: web.Request) -> Key:
        """Who it is, and whether they may ask now: before anything is read of the body."""
        key = self._gateway.keys.authenticate(request.headers.get("Authorization"))
        record = request[RECORD]
        record.tenant, record.key = key.tenant, key.id
        request[KEY] = key
        self._gateway.limits.admit(key, self._gateway.pods.replicas)
        return key

    async def _read(self, request: web.Request, claim: Claim) -> bytes:
        bounds, pieces, size = self._gateway.bounds, list[bytes](), 0
        self._claim(claim, request.content_length or 0)
        if "Expect" in request.headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            async with asyncio.timeout(bounds.body_seconds):
                while piece := await request.content.readany():
                    size += len(piece)
                    self._claim(claim, size)
                    pieces.append(piece)
        except TimeoutError:
            raise TooSlow(f"The body did not arrive within {bounds.body_seconds:g} s.") from None
        return b"".join(pieces)

    def _claim(self, claim: Claim, size: int) -> None:
        if size > self._gateway.bounds.body_bytes:
            raise TooLarge(f"The body may have {self._gateway.bounds.body_bytes} bytes.")
        claim.grow_to(size)

    async def _parse(self, door: Door, body: bytes) -> Completion:
        if len(body) < _LARGE_BODY:
            return Completion.parse(body, door, self._gateway.bounds.sequences)
        async with self._turn:
            await asyncio.sleep(0)  # everything else that can go on goes on first
            return Completion.parse(body, door, self._gateway.bounds.sequences)

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request ends in one record, every error in OpenAI's shape; only probes of health leave none.

        Who has no key gets one answer for each connection: of many that ask and ask, each would have its turn before all others.
        """
        if request.match_info.handler == self.health:
            response = await handler(request)
            response.force_close()
            return response
        record = request[RECORD] = _new_record(request)
        try:
            response = await handler(request)
            record.status = response.status
        except (ApiError, web.HTTPException) as error:
            response = _refuse(record, error if isinstance(error, ApiError) else _as_api_error(error))
        except web.RequestPayloadError:
            response = _refuse(record, BadRequest("The body is not framed as the headers say."))
            response.force_close()
        except (ConnectionError, asyncio.CancelledError):
            if record.outcome == OK:
                record.outcome = CLIENT_GONE
            raise
        except Exception:
            log.exception("request failed")
            response = _refuse(record, ApiError("The gateway failed; its log says why."))
        finally:
            record.finish(self._gateway.metrics)
            if self._gateway.ledger:
                self._gateway.ledger.count(record)
            if self._gateway.samples:
                self._gateway.samples.end(record)
        if KEY not in request:
            response.force_close()
        elif not response.prepared:
            response.headers.update(self._gateway.limits.headers(request[KEY], self._gateway.pods.replicas))
        return response


class InnerApi:
    """On a port of its own that clients do not reach."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.stopping = False

    def application(self) -> web.Application:
        app = web.Application()
        for path, handler in {
            "/scale": self.scale,
            "/metrics": self.metrics,
            "/readyz": self.readyz,
            "/livez": self.livez,
            "/openapi.json": self.openapi,
        }.items():
            app.router.add_get(path, handler)
        return app

    def refuse(self, error: ApiError) -> web.Response:
        """The answer to what never became a request."""
        return web.Response(status=error.status, body=error.body(), content_type="application/json")

    async def scale(self, _: web.Request) -> web.Response:
        """What KEDA asks every replica for."""
        pods = self._gateway.pods
        signals = {"waiting": self._gateway.room.count, "running": pods.running, "kvCacheUsage": pods.kv_cache_usage}
        return web.json_response(signals)

    async def metrics(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._gateway.metrics.exposition(), headers=headers)

    async def readyz(self, _: web.Request) -> web.Response:
        if self.stopping:
            return web.Response(status=503, text="stopping\n")
        if self._gateway.routes.base is None:
            return web.Response(status=503, text="the desired state was not read yet\n")
        if not self._gateway.keys.known:
            return web.Response(status=503, text="the keys were not read yet; the log says why\n")
        return web.Response(text="ready\n")

    async def livez(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(DOCUMENT)


def _json(content: dict[str, Any]) -> web.Response:
    return web.json_response(content, headers={"Server": SERVER})


async def _not_yet(_: web.Request) -> None:
    """A client that waits for a word before it sends its body gets it once the body is wanted."""


def _new_record(request: web.Request) -> Record:
    """Ids of the client's are kept where they have the form of ids."""
    given, trace = request.headers.get("X-Request-Id", ""), request.headers.get("traceparent", "")
    return Record(
        path=resource.canonical if (resource := request.match_info.route.resource) else "other",
        request_id=given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
        trace=trace.split("-")[1] if _TRACE_PARENT.fullmatch(trace) else None,
    )


def _refuse(record: Record, error: ApiError) -> web.Response:
    record.status, record.outcome = error.status, error.code
    headers = {"Server": SERVER, "Content-Type": "application/json", "X-Request-Id": record.request_id}
    return web.Response(status=error.status, body=error.body(), headers=headers | error.headers())


def _as_api_error(error: web.HTTPException) -> ApiError:
    match error:
        case web.HTTPMethodNotAllowed():
            return WrongMethod(error.allowed_methods)
        case web.HTTPRequestEntityTooLarge():
            return TooLarge("The body is too large.")
        case _:
            return NoSuchPage(
                f"There is no such page; there are /v1/models, {', '.join(door.path for door in DOORS)} and /health."
            )
