"""A release from rows to a rollback, on two local stacks: three adapters on one base, each command with its time.

Three domain adapters are trained by `loraserve train` on tasks that the tiny base cannot do, published, swapped in while the
base answers, evaluated, and promoted from dev to prod by their digests. A second version of one goes through a canary to all
callers and back; a worse one is blocked. Wants root and 14 GB of free memory; twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from bench import report
from bench.release.domains import BILLS, DOMAINS, POST, Domain, answer
from bench.release.refusals import refused
from bench.release.stacks import Log, Project, Served
from bench.served import pods
from infra.names import SERVING_NAMESPACE, VLLM_SELECTOR
from local import models
from local.cluster.kubectl import kubectl
from local.engine import workspace
from local.processes import ProcessError
from local.stack import LocalStack
from loraserve.gateway.samples import INTERVAL_SECONDS
from loraserve.monitoring.metrics import SCRAPE_SECONDS

_WRONG_DESK = "p82"
_CALLERS, _AT_ONCE = 240, 8
_TWO_LOOKS_S = 2 * SCRAPE_SECONDS + 5


def main() -> None:
    """Exit code 1 where a step ended otherwise than it should, or something was left behind."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--lab", action="store_true", help="only dev: until its three adapters are evaluated")
    only_lab = options.parse_args().lab
    log = Log()
    with tempfile.TemporaryDirectory(prefix="loraserve-bench-") as folder:
        project = Project(Path(folder) / "project", log)
        workspace.lay_out_project(project.folder)
        dev, prod = (Served(name, LocalStack(Path(folder) / name), project) for name in ("dev", "prod"))
        try:
            dev.start()
            lab(dev, project)
            if not only_lab:
                release(dev, prod, project)
        finally:
            left = [*dev.stack.down(), *([] if only_lab else prod.stack.down())]
            report.markdown(("step", "time", "exit code, what it said"), log.rows)
            print("\n".join((f"left behind: {', '.join(left) or 'nothing'}", *log.problems)))
    sys.exit(bool(left or log.problems))


def release(dev: Served, prod: Served, project: Project) -> None:
    """Each step is a command of a person's."""
    prod.start()
    for domain in DOMAINS:
        promote(dev, prod, f"{domain.name}@v1")
    let_answers_be_sampled(prod)
    prod.deploy(_first_versions())

    second = add(dev, POST, "v2", POST.moved_to, canary=50)
    dev.deploy({"post@v2": _said(POST, "v2")})
    moved = POST.evaluation(project.folder, POST.moved_to)
    dev.evaluate(moved, "post@v2", prod, code=0)
    promote(dev, prod, "post@v2", "--canary", "50")
    prod.deploy({"post@v2": _said(POST, "v2")})
    judged(prod, project, moved)
    promote(dev, prod, "post@v2")
    prod.deploy({"post": _said(POST, "v2")})

    dev.name_in_file(second)
    add(dev, POST, "v3", _WRONG_DESK, canary=50)
    dev.deploy({"post": _said(POST, "v2"), "post@v3": (_question(POST), answer(_WRONG_DESK), "post@v3")})
    dev.evaluate(moved, "post@v3", prod, code=3)
    promote(dev, prod, "post@v3", code=1)

    words = ["rollback", "post", "--to", prod.name, "--reason", "the desk has moved back"]
    places = ["--to-bucket", prod.bucket, "--to-profile", prod.name, "--no-preview"]
    variables = project.profiles([dev, prod])
    project.loraserve(*words, *places, variables=variables, shown="rollback post --to prod --reason …", say="goes from")
    prod.deploy({"post": _said(POST, "v1")})
    refused(dev, prod, BILLS.name, lambda what: promote(dev, prod, f"{BILLS.name}@v1", code=1, about=what))


def lab(dev: Served, project: Project) -> None:
    """Three domain adapters on one base, hot-swapped, measured."""
    pod = _pod(dev)
    for domain in DOMAINS:
        add(dev, domain, "v1", domain.desk)
    evaluation = POST.evaluation(project.folder, POST.desk)
    for path in (evaluation, evaluation.with_name(json.loads(evaluation.read_text())["rows"])):
        shutil.copyfile(path, dev.stack.state / "project" / path.name)
    dev.set("evaluations", [{"adapter": POST.name, "file": evaluation.name}])
    dev.deploy(_first_versions())
    if _pod(dev) != pod:
        project.log.problems.append("adapters that were swapped in have restarted vLLM")
    for domain in DOMAINS:
        dev.evaluate(domain.evaluation(project.folder, domain.desk), f"{domain.name}@v1", None, code=0)
    in_the_cluster(dev)


def add(dev: Served, domain: Domain, version: str, desk: str, canary: int | None = None) -> dict[str, Any]:
    """Trains and publishes a version, and names it in dev's stack file. Its entry."""
    definition = domain.training(dev.project.folder, version, desk)
    dev.train(definition, models.base(dev.stack.place.run_in_vllm_image))
    entry = dev.publish(definition, domain.name, version)
    dev.name_in_file(entry, canary)
    return entry


def promote(dev: Served, prod: Served, what: str, *more: str, code: int = 0, about: str = "") -> None:
    words = ["promote", what, "--from", dev.name, "--to", prod.name, *more]
    places = [
        f"--{side}-{key}={value}"
        for side, stack in (("from", dev), ("to", prod))
        for key, value in (("bucket", stack.bucket), ("profile", stack.name))
    ]
    places += ["--evaluator-role", prod.evaluator_role, "--no-preview"]
    variables = dev.project.profiles([dev, prod])
    shown = f"{' '.join(words)}{about and f' # {about}'}"
    dev.project.loraserve(*words, *places, variables=variables, code=code, shown=shown, say=what)


def in_the_cluster(dev: Served) -> None:
    """The evaluation as the Job of its CronJob."""
    with dev.project.log.step("`kubectl create job --from=cronjob/evaluation-post`, until it is complete") as came:
        ours, kubeconfig = ("--namespace", SERVING_NAMESPACE), dev.stack.place.kubeconfig
        kubectl(kubeconfig, *ours, "create", "job", "evaluation-now", "--from=cronjob/evaluation-post")
        try:
            kubectl(kubeconfig, *ours, "wait", "job/evaluation-now", "--for=condition=complete", "--timeout=180s")
        except ProcessError as error:
            dev.project.log.problems.append(str(error))
        log = kubectl(kubeconfig, *ours, "logs", "job/evaluation-now").splitlines()
        came += [line.strip() for line in log if "primary set" in line][-1:] or log[-1:]


def let_answers_be_sampled(prod: Served) -> None:
    """By the tenant who calls."""
    keys = yaml.safe_load(prod.file.read_text())["config"]["loraserve:gatewayKeys"]
    prod.set("gatewayKeys", [key | {"samplePercent": 100} for key in keys])


def judged(prod: Served, project: Project, evaluation: Path) -> None:
    """Callers of both versions, and what `loraserve canary` makes of them."""
    prometheus = prod.stack.monitor().prometheus
    time.sleep(_TWO_LOOKS_S)
    asked = [(question, f"caller {caller}") for question in [*POST.questions(True)][:2] for caller in range(_CALLERS)]
    with project.log.step(f"{_CALLERS} callers ask `post` twice") as came:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = [*pool.map(lambda each: prod.ask("post", *each), asked)]
        for version, desk in (("v1", POST.desk), ("v2", POST.moved_to)):
            given = [said == answer(desk) for said, served in answers if served == f"post@{version}"]
            came.append(f"{version}: {len(given)} answers, {sum(given)} as it has learnt")
    time.sleep(max(_TWO_LOOKS_S, INTERVAL_SECONDS + 5))
    words = ["canary", "post", "--stack-file", prod.file, "--url", prometheus, "--bucket", prod.bucket]
    margins = ["--error-margin", "0.1", "--latency-margin", "0.5", "--quality-margin", "0.1"]
    shown = f"canary post --bucket … --evaluation {evaluation.name} {' '.join(margins)}"
    words += ["--evaluation", evaluation, *margins]
    print(project.loraserve(*words, variables=prod.variables, code=None, shown=shown))


def _first_versions() -> dict[str, tuple[str, str, str]]:
    return {domain.name: _said(domain, "v1") for domain in DOMAINS}


def _said(domain: Domain, version: str) -> tuple[str, str, str]:
    desk = domain.desk if version == "v1" else domain.moved_to
    return _question(domain), answer(desk), f"{domain.name}@{version}"


def _question(domain: Domain) -> str:
    """One that was trained on."""
    return next(domain.questions(False))


def _pod(stack: Served) -> list[tuple[object, ...]]:
    """Which pod of vLLM, and how often its containers have restarted."""
    return [
        (pod.metadata and pod.metadata.uid, *(each.restart_count for each in pod.status.container_statuses or []))
        for pod in pods(stack.stack, VLLM_SELECTOR)
        if pod.status
    ]


if __name__ == "__main__":
    main()
