"""One request, from its headers to the last byte of its answer."""

import asyncio
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import web

from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import Key
from loraserve.contract.served_name import ServedName
from loraserve.gateway import refusals
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.brake import Brake
from loraserve.gateway.cold_start import ColdStarts
from loraserve.gateway.completion import BYTES_PER_TOKEN, Completion
from loraserve.gateway.doors import Door
from loraserve.gateway.errors import (
    AdapterLoading,
    AdapterUnavailable,
    ApiError,
    Asleep,
    Forbidden,
    NoChatTemplate,
    UpstreamBroken,
    UpstreamTimeout,
)
from loraserve.gateway.in_flight import InFlight
from loraserve.gateway.keys import Keys, RateLimits
from loraserve.gateway.ledger import Ledger
from loraserve.gateway.metrics import Metrics
from loraserve.gateway.pods import Place, Pods, host
from loraserve.gateway.record import HiddenUsage, Record, StreamMeter, Usage
from loraserve.gateway.routing import Route, Routes
from loraserve.gateway.samples import Samples
from loraserve.gateway.traces import Kind, Span, Traces
from loraserve.gateway.upstream import BROKEN
from loraserve.gateway.waiting_room import Ticket, WaitingRoom
from loraserve.log import event

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
"""A held stream gets a comment this often, so that nothing between here and the client takes it for dead."""
ATTEMPTS = 2
"""A request that two vLLMs dropped may be what kills them."""
SERVER = "loraserve"
MODEL_HEADER = "X-Loraserve-Model"
FALLBACK_HEADER = "X-Loraserve-Fallback"
_PASSED_AT_ONCE = 64 << 10
_EVENT_STREAM = "text/event-stream"
_COMMENT = b": waiting\n"
"""No blank line after it: OpenAI's Go client, in older versions, takes one for the end of an event, and an event without data for broken."""
_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")


@dataclass
class Gateway:
    """Everything that requests share."""

    settings: GatewaySettings
    bounds: Bounds
    keys: Keys
    limits: RateLimits
    in_flight: InFlight
    pods: Pods
    room: WaitingRoom
    cold_starts: ColdStarts
    brake: Brake
    metrics: Metrics
    http: aiohttp.ClientSession
    routes: Routes
    traces: Traces
    ledger: Ledger | None = None
    samples: Samples | None = None


class ClientGone(ConnectionResetError):
    """Nobody takes the answer any more."""


class _Unreachable(Exception):
    """vLLM took no connection."""


class _Dropped(Exception):
    """vLLM ended the connection before its answer began: another attempt disturbs nobody."""


class _Refused(Exception):
    """vLLM does not know the adapter."""


class Exchange:
    """Serves one completion, streamed or whole."""

    def __init__(
        self, gateway: Gateway, request: web.Request, record: Record, key: Key, door: Door, completion: Completion
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._settings = gateway.settings
        self._request = request
        self._record = record
        self._key = key
        self._completion = completion
        self._deadline = record.started + gateway.settings.wait_seconds
        self._loading_since: float | None = None
        """Since when it has waited for an adapter that is loaded for it."""
        self._record.span = gateway.traces.begin(request.headers.get("traceparent", ""))
        if self._record.span:
            self._record.trace = self._record.span.trace
        self._stream: web.StreamResponse | None = None
        """The answer, once its headers are sent: what happens from then on is told in band."""

    async def run(self) -> web.StreamResponse:
        """Raises ApiError while there is a status left to send, ConnectionError where nobody is left to send it to."""
        asked = self._completion.model
        # Before it is looked up: who may not call it does not learn whether it exists.
        if not self._key.allows(asked) and not self._key.allows(ServedName(asked).adapter):
            raise Forbidden(f"This key may not call {asked!r}.", param="model")
        caller = self._caller()
        route = self._gateway.routes.resolve(asked, caller)
        if ServedName(asked).version is None:  # who names a version was not assigned to it
            self._record.caller = caller
        self._record.model = route.model
        if self._gateway.samples:
            self._record.seen = self._gateway.samples.begin(self._key, self._record, self._completion.rest)
        self._gateway.limits.charge(self._key, self._completion.cost, self._gateway.pods.replicas)
        try:
            answer = await self._serve(replace(route, is_patient=self._completion.is_patient))
        except ApiError as error:
            if self._stream is None:
                self._settle()
                raise
            answer = await self._fail_in_band(self._stream, error)
        except (ConnectionError, asyncio.CancelledError):
            # Who leaves before anything was counted has had the work done, and stays charged for what they asked for.
            if self._record.completion_tokens is not None:
                self._settle()
            raise
        self._settle()
        return answer

    def _settle(self) -> None:
        """Sets right what was charged."""
        written, read = self._record.completion_tokens, self._record.prompt_tokens
        used = 0 if written is None else written + (read or self._completion.size // BYTES_PER_TOKEN)
        self._gateway.limits.settle(self._key, self._completion.cost.tokens, used)

    def _caller(self) -> str:
        """Who stays on one side of a canary share: the end user where the tenant names one."""
        return f"{self._key.tenant} {self._completion.user}"

    async def _serve(self, route: Route) -> web.StreamResponse:
        try:
            return await self._attempt(route)
        except (AdapterLoading, AdapterUnavailable, Asleep, UpstreamTimeout) as error:
            if not route.falls_back or self._stream or not self._gateway.pods.awake:
                raise
            self._record.fallback = error.code
            return await self._attempt(self._gateway.routes.fallback(route))

    async def _attempt(self, route: Route) -> web.StreamResponse:
        failures = 0
        while True:
            place = await self._find_place(route)
            try:
                with place:
                    return await self._forward(place)
            except _Unreachable:
                self._gateway.pods.unreachable(place.pod)  # it waits for a pod again; no attempt was made
                continue
            except _Dropped:
                error = UpstreamBroken("The model stopped before it answered.", retry_after=1)
            except _Refused:
                error = AdapterUnavailable(f"vLLM does not know {place.served}.", param="model", retry_after=5)
                self._gateway.pods.refused(place)
            await self._gateway.pods.refresh(place.pod)
            if isinstance(error, AdapterUnavailable) and self._gateway.pods.has_evicted(place):
                continue  # it is loaded again; no attempt was made
            failures += 1
            given_up = route.falls_back and not self._gateway.pods.ready(route)
            if failures == ATTEMPTS or (isinstance(error, AdapterUnavailable) and given_up):
                raise error

    async def _find_place(self, route: Route) -> Place:
        completion = self._completion
        self._gateway.brake.check()
        ticket = self._gateway.room.enter(self._key.tenant, route, completion.size, completion.cost.sequences)
        if ticket.place.done():
            return ticket.place.result()
        self._gateway.cold_starts.begin()
        since = time.monotonic()
        try:
            with self._part("wait"):
                return await self._wait(ticket)
        except BaseException:
            self._gateway.room.leave(ticket)
            raise
        finally:
            waited = time.monotonic() - since
            self._record.waited += waited
            if self._loading_since is not None:
                self._gateway.metrics.load_wait.observe(time.monotonic() - self._loading_since)
                self._loading_since = None
            self._gateway.metrics.wait.labels(self._gateway.metrics.model(route.model)).observe(waited)

    async def _wait(self, ticket: Ticket) -> Place:
        while not ticket.place.done():
            if (left := self._time_left(ticket.route)) <= 0:
                raise self._too_late(ticket.route)
            await asyncio.wait([ticket.place], timeout=min(left, KEEP_ALIVE_SECONDS))
            if not ticket.place.done() and self._completion.streams:
                await self._write(_COMMENT)
        return ticket.place.result()

    def _time_left(self, route: Route) -> float:
        """Seconds that it may still wait: a start may take longer than the load of an adapter."""
        now = time.monotonic()
        if not self._gateway.pods.is_loading(route):
            return self._deadline - now
        if self._loading_since is None:
            self._loading_since = now
        return min(self._deadline, self._loading_since + self._gateway.bounds.load_seconds) - now

    def _too_late(self, route: Route) -> ApiError:
        retry_after = self._gateway.cold_starts.remaining()
        if self._gateway.pods.is_loading(route):
            return AdapterLoading(f"{route.model} is still being loaded; try again.", retry_after=retry_after)
        return Asleep(f"{route.model} is not ready yet; try again later.", retry_after=retry_after)

    async def _forward(self, place: Place) -> web.StreamResponse:
        self._record.served = place.served
        url = f"http://{host(place.pod.address)}:{self._settings.vllm_port}{self._request.path}"
        payload = self._completion.payload(place.served, self._key.tenant if self._door.generates else None)
        try:
            with self._part("vllm", Kind.CLIENT) as call:
                headers = self._upstream_headers() | ({"traceparent": call.traceparent} if call else {})
                async with self._gateway.http.post(url, data=payload, headers=headers, allow_redirects=False) as answer:
                    if answer.status == 200 and answer.content_type == _EVENT_STREAM:
                        return await self._pass_stream(answer)
                    return await self._pass_whole(answer, place)
        except ClientGone:
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _Unreachable from error
        except TimeoutError:
            raise UpstreamTimeout(f"The model sent nothing for {self._settings.stall_seconds:g} s.") from None
        except BROKEN as error:
            raise _Dropped from error

    def _part(self, name: str, kind: Kind = Kind.INTERNAL) -> AbstractContextManager[Span | None]:
        """A span below the request's."""
        return self._record.span.child(name, kind) if self._record.span else nullcontext()

    def _upstream_headers(self) -> dict[str, str]:
        """Nothing of the client's but what traces it."""
        given = self._request.headers
        return {
            "Authorization": f"Bearer {self._settings.vllm_api_key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "X-Request-Id": self._record.request_id,
            # vLLM believes it before the body's `priority`, which a client could set; less is sooner.
            "X-Vllm-Priority": "1" if self._completion.is_patient else "0",
            **{name: given[name] for name in _TRACE_HEADERS if name in given},
        }

    async def _pass_whole(self, answer: aiohttp.ClientResponse, place: Place) -> web.StreamResponse:
        """A large one piece by piece; any other at once, so that until its end another attempt can be made."""
        body = b""
        while piece := await answer.content.readany():
            body += piece
            if len(body) > _PASSED_AT_ONCE:
                break
        if answer.status in (401, 403):
            log.error(event("vLLM refuses this gateway's key", pod=place.pod.address, status=answer.status))
            raise UpstreamBroken("The model does not accept this gateway.")
        if 300 <= answer.status < 400:
            log.error(event("vLLM redirects", pod=place.pod.address, status=answer.status))
            raise UpstreamBroken("The model answered what is no answer.")
        if answer.status >= 400:
            if refusals.means_unknown_adapter(answer.status, body, place.served):
                raise _Refused
            if refusals.means_no_chat_template(body):
                raise NoChatTemplate(self._gateway.routes.base)
            self._record.outcome = f"vllm_{answer.status}"
        if self._stream:
            if piece:  # vLLM repeats what it refuses
                raise UpstreamBroken(f"The model answered with {answer.status}, in more words than are passed on here.")
            await self._write(b"data: " + b" ".join(body.splitlines()) + b"\n\n")
            await self._stream.write_eof()
            return self._stream
        headers = {"Content-Type": answer.headers.get("Content-Type", "application/json"), **self._own_headers()}
        if piece:
            return await self._pass_on(answer, body, headers)
        self._record.count(Usage.of(body))
        self._record.see(body)
        return web.Response(status=answer.status, body=body, headers=headers)

    async def _pass_on(
        self, answer: aiohttp.ClientResponse, piece: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        """A whole answer as it comes."""
        if answer.content_length is not None:
            headers["Content-Length"] = str(answer.content_length)
        response, usage = web.StreamResponse(status=answer.status, headers=headers | self._limit_headers()), Usage()
        self._record.status = answer.status
        try:
            await response.prepare(self._request)
            while piece:
                usage.see(piece)
                await self._send(response, piece)
                piece = await answer.content.readany()
        except ClientGone:
            raise
        except (*BROKEN, TimeoutError) as error:
            self._record.outcome = UpstreamBroken.code
            raise ConnectionResetError("the answer broke off") from error
        self._record.count(usage)
        await response.write_eof()
        return response

    async def _pass_stream(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        chunk = await answer.content.readany()  # before the headers: until here, another attempt can be made
        if not chunk:
            raise _Dropped
        stream = await self._begin_stream()
        meter = StreamMeter(self._record, self._gateway.metrics)
        hidden = HiddenUsage() if self._completion.hides_usage else None
        try:
            while chunk:
                meter.see(chunk)
                if shown := hidden.see(chunk) if hidden else chunk:
                    await self._write(shown)
                chunk = await answer.content.readany()
            if hidden and (left := hidden.close()):
                await self._write(left)
        except ClientGone:
            raise
        except (*BROKEN, TimeoutError) as error:
            if hidden and (left := hidden.close()):
                await self._write(left)
            if not meter.between_events:
                self._record.outcome = UpstreamBroken.code
                raise ConnectionResetError("the answer broke off within an event") from error
            raise UpstreamBroken("The model stopped in the middle of its answer.") from error
        finally:
            meter.close(self._completion.size // BYTES_PER_TOKEN)
        await stream.write_eof()
        return stream

    async def _begin_stream(self) -> web.StreamResponse:
        """Sends the headers, once."""
        if self._stream is None:
            headers = {"Content-Type": f"{_EVENT_STREAM}; charset=utf-8", "Cache-Control": "no-cache"}
            stream = web.StreamResponse(headers=headers | self._own_headers() | self._limit_headers())
            self._record.status = stream.status
            await stream.prepare(self._request)
            self._stream = stream
        return self._stream

    def _own_headers(self) -> dict[str, str]:
        """What the gateway adds to an answer."""
        served = {MODEL_HEADER: self._record.served} if self._record.served else {}
        fallback = {FALLBACK_HEADER: "base"} if self._record.fallback else {}
        return {"Server": SERVER, "X-Request-Id": self._record.request_id, **served, **fallback}

    def _limit_headers(self) -> dict[str, str]:
        return self._gateway.limits.headers(self._key, self._gateway.pods.replicas)

    async def _write(self, data: bytes) -> None:
        """To the client, as part of a stream."""
        try:
            stream = await self._begin_stream()
        except ConnectionError as error:
            raise ClientGone from error
        await self._send(stream, data)

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        """As fast as the client reads."""
        try:
            async with asyncio.timeout(self._settings.stall_seconds):
                await response.write(data)
        except (ConnectionError, TimeoutError) as error:
            raise ClientGone("the client does not read its answer") from error

    async def _fail_in_band(self, stream: web.StreamResponse, error: ApiError) -> web.StreamResponse:
        self._record.outcome = error.code
        await self._write(b"data: " + error.body() + b"\n\n")
        await stream.write_eof()
        return stream
