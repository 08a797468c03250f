"""`loraserve plan` and `loraserve base-model`: what they print is what a deployment would have."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from loraserve.operator import cli
from loraserve.operator.beforehand.base_model import UnknownBaseModel, describe
from loraserve.planning.settings_parser import parse
from tests.stack_values import CHECKOUT, adapter, stack_file, stack_values

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "quantization_config": {"quant_method": "awq", "bits": 4},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def test_a_plan_says_where_memory_goes_and_what_its_neighbours_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CHECKOUT / "Pulumi.dev.yaml")]) == 0
    told = capsys.readouterr().out
    for words in ("g4dn.xlarge", "g6.xlarge (chosen)", "g6e.xlarge", "KV cache", "--max-loras=4", "$1.01/h"):
        assert words in told


def test_a_plan_on_more_gpus_than_were_measured_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_with(1, tmp_path, gpuInstanceType="g6e.xlarge")
    assert cli.main(["plan", str(stack), "--region", "us-east-1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["offer"]["proven"], told["offer"]["hourly"]) == (True, 1.861)
    assert (told["larger"]["instance"], told["larger"]["proven"]) == ("g6.12xlarge", False)
    assert cli.main(["plan", str(stack)]) == 0
    assert "yes, unproven" in capsys.readouterr().out


def test_a_plan_for_machines_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CHECKOUT / "Pulumi.dev.yaml"), "--json"]) == 0
    offer = json.loads(capsys.readouterr().out)["offer"]
    parts = sum(offer[f"{part}_gib"] for part in ("weights", "adapters", "peak", "graphs", "overhead", "kv", "outside"))
    assert parts == pytest.approx(offer["gpu_gib"], abs=0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    for part in (1, 2):
        (tmp_path / f"model-{part}.safetensors").write_bytes(safetensors(8 << 20))
    return tmp_path


def test_a_folder_is_described_as_a_stack_says_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["base-model", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["baseModelShape"]["quantisation"] == "awq 4 bits"
    parsed = parse(stack_values("dev", **told | {"baseModel": "acme/own-1b"}))
    assert (parsed.model_shape.vocab_size, parsed.model_shape.head_dim) == (128256, 64)
    assert parsed.model_shape.weights_gib == 0.02
    assert parsed.base_model_has_chat_template


def test_a_folder_without_weights_is_told_so(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UnknownBaseModel, match="no safetensors weights"):
        describe(str(folder))


def test_a_model_with_other_layers_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mixtral"}))
    with pytest.raises(UnknownBaseModel, match="its MLPs are experts"):
        describe(str(folder))


def test_what_is_neither_a_folder_nor_an_id_is_told_so() -> None:
    with pytest.raises(UnknownBaseModel, match="neither a folder nor a hub id"):
        describe("no such/model/at all")


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A hub with one model, and its files."""
    files: dict[str, bytes] = {"config.json": json.dumps(CONFIG).encode()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prefix, _, name = self.path.rpartition("/")
            content = files.get(name) if prefix == "/acme/own-1b/resolve/main" else None
            if content is None:
                self.send_error(404)
                return
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_of_the_hub_is_described_without_its_weights(hub: tuple[str, dict[str, bytes]]) -> None:
    url, files = hub
    files["model.safetensors"] = safetensors(100 << 20)
    found = describe("acme/own-1b", hub=url)
    assert found.shape.weights_gib == 0.1
    assert not found.has_chat_template
    assert found.settings()["baseModelRevision"] == COMMIT
    assert found.settings()["acceptedBaseIds"] == ["acme/own-1b"]


def test_weights_in_several_files_are_counted_by_their_index(hub: tuple[str, dict[str, bytes]]) -> None:
    url, files = hub
    files["model.safetensors.index.json"] = json.dumps({"metadata": {"total_size": 5 * 1024**3}}).encode()
    files["chat_template.jinja"] = b"x"
    found = describe("acme/own-1b", hub=url)
    assert found.shape.weights_gib == 5.0
    assert found.has_chat_template


def test_a_model_that_the_hub_has_not_is_told_so(hub: tuple[str, dict[str, bytes]]) -> None:
    with pytest.raises(UnknownBaseModel, match="look at the id and the revision; for a gated model set HF_TOKEN"):
        describe("acme/other", hub=hub[0])


@pytest.fixture
def prometheus() -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """One that answers each query with this, and what it was asked."""
    asked: list[str] = []
    answer: dict[str, Any] = {"data": {"result": [{"metric": {}, "value": [0, "9.2"]}]}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked.extend(parse_qs(address.query)["query"])
            content = json.dumps(answer).encode()
            self.send_response(200 if address.path == "/api/v1/query" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked, answer
    server.shutdown()
    thread.join()
    server.server_close()


def stack_with(adapters: int, folder: Path, **changes: Any) -> Path:
    entries = [adapter(f"tenant-{number}") for number in range(adapters)]
    path = folder / "Pulumi.dev.yaml"
    path.write_text(
        json.dumps(
            {
                "config": stack_file("dev")
                | {f"loraserve:{key}": value for key, value in changes.items()}
                | {"loraserve:adapters": entries}
            }
        )
    )
    (folder / "Pulumi.yaml").write_text((CHECKOUT / "Pulumi.yaml").read_text())
    return path


def test_slots_follow_from_how_many_adapters_were_in_use_at_once(
    prometheus: tuple[str, list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, asked, _ = prometheus
    stack = stack_with(200, tmp_path)
    assert cli.main(["plan", str(stack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["offer"]["slots"] == 32
    assert cli.main(["plan", str(stack), "--from-prometheus", url, "--window", "3d"]) == 0
    told = capsys.readouterr().out
    assert "10 adapters were in use within a minute (95th percentile of 3d)" in told
    assert "  loraserve:adapterSlots: 16\n" in told
    assert "--max-loras=16" in told
    (query,) = asked
    assert query.startswith("quantile_over_time(0.95, count(sum by (model, version) (increase(")
    assert 'loraserve_gateway_requests_total{namespace="ml-models", version!~"base|none|other"}[1m]' in query
    assert query.endswith("> 0)[3d:1m])")


def test_few_adapters_keep_a_slot_each_whatever_the_traffic(
    prometheus: tuple[str, list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack_with(40, tmp_path)
    assert cli.main(["plan", str(stack), "--from-prometheus", prometheus[0], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["at_once"], told["offer"]["slots"]) == (10, 52)


def test_a_prometheus_without_traffic_or_that_is_none_is_told_so(
    prometheus: tuple[str, list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _, answer = prometheus
    answer["data"] = {"result": []}
    stack = str(stack_with(60, tmp_path))
    assert cli.main(["plan", stack, "--from-prometheus", url]) == 1
    assert "knows no request to an adapter in ml-models within 7d" in capsys.readouterr().err
    assert cli.main(["plan", stack, "--from-prometheus", f"{url}/elsewhere"]) == 1
    assert "answers 404" in capsys.readouterr().err


def test_prices_are_those_of_the_stacks_own_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Pulumi.yaml", "Pulumi.dev.yaml"):
        text = (CHECKOUT / name).read_text().replace("aws:region: eu-central-1", "aws:region: us-east-1")
        (tmp_path / name).write_text(text)
    stack = str(tmp_path / "Pulumi.dev.yaml")
    for word in ("cost", "plan"):
        told = [
            capsys.readouterr().out for more in ([], ["--region", "us-east-1"]) if not cli.main([word, stack, *more])
        ]
        assert told[0] == told[1]
