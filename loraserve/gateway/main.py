"""Puts the gateway together and runs it until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvloop
from aiohttp import web

from loraserve.catalog.bucket import Bucket
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.gateway_settings import GatewaySettings
from loraserve.contract.last_good import LastGood
from loraserve.gateway import upstream
from loraserve.gateway.app import InnerApi, PublicApi
from loraserve.gateway.bounds import Bounds
from loraserve.gateway.brake import Brake
from loraserve.gateway.cold_start import ColdStarts
from loraserve.gateway.errors import Stopping
from loraserve.gateway.exchange import Gateway
from loraserve.gateway.in_flight import InFlight
from loraserve.gateway.keys import Keys, RateLimits
from loraserve.gateway.ledger import Ledger, process_name
from loraserve.gateway.metrics import Metrics
from loraserve.gateway.pods import Pods
from loraserve.gateway.routing import Routes
from loraserve.gateway.samples import Samples
from loraserve.gateway.server import Clients, Refuse
from loraserve.gateway.tls import self_signed
from loraserve.gateway.traces import Traces
from loraserve.gateway.verdicts import Verdicts
from loraserve.gateway.waiting_room import WaitingRoom
from loraserve.kubernetes import KubernetesApi, Manifest, config_map, endpoint_slices
from loraserve.log import event

log = logging.getLogger(__name__)

KEYS_SECONDS = 2.0
_BOUNDS = Bounds()
_BALANCER_MARGIN_SECONDS = 10
_LONGEST_NUMBER = 640
"""Digits, the fewest that Python can be told; 4 MiB of numbers with its 4,300 hold everybody up for most of a second."""
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Far more than Python's 700: requests leave few cycles behind, and every collection is a pause for all of them."""


def run(settings: GatewaySettings) -> None:
    """Runs until SIGTERM or SIGINT, then finishes what is running. Raises InvalidEnvironment."""
    sys.set_int_max_str_digits(_LONGEST_NUMBER)
    uvloop.run(_run(settings))


async def _run(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(settings) as ports:
        gc.freeze()  # what exists now stays, and need not be looked at again
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        log.info(event("gateway started", port=ports.public, metrics_port=ports.inner))
        await stop.wait()
        log.info(event("gateway stopping"))
    log.info(event("gateway stopped"))


@dataclass(frozen=True)
class Ports:
    public: int
    inner: int
    tls: int | None


@contextlib.asynccontextmanager
async def serving(settings: GatewaySettings, bounds: Bounds = _BOUNDS) -> AsyncIterator[Ports]:
    """A gateway that answers; at the end it lets running generations finish. Raises InvalidEnvironment."""
    async with contextlib.AsyncExitStack() as stack:
        gateway = await _assemble(settings, bounds, stack)
        public_api, inner_api = PublicApi(gateway), InnerApi(gateway)
        public = web.AppRunner(
            public_api.application(), handler_cancellation=True, shutdown_timeout=settings.drain_seconds
        )
        inner = web.AppRunner(inner_api.application())
        inner_clients = await _clients(inner, inner_api.refuse, bounds, stack)
        clients = await _clients(public, public_api.refuse, bounds, stack)
        ports = Ports(
            public=clients.listen(settings.port),
            inner=inner_clients.listen(settings.metrics_port),
            tls=None if settings.tls_port is None else _listen_to_balancer(clients, settings.tls_port, settings),
        )
        try:
            yield ports
        finally:
            inner_api.stopping = True
            gateway.room.close(Stopping("This gateway is being replaced; try again.", retry_after=1))


def _listen_to_balancer(clients: Clients, port: int, settings: GatewaySettings) -> int:
    """The load balancer is to be the one that ends a connection: a request that met our end of it would get a 502."""
    idle_seconds = settings.balancer_idle_seconds + _BALANCER_MARGIN_SECONDS
    return clients.listen(port, self_signed(), idle_seconds=idle_seconds)


async def _clients(runner: web.AppRunner, refuse: Refuse, bounds: Bounds, stack: contextlib.AsyncExitStack) -> Clients:
    """In the end it stops listening first, then lets running requests finish."""
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    assert runner.server
    clients = Clients(runner.server, refuse, bounds)
    stack.callback(clients.stop_listening)
    return clients


async def _assemble(settings: GatewaySettings, bounds: Bounds, stack: contextlib.AsyncExitStack) -> Gateway:
    """Everything but the HTTP servers."""
    metrics = Metrics()
    keys = Keys(settings.keys_file)
    keys.refresh()
    http = await stack.enter_async_context(upstream.session(settings.stall_seconds))
    pods = Pods(http, settings.agent_port, settings.pod_concurrency, agent_key=settings.vllm_api_key)
    stack.push_async_callback(pods.close)
    cold_starts = ColdStarts(pods, metrics, bounds.cold_start_seconds, waiting=lambda: room.count)
    room = WaitingRoom(
        pods.place,
        running=lambda tenant: pods.running_by_tenant[tenant],
        has_share=pods.has_share,
        max_count=bounds.waiting,
        max_bytes=bounds.waiting_bytes,
        retry_after=cold_starts.remaining,
    )

    brake = Brake(pods, settings.replica_hours_per_day)

    def on_change() -> None:
        brake.observe()
        cold_starts.observe()
        room.wake()

    pods.on_change = on_change
    metrics.follow(room.waiting, room.waiting_by_tenant, lambda: pods.running)
    metrics.waiting_limit.set(bounds.waiting)
    gateway = Gateway(
        settings=settings,
        bounds=bounds,
        keys=keys,
        limits=RateLimits(),
        in_flight=InFlight(bounds.in_flight_bytes, bounds.in_flight),
        pods=pods,
        room=room,
        cold_starts=cold_starts,
        brake=brake,
        metrics=metrics,
        http=http,
        routes=Routes(),
        traces=Traces(http, settings.traces_url, settings.pod_name),
    )
    stack.push_async_callback(gateway.traces.send)  # after the servers: the last requests' too
    if settings.usage_bucket:
        gateway.ledger = Ledger(
            Bucket(settings.usage_bucket),
            process_name(settings.pod_name),
            has_budgets=lambda: keys.has_budgets,
            tell_unwritten=lambda unwritten: metrics.usage_unwritten.set(unwritten),
        )
        gateway.samples = Samples(
            Bucket(settings.usage_bucket),
            process_name(settings.pod_name),
            versions=lambda: gateway.routes.versions,
            count=lambda outcome, number: metrics.samples.labels(outcome).inc(number),
        )
        # Left after the servers: what the last requests took is written too.
        stack.push_async_callback(gateway.ledger.write)
        stack.push_async_callback(gateway.samples.write)
    _follow_everything(gateway, stack)
    return gateway


def _follow_everything(gateway: Gateway, stack: contextlib.AsyncExitStack) -> None:
    settings, namespace = gateway.settings, gateway.settings.kubernetes.namespace
    api = KubernetesApi(settings.kubernetes)
    desired = LastGood("desired state", DesiredState.parse)
    followed = {
        config_map(namespace, settings.desired_config_map): lambda found: follow_desired(gateway, desired, found),
        endpoint_slices(namespace, settings.vllm_service): gateway.pods.follow,
        endpoint_slices(namespace, settings.gateway_service): gateway.pods.follow_gateway,
    }
    tasks = [asyncio.create_task(api.follow(collection, on_change)) for collection, on_change in followed.items()]
    tasks += [asyncio.create_task(_refresh_keys(gateway)), asyncio.create_task(gateway.traces.follow())]
    if gateway.ledger:
        tasks.append(asyncio.create_task(gateway.ledger.follow()))
    if gateway.samples:
        tasks.append(asyncio.create_task(gateway.samples.follow()))
    if settings.reads_verdicts and settings.usage_bucket:
        verdicts = Verdicts(Bucket(settings.usage_bucket), gateway.metrics, lambda: gateway.routes.versions)
        tasks.append(asyncio.create_task(verdicts.follow()))

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)


def follow_desired(gateway: Gateway, desired: LastGood[DesiredState], config_maps: list[Manifest]) -> None:
    """Takes over the desired state."""
    key = gateway.settings.desired_key
    for manifest in config_maps:
        text = manifest.get("data", {}).get(key)
        if text is None:
            desired.refuse(f"the ConfigMap has no {key}")
        elif desired.take(text.encode()):
            gateway.routes = Routes(desired.value)
            _declare_labels(gateway)
    gateway.metrics.refused.labels("desired state").set(desired.problem is not None)


async def _refresh_keys(gateway: Gateway) -> None:
    _declare_labels(gateway)
    while True:
        gateway.metrics.refused.labels("keys").set(gateway.keys.problem is not None)
        await asyncio.sleep(KEYS_SECONDS)
        if gateway.keys.refresh():
            _declare_labels(gateway)


def _declare_labels(gateway: Gateway) -> None:
    gateway.metrics.declare(gateway.routes.versions, gateway.keys.tenants)
    gateway.metrics.take_ends(gateway.keys.ends)
