"""Puts the agent together and runs it until it is told to stop."""

import functools
import logging
import signal
import sys
import threading
from collections.abc import Callable

from loraserve.agent.base_weights import BaseWeights
from loraserve.agent.config_map_watch import ConfigMapWatch
from loraserve.agent.desired_document import DesiredDocument, NewestText
from loraserve.agent.disk import Disk
from loraserve.agent.downloads import Downloads
from loraserve.agent.drain import DrainTimes
from loraserve.agent.events import Events, PodReference
from loraserve.agent.metrics import Metrics, VllmMetrics
from loraserve.agent.reconciler import OnQuarantine, Reconciler
from loraserve.agent.server import AgentApi, serve
from loraserve.agent.start_cache import StartCaches
from loraserve.agent.vllm import Vllm
from loraserve.agent.working_set import WorkingSet
from loraserve.catalog.adapters import remove_partial_downloads
from loraserve.catalog.bucket import Bucket
from loraserve.contract.agent_settings import AgentSettings, PodSettings
from loraserve.contract.environment import InvalidEnvironment
from loraserve.kubernetes import KubernetesApi
from loraserve.log import event

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0


def run(settings: AgentSettings) -> None:
    """Runs until SIGTERM or SIGINT, which end the process at once. Raises InvalidEnvironment."""
    _prepare(settings)
    wake = threading.Event()
    metrics = Metrics()
    vllm = Vllm(settings.vllm_url, settings.vllm_api_key)
    downloads = Downloads(settings.adapter_dir, functools.cache(Bucket), metrics, on_finished=wake.set)
    vital: list[threading.Thread] = []
    desired = _desired_document(settings, vital, on_change=wake.set)
    reconciler = Reconciler(
        desired,
        vllm,
        downloads,
        metrics,
        disk=Disk(settings.adapter_dir, settings.adapter_disk_bytes),
        working_set=WorkingSet(settings.adapters_held, settings.adapter_disk_bytes, on_ask=wake.set),
        drain_times=DrainTimes(),
        envelope=settings.envelope,
        on_quarantine=_on_quarantine(settings.kubernetes, vital),
        on_loaded=wake.set,
    )
    base_weights = BaseWeights(settings.base_folder, lambda: desired.value)
    start_caches = StartCaches(settings.cache_dir, settings.start_cache_version, lambda: desired.value)
    metrics.follow(lambda: reconciler.report, lambda: start_caches.use)
    try:
        key = settings.vllm_api_key
        api = AgentApi(reconciler, metrics, VllmMetrics(vllm), (base_weights, start_caches), api_key=key, vital=vital)
        server = serve(api, settings.port)
    except OSError as error:
        raise InvalidEnvironment(f"cannot listen on AGENT_PORT {settings.port}: {error.strerror}") from None
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()  # for where the exception is lost: one that meets a finalizer is printed, and the program goes on
        sys.exit(0)  # raised in this thread, whatever it waits for

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log.info(event("agent started", desired=settings.desired_file, vllm=settings.vllm_url, port=settings.port))
    try:
        _reconcile_until(stop, reconciler, metrics, wake)
    finally:
        server.shutdown()
        log.info(event("agent stopped"))


def _desired_document(
    settings: AgentSettings, vital: list[threading.Thread], on_change: Callable[[], object]
) -> DesiredDocument:
    """Follows the object where this is a pod that may read it, else the mounted copy alone."""
    kubernetes = settings.kubernetes
    if not kubernetes:
        return DesiredDocument(settings.desired_file.read_bytes)
    api, key = KubernetesApi(kubernetes), settings.desired_file.name
    watch = ConfigMapWatch(api, kubernetes.namespace, kubernetes.config_map, key, on_change)
    vital.append(watch.start())
    return DesiredDocument(NewestText(watch, settings.desired_file).read)


def _on_quarantine(kubernetes: PodSettings | None, vital: list[threading.Thread]) -> OnQuarantine:
    if not kubernetes:
        return lambda *_: None
    pod = PodReference(kubernetes.pod_name, kubernetes.namespace, kubernetes.pod_uid)
    events = Events(KubernetesApi(kubernetes), pod)
    vital.append(events.thread)
    return events.quarantined


def _prepare(settings: AgentSettings) -> None:
    if not settings.desired_file.parent.is_dir():
        raise InvalidEnvironment(
            f"AGENT_DESIRED_FILE {settings.desired_file}: there is no such folder; name the desired-state document to follow"
        )
    try:
        settings.adapter_dir.mkdir(parents=True, exist_ok=True)
        remove_partial_downloads(settings.adapter_dir)
    except OSError as error:
        raise InvalidEnvironment(f"AGENT_ADAPTER_DIR {settings.adapter_dir}: {error.strerror}") from None


def _reconcile_until(stop: threading.Event, reconciler: Reconciler, metrics: Metrics, wake: threading.Event) -> None:
    while not stop.is_set():
        wake.clear()
        try:
            reconciler.step()
        except Exception:
            metrics.reconcile_errors.inc()
            log.exception(event("pass failed", retry=f"in {INTERVAL_SECONDS:.0f}s"))
            wake.clear()
        wake.wait(INTERVAL_SECONDS)
