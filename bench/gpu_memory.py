# pyright: reportMissingImports=false
"""Measures where vLLM puts a GPU's memory, row by row, for the planner's model (`loraserve/planning/gpu_memory.py`).

    python -m bench.gpu_memory [--only NAME ...] [--at-once N]

takes the rows of `bench/gpu_memory.json`, starts the installed vLLM with each row's flags on random weights, asks it how
many KV-cache tokens it finds room for, and writes the answers beside the flags. Needs vLLM and a GPU with more memory
than the cards that the rows stand for; no weights, no network. CUDA_VISIBLE_DEVICES picks the GPU.

A smaller card is imposed: vLLM is told the row's memory as the card's, and what its own process takes as used (from
NVML), so that rows can be measured side by side. With `--at-once 1`, and over several GPUs, vLLM sees the real card and
the share is scaled instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_name("gpu_memory.json")
_MIB = 1024**2
_ROW_MINUTES = 8

_FORKING = threading.Lock()
"""Libraries do not stand two forks at once."""

Row = dict[str, Any]
"""Flags of one start, and `measured` once it was."""


def main() -> None:
    """The command. Rows that fail keep no figures, and the others go on."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_memory", description="Measures the planner's rows.")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--part", default="0/1", help="every n-th row: 1/2 is the second half")
    parser.add_argument("--at-once", type=int, default=4, help="rows measured side by side on one GPU")
    parser.add_argument("--out", type=Path, default=ROWS)
    options = parser.parse_args()

    import vllm
    from vllm.v1.worker import gpu_worker  # noqa: F401  (the children have it loaded)
    from vllm.v1.worker.gpu import model_runner  # noqa: F401

    table = json.loads(ROWS.read_text())
    part, parts = map(int, options.part.split("/"))
    rows = [row for row in table["rows"] if not options.only or row["name"] in options.only][part::parts]
    alone = [row for row in rows if options.at_once == 1]
    beside = [row for row in rows if row not in alone]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda row: _measured(table, row, imposed=True), beside))
    for row in alone:
        _measured(table, row, imposed=False)
    table |= {"vllm": vllm.__version__, "date": f"{datetime.now(UTC):%Y-%m-%d}", "measured_on": _card()}
    options.out.write_text(_readable(table))


def _readable(table: Row) -> str:
    """A line for each model and each row."""
    models = ",\n".join(f"  {json.dumps(name)}: {json.dumps(config)}" for name, config in table["models"].items())
    rows = ",\n".join(f"  {json.dumps(row)}" for row in table["rows"])
    said = "".join(f" {json.dumps(key)}: {json.dumps(table[key])},\n" for key in table if key not in ("models", "rows"))
    return f'{{\n{said} "models": {{\n{models}\n }},\n "rows": [\n{rows}\n ]\n}}\n'


def _measured(table: Row, row: Row, *, imposed: bool) -> None:
    """Fills in the row's `measured`, in a process of its own; `error` where it failed."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, table["models"][row["model"]], row, imposed))
    with _FORKING:
        process.start()
    theirs.close()
    try:
        row["measured"] = ours.recv() if ours.poll(_ROW_MINUTES * 60) else {"error": "no answer"}
    except EOFError:
        row["measured"] = {"error": "the process ended"}
    if process.is_alive():
        process.join(10)
    process.kill()
    print(json.dumps({"name": row["name"], **row["measured"]}), flush=True)


def _child(pipe: Any, config: Row, row: Row, imposed: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="row-"))
    log = os.open(os.environ.get("ROW_LOGS", str(folder)) + f"/{row['name']}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"VLLM_CACHE_ROOT": f"{folder}/cache", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # so that its processes see the imposed card, too
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
    (folder / "config.json").write_text(json.dumps(config))
    try:
        pipe.send(_measure(folder, row, imposed))
    except BaseException:  # whatever it was, the other rows go on
        traceback.print_exc()
        pipe.send({"error": traceback.format_exc()[-1500:]})
    finally:
        os._exit(0)


def _measure(folder: Path, row: Row, imposed: bool) -> Row:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.engine.core import register_all_kvcache_specs, resolve_kv_cache_layout
    from vllm.v1.executor import Executor

    share = row["utilization"]
    if imposed:
        _impose(row["card_mib"] * _MIB)
    else:
        import torch

        share *= row["card_mib"] * _MIB / torch.cuda.get_device_properties(0).total_memory
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        gpu_memory_utilization=share,
        max_model_len=row["max_model_len"],
        max_num_seqs=row["max_num_seqs"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        tensor_parallel_size=row.get("tensor_parallel", 1),
        **_lora(row),
        **row.get("extra", {}),
    ).create_engine_config()
    register_all_kvcache_specs(config)
    executor = Executor.get_class(config)(config)
    specs = executor.get_kv_cache_specs()
    layouts = executor.get_supported_kv_cache_layouts()
    layout = resolve_kv_cache_layout(config, layouts, [spec for of_one in specs for spec in of_one.values()])
    executor.set_kv_cache_layout(layout.name)
    available = executor.determine_available_memory()
    cache = get_kv_cache_configs(config, specs, available)[0]
    # Layers of several kinds (a sliding window beside full attention) share one pool of blocks, and each takes its own.
    tokens = cache.num_blocks * config.cache_config.block_size // len(cache.kv_cache_groups)
    found = executor.collective_rpc(_report)[0]
    return {"kv_tokens": tokens, **found}


def _lora(row: Row) -> Row:
    if not row.get("slots"):
        return {}
    return {
        "enable_lora": True,
        "max_loras": row["slots"],
        "max_cpu_loras": row["slots"],
        "max_lora_rank": row["rank"],
        "lora_target_modules": row["modules"],
    }


def _report(worker: Any) -> Row:
    """What the worker found, MiB: see `Worker.determine_available_memory`."""
    import torch

    graphs = worker.cudagraph_memory_estimate
    mib = {
        "weights_mib": worker.model_runner.model_memory_usage,
        "consumed_mib": worker.total_consumed,
        "peak_mib": worker.peak_activation_memory - graphs,
        "graphs_mib": graphs,
        "kv_mib": worker.available_kv_cache_memory_bytes,
        "requested_mib": worker.requested_memory,
        "reserved_mib": torch.cuda.memory_reserved(),
        "allocated_mib": torch.cuda.memory_allocated(),
    }
    return {name: round(value / _MIB, 1) for name, value in mib.items()}


def _impose(card_bytes: int) -> None:
    """Lets vLLM see a card of this size that only its own process uses."""
    import torch
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    visible = [int(index) for index in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")]
    really = torch.cuda.mem_get_info

    def memory(device: object = None) -> tuple[int, int]:
        really()  # makes the context, which is no part of what vLLM takes
        gpu = pynvml.nvmlDeviceGetHandleByIndex(visible[torch.cuda.current_device()])
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        used = sum(process.usedGpuMemory for process in processes if process.pid == os.getpid())
        return card_bytes - used, card_bytes

    torch.accelerator.get_memory_info = memory
    torch.cuda.mem_get_info = memory


def _card() -> str:
    import torch

    return f"{torch.cuda.get_device_name()} ({torch.cuda.get_device_properties(0).total_memory // _MIB} MiB)"


if __name__ == "__main__":
    main()
