"""What a start of vLLM compiles, kept for the next node: written by one role, taken by its digest, never a condition."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra import names
from infra.vllm_container import start_cache_version, vllm_environment
from loraserve.agent.metrics import Metrics
from loraserve.agent.start_cache import CacheUse, StartCaches
from loraserve.agent.start_cache_writer import write
from loraserve.catalog import start_cache
from loraserve.catalog.bucket import Bucket, VersionExists
from loraserve.catalog.files import UnsafeFile
from loraserve.contract.agent_settings import AgentSettings
from loraserve.contract.agent_state import AgentState
from loraserve.contract.base_model import Base, StartCache
from loraserve.contract.desired_state import DesiredState
from loraserve.contract.start_cache_settings import StartCacheSettings
from loraserve.planning.settings_parser import parse
from tests.stack_values import adapter, stack_values
from tests.unit.adapters_and_vllm import BUCKET, FakeVllm
from tests.unit.declared import Program, declare, environment_in_pod
from tests.waiting import eventually

pytest_plugins = ["tests.unit.catalog_fixtures"]
pytestmark = pytest.mark.usefixtures("few_clients", "small_parts")

VERSION = "0123456789abcdef"
AOT = "vllm/torch_compile_cache/torch_aot_compile"


def fill(cache: Path, *compiled: str) -> Path:
    """As a vLLM leaves it that has started."""
    for name, content in {
        **{f"{AOT}/{one}/model": f"artifact {one}" for one in compiled},
        "pyc/opt/vllm/engine.pyc": "module",
        "triton/AB/kernel.cubin": "kernel",
        "vllm/startup_plan/plan.json": "{}",
        "huggingface/model.safetensors": "weights",
        "home/.history": "secret",
    }.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(content)
    return cache


def files(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}


@pytest.fixture
def published(bucket: Bucket, tmp_path: Path) -> StartCache:
    return start_cache.publish(bucket, fill(tmp_path / "writer", "k1"), VERSION)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The fresh volume of another pod."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def brought(cache: Path, wanted: StartCache | None, version: str | None = VERSION) -> StartCaches:
    """After the agent's attempt."""
    desired = DesiredState(base=Base(name="b"), bucket=BUCKET, start_cache=wanted)
    caches = StartCaches(cache, version, lambda: desired, lambda *_: Bucket(BUCKET, pause_seconds=0))
    eventually(lambda: caches.obstacle is None, every_s=0.01)
    return caches


def test_what_one_vllm_has_compiled_lies_on_the_next_ones_volume(published: StartCache, cache: Path) -> None:
    assert brought(cache, published).use is CacheUse.HIT
    compiled = {f"{AOT}/k1/model", "pyc/opt/vllm/engine.pyc", "triton/AB/kernel.cubin", "vllm/startup_plan/plan.json"}
    assert files(cache) - {".start-cache"} == compiled, "and no weights, homes or remains"


def test_a_vllm_that_compiles_all_the_same_is_a_miss(published: StartCache, cache: Path) -> None:
    caches = brought(cache, published)
    fill(cache, "k1")
    assert caches.use is CacheUse.HIT
    fill(cache, "k2")
    assert caches.use is CacheUse.MISS


def test_other_bytes_than_the_stack_names_are_not_unpacked(published: StartCache, cache: Path) -> None:
    poisoned = published.model_copy(update={"digest": "sha256:" + "0" * 64})
    assert brought(cache, poisoned).use is CacheUse.REFUSED
    assert files(cache) == set()


def test_an_archive_that_was_changed_in_the_bucket_is_not_unpacked(s3: Any, published: StartCache, cache: Path) -> None:
    key = f"start-caches/vllm/{VERSION}/start-cache.tar"
    body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body.replace(b"kernel", b"KERNEL"))
    assert brought(cache, published).use is CacheUse.REFUSED
    assert files(cache) == set()


def test_an_archive_cannot_write_beside_the_volume(
    bucket: Bucket, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_escape(tar: tarfile.TarFile, *_: Any) -> None:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "add", with_an_escape)
        wanted = start_cache.publish(bucket, fill(tmp_path / "writer", "k1"), VERSION)
    assert brought(cache, wanted).use is CacheUse.REFUSED
    assert not (tmp_path / "escaped").exists()


def test_without_one_or_with_one_for_other_flags_vllm_starts_at_once(published: StartCache, cache: Path) -> None:
    assert brought(cache, None).use is CacheUse.NONE
    assert brought(cache, published, version="fedcba9876543210").use is CacheUse.OTHER
    assert StartCaches(None, None, lambda: None).use is CacheUse.NONE
    assert files(cache) == set()


def test_one_that_is_not_there_only_costs_the_time(cache: Path, s3: Any) -> None:
    missing = StartCache(version=VERSION, digest="sha256:" + "1" * 64, size_bytes=1)
    assert brought(cache, missing).use is CacheUse.UNAVAILABLE


def test_an_agent_waits_for_no_document_for_ever(cache: Path) -> None:
    seconds = iter(range(0, 10_000, 20))
    caches = StartCaches(cache, VERSION, lambda: None, clock=lambda: float(next(seconds)))
    eventually(lambda: caches.obstacle is None, every_s=0.01)
    assert caches.use is CacheUse.UNAVAILABLE


def test_a_volume_that_a_vllm_has_used_is_left_alone(published: StartCache, cache: Path) -> None:
    fill(cache, "k2")
    before = files(cache)
    caches = brought(cache, published)
    assert caches.thread is None
    assert files(cache) == before


def test_the_metric_says_what_became_of_it() -> None:
    metrics = Metrics()
    metrics.follow(AgentState, lambda: CacheUse.MISS)
    lines = metrics.exposition().splitlines()
    assert 'loraserve_start_cache{use="miss"} 1.0' in lines
    assert 'loraserve_start_cache{use="hit"} 0.0' in lines


def test_one_of_a_version_is_written_once(bucket: Bucket, published: StartCache, tmp_path: Path) -> None:
    with pytest.raises(VersionExists):
        start_cache.publish(bucket, fill(tmp_path / "writer", "k2"), VERSION)


def test_nothing_is_published_of_a_vllm_that_compiled_nothing(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match="compiled nothing"):
        start_cache.publish(bucket, fill(tmp_path / "writer"), VERSION)


def test_the_writer_has_large_prompts_answered_by_base_model_and_adapter_before_it_packs(
    bucket: Bucket, tmp_path: Path, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm.loaded["a@v1"] = "/mnt/a"
    monkeypatch.setattr("loraserve.agent.start_cache_writer.httpx.get", lambda *_, **__: httpx.Response(200))
    settings = StartCacheSettings(
        bucket=BUCKET,
        version=VERSION,
        dir=fill(tmp_path / "writer", "k1"),
        prompt_tokens=700,
        vllm_url=vllm.url,
        vllm_api_key=vllm.api_key,
    )
    assert write(settings, bucket).version == VERSION
    assert {(one["model"], len(one["prompt"].split())) for one in vllm.completions} == {(vllm.base, 700), ("a@v1", 700)}


@pytest.fixture(scope="module")
def writing() -> Program:
    return declare("dev", startCacheWriter=True, adapters=[adapter()])


def job_pod(program: Program) -> dict[str, Any]:
    return program.one("batch/v1:Job", names.START_CACHE_WRITER).inputs["spec"]["template"]["spec"]


def serving_pod(program: Program) -> dict[str, Any]:
    return program.one("apps/v1:Deployment", names.VLLM).inputs["spec"]["template"]["spec"]


def told_to_agent(pod: dict[str, Any]) -> AgentSettings:
    return AgentSettings.from_environment(environment_in_pod(pod["initContainers"][0]))


def test_the_job_runs_the_vllm_of_the_replicas_on_the_same_volume_path(writing: Program) -> None:
    pod, serving = job_pod(writing), serving_pod(writing)
    (theirs,), (agent, ours), (writer,) = serving["containers"], pod["initContainers"], pod["containers"]
    assert {key: value for key, value in ours.items() if key != "restartPolicy"} == theirs
    assert (ours["restartPolicy"], pod["restartPolicy"]) == ("Always", "Never")
    told = StartCacheSettings.from_environment(environment_in_pod(writer))
    assert told.version == told_to_agent(serving).start_cache_version
    mounts = {mount["name"]: mount["mountPath"] for mount in writer["volumeMounts"]}
    assert mounts["cache"] == str(told.dir) == str(told_to_agent(serving).cache_dir)
    assert told_to_agent(pod).start_cache_version is None, "it compiles anew"
    assert agent["name"] == "agent"


def test_only_the_job_may_write_start_caches_and_only_while_it_is_wanted(writing: Program) -> None:
    policy = json.loads(writing.one("iam/rolePolicy:RolePolicy", "loraserve-dev-start-cache").inputs["policy"])
    adding = [one for one in policy["Statement"] if one["Action"] == "s3:PutObject"]
    assert [one["Resource"].rpartition(":::")[2].partition("/")[2] for one in adding] == ["start-caches/*"]
    assert pod_account(writing) == names.START_CACHE_WRITER
    without = declare("dev", adapters=[adapter()])
    assert not [one for one in without.resources if "start-cache" in one.name]


def pod_account(program: Program) -> str:
    return job_pod(program)["serviceAccountName"]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"longestGenerationSeconds": 60}, True),
        ({"toolCallParser": "mistral"}, True),
        ({"maxModelLen": 2048}, False),
        ({"gpuInstanceType": "g5.xlarge"}, False),
        ({"vllmImage": "other@sha256:" + "0" * 64}, False),
        ({"adapters": [adapter(rank=64)]}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_its_version_names_what_is_compiled_and_nothing_else(changes: dict[str, Any], same: bool) -> None:
    stands, changed = (
        start_cache_version(parse(stack_values("dev", **{"adapters": [adapter()]} | one))) for one in ({}, changes)
    )
    assert (stands == changed) is same


def test_the_job_sends_itself_out_and_lets_nobody_in(writing: Program) -> None:
    policies = [one.inputs["spec"] for one in writing.of_type("networking.k8s.io/v1:NetworkPolicy")]
    (own,) = (spec for spec in policies if spec["podSelector"] == {"matchLabels": names.START_CACHE_WRITER_LABELS})
    assert own["policyTypes"] == ["Egress"], "so the namespace's default holds for what comes in"
    assert [port["port"] for rule in own["egress"] for port in rule["ports"]] == [443]


def test_preview_says_that_starts_will_compile_anew() -> None:
    entry = {"version": VERSION, "digest": "sha256:" + "0" * 64, "sizeBytes": 1}
    program = declare("dev", startCache=entry, adapters=[adapter()])
    assert any("startCache was written for" in message for message in program.messages)
    document = program.one("v1:ConfigMap", names.DESIRED_STATE).inputs["data"]["desired.json"]
    assert DesiredState.parse(document).start_cache == StartCache.model_validate(entry)


def test_what_compiles_is_told_of_the_kept_folder_by_the_names_that_it_reads() -> None:
    """Of Triton, PyTorch, vLLM, FlashInfer, CUDA and Numba: under another name it goes to the home folder, and is lost to nobody's notice."""
    told = vllm_environment(lora=True, offline=True)
    variables = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH")
    assert all(told[name].startswith(f"{names.CACHE_DIR}/") for name in (*variables, "FLASHINFER_WORKSPACE_BASE"))
