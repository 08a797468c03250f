"""vLLM's metrics after a week of fifty adapters at twelve requests a second, as our plugin keeps them and as vLLM does itself.

The real loggers of the pinned vLLM, in its image, without a model: a node is started and thrown away for it. vLLM as it is
gets one hour only, since that is enough to see where it leads.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench import report
from infra.vllm_container import vllm_files, vllm_volumes
from local import models
from local.cluster.machine import Machine
from loraserve.planning.settings_parser import parse
from loraserve.planning.stack_settings import Settings
from tests.stack_values import stack_values

MOST_BYTES = 300_000
_STEPS = 10
"""A week in minutes: what is bounded is so after every tenth step as well."""
_SCRIPT = Path(__file__).with_name("soak_in_vllm.py")


def main() -> None:
    """Exit code 1 where there are more bytes than MOST_BYTES."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=7 * 24, help="simulated (default: a week, ten minutes)")
    hours = parser.parse_args().hours
    with tempfile.TemporaryDirectory(prefix="loraserve-soak-") as folder:
        place = Machine(Path(folder) / "state")
        place.check()
        place.prepare(print)
        try:
            place.start(print)
            base, shared = models.base(place.run_in_vllm_image), Path(folder) / "shared"
            plugins = mount(parse(stack_values("dev")), shared / "plugins")

            def soak(plugins: str, hours: float, steps: int) -> dict[str, float]:
                result = shared / "result.json"
                command = ["python3", str(_SCRIPT), str(base), plugins, str(hours), str(steps), str(result)]
                place.run_in_vllm_image(command, [_SCRIPT.parent, base, shared])
                return json.loads(result.read_text())

            before, after = soak("", min(hours, 1), 1), soak(str(plugins), hours, _STEPS)
        finally:
            place.remove()
    figures = {
        f"vLLM alone, after {min(hours, 1):g} h": words(before),
        f"with our plugin, after {hours:g} h": words(after),
    }
    problems = [f"/metrics has more than {MOST_BYTES} bytes"] if after["bytes"] > MOST_BYTES else []
    report.show(figures, problems)
    sys.exit(bool(problems))


def mount(settings: Settings, folder: Path) -> Path:
    """What lies beside vLLM in the pod, as the kubelet lays it out."""
    files = vllm_files(settings)
    (volume,) = [volume for volume in vllm_volumes(settings, "") if volume["name"] == "files"]
    for item in volume["config_map"]["items"]:  # type: ignore[index, typeddict-item]
        path = folder / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[item["key"]])
    return folder


def words(found: dict[str, float]) -> str:
    size, seconds = found["bytes"] / 1e3, found["seconds"] * 1e3
    return f"{found['requests']:,.0f} requests: {size:,.0f} kB, {found['sets']:,.0f} sets of adapters, {seconds:.0f} ms to write"


if __name__ == "__main__":
    main()
