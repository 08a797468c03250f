"""Adapters that PEFT could have saved, and a vLLM that keeps its API's promises only."""

import ctypes
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import safetensors

from loraserve.contract.base_model import Base, LoraShape
from loraserve.contract.desired_state import Adapter

BUCKET = "adapters-test"
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
HIDDEN = 16


BASE = Base(
    name="acme/tiny",
    accepted_ids=("mistralai/Mistral-7B-v0.1",),
    shape=LoraShape(num_hidden_layers=2, modules=dict.fromkeys(QKVO, (HIDDEN, HIDDEN))),
)
"""What `write_adapter`'s adapters fit."""

Shapes = dict[str, list[int]]
"""Tensor name -> shape."""


def lora_shapes(rank: int = 8, modules: tuple[str, ...] = QKVO) -> Shapes:
    shapes = {}
    for module in modules:
        layer = f"base_model.model.model.layers.0.self_attn.{module}"
        shapes[f"{layer}.lora_A.weight"] = [rank, HIDDEN]
        shapes[f"{layer}.lora_B.weight"] = [HIDDEN, rank]
    return shapes


def safetensors_of(shapes: Shapes, fill: bytes = b"\x01") -> bytes:
    """A float32 file as the reference implementation writes it; every byte of data is `fill`."""
    data = {
        name: ctypes.create_string_buffer(fill * 4 * prod(shape), 4 * prod(shape)) for name, shape in shapes.items()
    }
    return safetensors.serialize(
        {
            name: safetensors.TensorSpec(
                dtype="float32", shape=shape, data_ptr=ctypes.addressof(data[name]), data_len=len(data[name])
            )
            for name, shape in shapes.items()
        }
    )


def write_adapter(
    folder: Path, shapes: Shapes | None = None, rank: int = 8, fill: bytes = b"\x01", **config: object
) -> Path:
    """A PEFT folder; `config` overrides keys of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": "mistralai/Mistral-7B-v0.1",
        "r": rank,
        "lora_alpha": 16,
        "target_modules": list(QKVO),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_of(shapes or lora_shapes(rank), fill))
    return folder


class FakeVllm:
    """The routes the agent uses, with vLLM's statuses and bodies. Attributes may be changed while it runs."""

    base = "base-model"

    def __init__(self, api_key: str = "secret") -> None:
        self.api_key = api_key
        self.loaded: dict[str, str] = {}
        self.refuses: dict[str, str] = {}
        """Served name -> what the engine says about it."""
        self.up = True
        """While False, connections are dropped without an answer."""
        self.effects: dict[str, float] = {}
        """Served name -> how far an adapter moves every log-probability; 0.5 where nothing is said."""
        self.noise = 0.0
        """How far every second run of the base differs from the first."""
        self.used: dict[str, float] = {}
        """Served name -> when it last had a request."""
        self.kv_cache_usage = 0.0
        self.scrapes = 0
        """How often all metrics were asked for."""
        self.completions: list[dict[str, Any]] = []
        """Every completion asked for."""
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def restart(self) -> None:
        self.loaded = {}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        match path:
            case "/health":
                return 200, ""
            case "/metrics":
                self.scrapes += 1
                return 200, self._metrics()
            case "/metrics/?name[]=vllm:lora_last_used_timestamp_seconds&name[]=vllm:kv_cache_usage_perc":
                usage = f'vllm:kv_cache_usage_perc{{engine="0",model_name="{self.base}"}} {self.kv_cache_usage}\n'
                return 200, "".join([*self._last_used(), usage])
            case "/v1/models":
                adapters = [{"id": name, "root": root, "parent": self.base} for name, root in self.loaded.items()]
                return 200, json.dumps({"data": [{"id": self.base, "root": "x", "parent": None}, *adapters]})
            case "/v1/completions":
                return self._complete(body)
            case "/v1/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter":
                return self._unload(body["lora_name"])
        return 404, json.dumps({"detail": "Not Found"})

    def _metrics(self) -> str:
        running = ["# TYPE vllm:num_requests_running gauge\n", "vllm:num_requests_running 3.0\n"]
        gauge = "# TYPE vllm:lora_requests_info gauge\n"
        labels = f'max_lora="4",running_lora_adapters="{",".join(self.used)}",waiting_lora_adapters=""'
        return "".join([*running, gauge, f"vllm:lora_requests_info{{{labels}}} 1.7e9\n", *self._last_used()])

    def _last_used(self) -> Iterator[str]:
        """As our plugin in vLLM says it."""
        for name, at in self.used.items():
            yield f'vllm:lora_last_used_timestamp_seconds{{lora_name="{name}"}} {at}\n'

    def _complete(self, body: dict[str, Any]) -> tuple[int, str]:
        """Every version's text is its own name, so that a wrong answer is seen."""
        model = body["model"]
        if model != self.base and model not in self.loaded:
            return 404, _error(f"The model `{model}` does not exist.")
        self.completions.append(body)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        return 200, json.dumps({"choices": [{"text": model, **self._logprobs(body, prompt)} for prompt in prompts]})

    def _logprobs(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        if "prompt_logprobs" not in body:
            return {}
        runs = sum(body["model"] == self.base for body in self.completions)
        shift = self.noise * (runs % 2) if body["model"] == self.base else self.effects.get(body["model"], 0.5)
        tokens = enumerate(prompt.split()[1:])
        return {"prompt_logprobs": [None, *({str(token): {"logprob": shift - token}} for token, _ in tokens)]}

    def _load(self, name: str, path: str) -> tuple[int, str]:
        self.loads.append(name)
        if name in self.loaded:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").exists():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}")
        if name in self.refuses:
            return 500, _error(self.refuses[name])
        self.loaded[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> tuple[int, str]:
        self.unloads.append(name)
        if self.loaded.pop(name, None) is None:
            return 404, _error(f"The lora adapter '{name}' cannot be found.")
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._respond({})

            def do_POST(self) -> None:
                self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _respond(self, body: dict[str, Any]) -> None:
                if not fake.up:
                    return
                if self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {fake.api_key}":
                    status, text = 401, json.dumps({"error": "Unauthorized"})
                else:
                    status, text = fake.answer(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}})


def upload(s3: Any, name: str, files: Mapping[str, bytes]) -> Adapter:
    """Around the gate of `loraserve publish`, with a manifest that fits the bytes."""
    manifest = json.dumps(
        {
            "schemaVersion": 1,
            "files": {
                file: {"parts": [hashlib.sha256(content).hexdigest()], "size": len(content)}
                for file, content in files.items()
            },
            "baseModel": "mistralai/Mistral-7B-v0.1",
            "rank": 8,
            "alpha": 16.0,
            "targetModules": sorted(QKVO),
            "dtypes": ["F32"],
            "createdAt": datetime.now(UTC).isoformat(),
        }
    ).encode()
    for file, content in {**files, "manifest.json": manifest}.items():
        s3.put_object(Bucket=BUCKET, Key=f"llm-models/{name}/v1/{file}", Body=content)
    return Adapter(
        name=name,
        model=name,
        version="v1",
        digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        rank=8,
        target_modules=QKVO,
        size_bytes=sum(len(content) for content in files.values()),
    )
