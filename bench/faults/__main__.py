"""Every fault once, on the local stack under load by official OpenAI clients: `make faults`, or ONLY='node|drain'.

Lost is a request to which a client with its default settings (two retries) got no answer. The time is until the last client
that noticed anything (no answer, or one later than 5 s) had its answer.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from bench import report
from bench.cold_start import ANSWERS
from bench.faults import events
from bench.faults.events import World
from bench.faults.s3 import Mood, in_between
from bench.served import gateway_url, own_stack, publish_versions, wait_until
from bench.steady import OK, Sent, Steady
from local.models import BASE_NAME, QUESTION
from local.stack import LocalStack, console

_CALM_LIMIT_S = 400
_BEFORE_S = 8


class May(Enum):
    """What a fault may cost."""

    NOTHING = "nothing is lost"
    BEGUN = "only streams that had begun; the rest is held"
    ALL = "what the one node carries, gateways too; it comes back by itself"


@dataclass(frozen=True)
class Fault:
    name: str
    may_cost: May
    happen: Callable[[World], None]
    prepare: Callable[[World], None] | None = None


FAULTS = (
    Fault("vLLM: out of memory", May.BEGUN, events.starve_vllm),
    Fault("the agent: kill -9", May.NOTHING, events.kill_agent),
    Fault("the API server: away for 60 s", May.NOTHING, events.stop_api_server),
    Fault("the kubelet: kill -9", May.NOTHING, events.kill_kubelet),
    Fault("S3 away for 15 s", May.NOTHING, events.bad_s3(Mood.AWAY)),
    Fault("S3 slow for 15 s: 1 kB/s", May.NOTHING, events.bad_s3(Mood.SLOW)),
    Fault("S3 answers 500 for 15 s", May.NOTHING, events.bad_s3(Mood.FAILING)),
    Fault("S3's bodies cut short for 15 s", May.NOTHING, events.bad_s3(Mood.CUT)),
    Fault("a wrong clock, as S3 answers it, for 15 s", May.NOTHING, events.bad_s3(Mood.OTHER_CLOCK)),
    Fault("a Spot node: drained, replaced", May.NOTHING, events.drain),
    Fault("an upgrade: new templates of gateway, agent and vLLM", May.NOTHING, events.upgrade),
    Fault("two operators' `up` at once", May.NOTHING, events.two_ups),
    Fault("a tenant's key: rotated and revoked", May.NOTHING, events.rotate_key),
    Fault("the desired state: corrupt for 20 s", May.NOTHING, events.corrupt_desired_state),
    Fault("a gateway: kill -9", May.BEGUN, events.kill_gateway),
    Fault("vLLM: kill -9", May.BEGUN, events.kill_vllm),
    Fault("the node: gone, booted again", May.ALL, events.lose_node),
    Fault("the node: gone while vLLM starts", May.ALL, events.lose_node_while_vllm_starts),
    Fault("the adapters' disk: full for 15 s", May.NOTHING, events.fill_disk, events.small_disk),
    Fault("`up`: killed twice", May.NOTHING, events.kill_up),
    Fault("every gateway rolled out", May.NOTHING, events.roll_out),
    Fault("KEDA: kill -9, away for 20 s", May.NOTHING, events.kill_keda),
    Fault("vLLM's pod: deleted without grace", May.BEGUN, events.delete_vllm_pod),
)
_VERSIONS = 8
"""As many faults need one that is on no disk yet."""


def main() -> None:
    """Exit code 1 where a fault cost more than it may, or its event did not come to its end."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rate", type=float, default=3, help="requests a second")
    options.add_argument("--only", default="", help="a regular expression of faults' names")
    options.add_argument("--minutes", type=float, default=60, help="after which no further fault is begun")
    chosen = options.parse_args()
    faults = [fault for fault in FAULTS if re.search(chosen.only, fault.name)]
    with own_stack() as stack:
        with stack.endpoint() as served:
            served.ask(BASE_NAME, QUESTION)  # held until vLLM has started
        rows, failed = _all(stack, faults, chosen)
    report.markdown(("fault", "promise", "lost, of requests", "until nobody notices", "beside it"), rows)
    sys.exit(failed)


def _all(stack: LocalStack, faults: Sequence[Fault], chosen: argparse.Namespace) -> tuple[list[Sequence[str]], bool]:
    versions = iter(publish_versions(stack, [f"faq@v{number}" for number in range(2, 2 + _VERSIONS)]))
    rows, failed = [], False
    with (
        in_between(stack) as s3,
        Steady(gateway_url(stack), stack.key_file.read_text(), list(ANSWERS), chosen.rate) as load,
    ):
        world = World(stack, load, versions, s3)
        ends = time.monotonic() + chosen.minutes * 60
        for fault in faults:
            if time.monotonic() > ends:
                console.print(f"no time left for: {fault.name}", markup=False)
                continue
            row, wrong = _one(fault, world)
            console.print(" | ".join(row), markup=False)
            for problem in wrong:
                console.print(f"    {problem}", markup=False)
            rows.append(row)
            failed |= bool(wrong)
    return rows, failed


def _one(fault: Fault, world: World) -> tuple[Sequence[str], list[str]]:
    """A row of the table, and what is worse than promised."""
    world.told.clear()
    wrong, began = [], time.monotonic()
    try:
        if fault.prepare:
            fault.prepare(world)
            time.sleep(_BEFORE_S)
        wait_until(lambda: world.load.calm, "calm before it", _CALM_LIMIT_S)
        began = time.monotonic()
        fault.happen(world)
        time.sleep(_BEFORE_S)
        wait_until(lambda: world.load.calm, "calm after it", _CALM_LIMIT_S)
    except Exception as error:  # the other faults are still to come
        wrong.append(f"{fault.name}: {error!r}")
    touched = world.load.touched_since(began)
    suffered = [one for one in touched if one.suffered and one.ended]
    back = max((one.ended - began for one in suffered if one.ended), default=0)
    lost = [one for one in touched if one.ended and one.outcome != OK]
    wrong += [f"{one.model} after {one.at - began:.1f} s: {one.outcome}" for one in lost if not _allowed(fault, one)]
    described = f"{len(lost)} of {len(touched)}" + _by_outcome(lost)
    beside = "; ".join(f"{what} {found}" for what, found in world.told.items())
    return (
        fault.name,
        fault.may_cost.value,
        described,
        f"{back:.0f} s" if back else "no client noticed",
        beside,
    ), wrong


def _allowed(fault: Fault, lost: Sent) -> bool:
    return fault.may_cost is May.ALL or (fault.may_cost is May.BEGUN and lost.outcome == "stream broken")


def _by_outcome(lost: Sequence[Sent]) -> str:
    counts = Counter(one.outcome for one in lost)
    return f" ({', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())})" if counts else ""


if __name__ == "__main__":
    main()
