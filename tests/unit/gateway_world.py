"""A gateway between a Kubernetes API, agents and vLLMs that keep their APIs' promises only, all on loopback addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from local.processes import free_ports
from loraserve.contract.agent_state import DEMAND_PATH, AdapterStatus, AgentState, Demand, State
from loraserve.contract.base_model import Base
from loraserve.contract.desired_state import Adapter, DesiredState
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.keys import Key, KeyRing, create_key
from loraserve.contract.served_name import ServedName
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.main import serving

BASE = "base-model"
NAMESPACE = "ml-models"
PIECES = ("Hel", "lo", " wor", "ld")


def adapter(name: str = "faq", version: str = "v1", **changes: Any) -> Adapter:
    entry: dict[str, Any] = {
        "model": f"m-{name}",
        "digest": "sha256:" + "0" * 64,
        "rank": 8,
        "target_modules": ["q_proj"],
        "size_bytes": 1,
    }
    return Adapter(name=name, version=version, **entry | changes)


def chat(model: str = "faq", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}


class FakePod:
    """One agent and one vLLM. Attributes may be changed while it runs."""

    def __init__(self, address: str, agent_port: int, vllm_port: int) -> None:
        self.address = address
        self.ports = {"agent": agent_port, "vllm": vllm_port}
        self.report = AgentState()
        self.known: set[str] = {BASE}
        """What vLLM answers to."""
        self.demands: list[tuple[str, frozenset[str]]] = []
        """With which key the agent was told what requests need."""
        self.on_demand: Callable[[frozenset[str]], None] | None = None
        """What the agent does then; nothing where it is None."""
        self.agent_up = True
        self.agent_hangs = False
        """It takes connections, and answers nothing."""
        self.behaviour: Callable[[web.Request, dict[str, Any]], Coroutine[Any, Any, web.StreamResponse]] | None = None
        """Answers a completion instead of the usual way."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hung_up = threading.Event()
        self.go_on: asyncio.Semaphore | None = None
        """One permit per piece of a stream; None: all at once."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._runners: dict[str, web.AppRunner] = {}

    def holds(self, *versions: str, state: State = State.READY, reason: str | None = None) -> None:
        """Agent and vLLM agree: these versions are loaded (or are in that state)."""
        statuses = []
        for served in versions:
            name = ServedName(served)
            statuses.append(AdapterStatus(name=name.adapter, version=name.version or "", state=state, reason=reason))
        loaded = versions if state is State.READY else ()
        self.known = {BASE, *loaded}
        self.report = AgentState(base=BASE, adapters=tuple(statuses), loaded=loaded, ready=state is State.READY)

    def loads_on_demand(self, *versions: str, held: tuple[str, ...] = ()) -> None:
        """Declared are these, held are those."""
        self.holds(*held)
        waiting = [ServedName(served) for served in versions if served not in held]
        aside = [AdapterStatus(name=s.adapter, version=s.version or "", state=State.ON_DEMAND) for s in waiting]
        self.report = self.report.model_copy(update={"adapters": (*self.report.adapters, *aside)})

    def starting(self) -> None:
        """The agent answers, vLLM does not."""
        self.report = AgentState(base=BASE)

    @property
    def models(self) -> list[str]:
        return [request["model"] for request in self.requests]

    def permit(self, pieces: int = 1) -> None:
        """Lets streams go on."""
        assert self.go_on
        assert self.loop
        for _ in range(pieces):
            self.loop.call_soon_threadsafe(self.go_on.release)

    async def start(self, *parts: str) -> None:
        self.loop = asyncio.get_running_loop()
        for part in parts or ("agent", "vllm"):
            app = web.Application(client_max_size=16 << 20)
            if part == "agent":
                app.router.add_get("/v1/state", self._state)
                app.router.add_post(DEMAND_PATH, self._demand)
            else:
                app.router.add_post("/{path:.*}", self._complete)
            runner = web.AppRunner(
                app,
                access_log=None,
                handler_cancellation=True,
                shutdown_timeout=0.1,
                logger=logging.getLogger("fake pod"),
            )
            await runner.setup()
            await web.TCPSite(runner, self.address, self.ports[part], reuse_address=True).start()
            self._runners[part] = runner

    async def stop(self, *parts: str) -> None:
        for part in parts or tuple(self._runners):
            if runner := self._runners.pop(part, None):
                await runner.cleanup()

    async def _state(self, _: web.Request) -> web.Response:
        if self.agent_hangs:
            await asyncio.Event().wait()
        if not self.agent_up:
            return web.Response(status=503)
        return web.Response(text=self.report.model_dump_json(by_alias=True), content_type="application/json")

    async def _demand(self, request: web.Request) -> web.Response:
        names = frozenset(Demand.model_validate_json(await request.read()).adapters)
        self.demands.append((request.headers["Authorization"], names))
        if self.on_demand:
            self.on_demand(names)
        return await self._state(request)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            if self.behaviour:
                return await self.behaviour(request, body)
            if body["model"] not in self.known:
                return error(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")
            return await self._stream(request, body) if body.get("stream") else self._whole(body)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise

    def _whole(self, body: dict[str, Any]) -> web.Response:
        message = {"role": "assistant", "content": f"{body['model']} says hello"}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
        return web.json_response(answer)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        usage = (body.get("stream_options") or {}).get("include_usage", False)
        for line in stream_lines(body["model"], usage=usage):
            if self.go_on and b'"usage"' not in line:  # vLLM sends it in one breath with what finishes
                await self.go_on.acquire()
            await response.write(line)
        return response


def stream_lines(model: str, *, usage: bool = False, sequences: int = 1) -> list[bytes]:
    """A streamed chat answer as vLLM 0.32.0 words it; `usage`: with `include_usage`. Sequences end one after the other."""
    indices = range(sequences)
    chunks = [_chunk(model, _choice(i, role="assistant", content="")) for i in indices]
    chunks += [_chunk(model, _choice(i, content=piece)) for piece in PIECES for i in indices]
    fingerprint = {"system_fingerprint": "vllm-0.32.0-0a1b2c3d"}
    for i in indices:
        last = _choice(i, content="") | {"finish_reason": "stop", "stop_reason": None}
        chunks.append(_chunk(model, last) | ({} if usage else fingerprint))
    if usage:
        total = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}
        chunks.append(_chunk(model) | {"usage": total} | fingerprint)
    lines = [b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks]
    return [*lines, b"data: [DONE]\n\n"]


def _chunk(model: str, *choices: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "choices": list(choices),
    }


def _choice(index: int, **delta: str) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None}


def error(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": param, "code": status}}, status=status
    )


class FakeKubernetes:
    """Lists and watches one namespace."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, Any]] = {}
        self._version = 1
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""
        self.tokens: set[str] = set()

    def put(self, selector: str, manifest: dict[str, Any]) -> None:
        self._version += 1
        manifest["metadata"]["resourceVersion"] = str(self._version)
        self._objects[selector] = manifest
        self._changed.set()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.add(request.headers["Authorization"])
        selector = request.query.get("labelSelector") or request.query["fieldSelector"]
        if "watch" not in request.query:
            items = [self._objects[selector]] if selector in self._objects else []
            return web.json_response({"items": items, "metadata": {"resourceVersion": str(self._version)}})
        response = web.StreamResponse()
        await response.prepare(request)
        seen = int(request.query["resourceVersion"])
        while True:
            found = self._objects.get(selector)
            if found and int(found["metadata"]["resourceVersion"]) > seen:
                seen = int(found["metadata"]["resourceVersion"])
                await response.write(json.dumps({"type": "MODIFIED", "object": found}).encode() + b"\n")
            await self._changed.wait()


def endpoint_slice(service: str, addresses: list[str], terminating: tuple[str, ...] = ()) -> dict[str, Any]:
    conditions = {address: {"ready": True, "terminating": address in terminating} for address in addresses}
    endpoints = [{"addresses": [address], "conditions": conditions[address]} for address in addresses]
    return {"metadata": {"name": f"{service}-1"}, "endpoints": endpoints}


class World:
    """Runs in a thread of its own; its methods may be called from tests."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """`settings` are those of the gateway, and its bounds."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._folder = folder
        addresses = [f"127.0.0.{last}" for last in (1, 2, 3)]
        agent_port, vllm_port = free_ports(2, addresses)
        self.base = Base(name=BASE, max_model_len=4096)
        """What is declared of the base model, from the next document on."""
        self.pods = [FakePod(address, agent_port, vllm_port) for address in addresses]
        self.key, entry = create_key("team-a", ("*",), None)
        self.keys: list[Key] = [entry]
        self.write_keys()
        (folder / "token").write_text("the-token\n")
        bounds = {name: settings.pop(name) for name in set(settings) & {field.name for field in fields(Bounds)}}
        self._settings, self._bounds = settings, Bounds(**bounds)
        self._stop: asyncio.Event | None = None
        self._ended: asyncio.Future[None] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def add_key(
        self, tenant: str, models: tuple[str, ...] = ("*",), requests_per_minute: int | None = None, **more: Any
    ) -> str:
        """Before the world starts."""
        key, entry = create_key(tenant, models, requests_per_minute, **more)
        self.keys.append(entry)
        self.write_keys()
        return key

    def write_keys(self) -> None:
        self.keys_file.write_text(KeyRing(keys=tuple(self.keys)).to_json())

    @property
    def keys_file(self) -> Path:
        return self._folder / "keys.json"

    def start(self, *adapters: Adapter, pods: int = 1, ready: bool = True) -> None:
        """Declares adapters; the first pods run, and the gateway has read everything when this returns."""
        self.run(self._surround(adapters, pods))
        self.run(self._start_gateway())
        if ready:
            self.wait_until(lambda: self.inner("/readyz").status_code == 200)

    def surround(self, *adapters: Adapter, pods: int = 1) -> dict[str, str]:
        """Everything but the gateway; the environment that one needs here."""
        self.run(self._surround(adapters, pods))
        return self._variables()

    async def _surround(self, adapters: tuple[Adapter, ...], pods: int) -> None:
        self.kubernetes = FakeKubernetes()
        await self.kubernetes.start()
        for pod in self.pods:
            await pod.start()
        self._declare(adapters)
        self._show_pods(pods)
        self._show_gateways(1)

    async def _start_gateway(self) -> None:
        started = asyncio.Event()
        self._stop = asyncio.Event()
        self._ended = asyncio.ensure_future(self._serve(started))
        await asyncio.wait({self._ended, asyncio.ensure_future(started.wait())}, return_when="FIRST_COMPLETED")
        if self._ended.done():
            self._ended.result()

    async def _serve(self, started: asyncio.Event) -> None:
        async with serving(GatewaySettings.from_environment(self._variables()), self._bounds) as ports:
            self.url, self.inner_url = f"http://127.0.0.1:{ports.public}", f"http://127.0.0.1:{ports.inner}"
            self.tls_url = f"https://127.0.0.1:{ports.tls}"
            started.set()
            assert self._stop
            await self._stop.wait()

    def _variables(self) -> dict[str, str]:
        return GatewaySettings.variables(
            kubernetes_namespace=NAMESPACE,
            vllm_service="vllm-service",
            gateway_service="gateway",
            desired_config_map="desired-state",
            keys_file=self.keys_file,
            vllm_api_key="vllm-key",
            port=0,
            metrics_port=0,
            vllm_port=self.pods[0].ports["vllm"],
            agent_port=self.pods[0].ports["agent"],
            kubernetes_url=self.kubernetes.url,
            kubernetes_credentials=self._folder,
            **self._settings,
        )

    def declare(self, *adapters: Adapter) -> None:
        """A new desired state."""
        self._call(self._declare, adapters)

    def _declare(self, adapters: tuple[Adapter, ...]) -> None:
        document = DesiredState(base=self.base, bucket="adapters", adapters=adapters).to_json()
        self._show_document(document)

    def show_document(self, document: str) -> None:
        """Whatever it is."""
        self._call(self._show_document, document)

    def _show_document(self, document: str) -> None:
        manifest = {"metadata": {"name": "desired-state"}, "data": {"desired.json": document}}
        self.kubernetes.put("metadata.name=desired-state", manifest)

    def show_pods(self, count: int, terminating: tuple[str, ...] = ()) -> None:
        """As many endpoints as there are now."""
        self._call(self._show_pods, count, terminating)

    def _show_pods(self, count: int, terminating: tuple[str, ...] = ()) -> None:
        addresses = [pod.address for pod in self.pods[:count]]
        manifest = endpoint_slice("vllm-service", addresses, terminating)
        self.kubernetes.put("kubernetes.io/service-name=vllm-service", manifest)

    def show_gateways(self, count: int) -> None:
        self._call(self._show_gateways, count)

    def _show_gateways(self, count: int) -> None:
        manifest = endpoint_slice("gateway", [f"10.0.0.{number}" for number in range(count)])
        self.kubernetes.put("kubernetes.io/service-name=gateway", manifest)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        async def called() -> None:
            function(*arguments)

        self.run(called())

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def post(self, body: dict[str, Any], key: str | None = None, **headers: str) -> httpx.Response:
        with self.client(key) as http:
            return http.post("/v1/chat/completions", json=body, headers=headers)

    def inner(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.inner_url}{path}", trust_env=False)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        async def waited() -> None:
            async with asyncio.timeout(15):
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.02)

        self.run(waited())

    def wait_for_status(self, status: str, model: str = "faq") -> None:
        """Until /v1/models says so of a model."""

        def said() -> bool:
            with self.client() as http:
                models = http.get("/v1/models").json()["data"]
            return any(entry["id"] == model and entry["status"] == status for entry in models)

        self.wait_until(said)

    def wait_for_load(self, waiting: int = 0, running: int = 0) -> None:
        """Until the gateway holds and runs so many requests."""
        wanted = {"waiting": waiting, "running": running}
        self.wait_until(lambda: self.inner("/scale").json().items() >= wanted.items())

    def stop_gateway(self) -> None:
        """As SIGTERM does; returns when it has ended."""

        async def stopped() -> None:
            assert self._stop
            assert self._ended
            self._stop.set()
            await self._ended

        self.run(stopped())

    def begin_stop(self) -> None:
        assert self._stop
        self._loop.call_soon_threadsafe(self._stop.set)

    def close(self) -> None:
        async def ended() -> None:
            if self._stop and self._ended:
                self._stop.set()
                await asyncio.gather(self._ended, return_exceptions=True)
            for pod in self.pods:
                await pod.stop()
            await self.kubernetes.stop()

        self.run(ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def world(folder: Path, **settings: Any) -> Iterator[World]:
    made = World(folder, **{"drain_seconds": 5, "wait_seconds": 20, "balancer_idle_seconds": 60} | settings)
    try:
        yield made
    finally:
        made.close()
