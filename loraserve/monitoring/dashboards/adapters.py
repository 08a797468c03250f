"""Base against adapters, and a canary against its stable version, as callers see them."""

from loraserve.monitoring.metrics import DURATION, FAILURES, FIRST_TOKEN, quantile, rate
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit

_VERSION = ("model", "version")
_LEGEND = "{{model}} {{version}}"
_REQUESTS = "loraserve_gateway_requests_total"
_FAILED = f'{{outcome=~"{"|".join(FAILURES)}"}}'
_OK = '{outcome="ok"}'
_EMPTY = rate("loraserve_gateway_empty_answers_total", *_VERSION)
_WRITTEN = rate("loraserve_gateway_tokens_total", *_VERSION, where='{direction="out"}')
_MOST = 12
"""Lines on a panel: more cannot be told apart."""


def _most(expression: str) -> str:
    return f"topk ({_MOST}, {expression})"


DASHBOARD = Dashboard(
    "loraserve-adapters",
    "Base against adapters",
    (
        Panel(
            "Share of traffic",
            Unit.REQUESTS_PER_SECOND,
            (Query(_most(rate(_REQUESTS, *_VERSION)), _LEGEND),),
            "A canary's share differs from its percentage: callers are assigned, not requests, and few callers are uneven.",
            look=Look.STACKED,
        ),
        Panel(
            "Time to first token, P95",
            Unit.SECONDS,
            (Query(_most(quantile(0.95, FIRST_TOKEN, *_VERSION)), _LEGEND),),
            "One adapter slower than the others waits for a slot: look at the LoRA page. All slow: the serving page.",
            warn=5,
        ),
        Panel(
            "Duration of a request, P95",
            Unit.SECONDS,
            (Query(_most(quantile(0.95, DURATION, *_VERSION)), _LEGEND),),
            "A version that takes longer than the one before often writes longer answers: see the next panel.",
        ),
        Panel(
            "Tokens of an answer, mean",
            Unit.COUNT,
            (Query(_most(f"{_WRITTEN} / {rate(_REQUESTS, *_VERSION, where=_OK)}"), _LEGEND),),
            "At the limit of max_tokens: the adapter has not learnt to stop.",
        ),
        Panel(
            "Empty answers",
            Unit.SHARE,
            (Query(_most(f"{_EMPTY} / {rate(_REQUESTS, *_VERSION, where=_OK)}"), _LEGEND),),
            "Nothing but the token that ends an answer. Of one version: compare it with the one before. One token was asked for: no fault.",
            warn=0.1,
            maximum=1,
        ),
        Panel(
            "Requests that failed through no fault of the caller",
            Unit.SHARE,
            (
                Query(
                    _most(f"{rate(_REQUESTS, *_VERSION, where=_FAILED)} / {rate(_REQUESTS, *_VERSION)}"),
                    _LEGEND,
                ),
            ),
            "Of one adapter: `loraserve status` says what is wrong with it. Of all: the serving page.",
            warn=0.01,
            maximum=1,
        ),
        Panel(
            "Score in the last evaluation",
            Unit.SHARE,
            (
                Query(
                    _most("max by (model, version, of) (loraserve_gateway_evaluation_score)"),
                    "{{model}} {{version}}: {{of}}",
                ),
            ),
            "Lower than before on the same rows: another base, vLLM or prompt template? The version's own line below the other: roll back.",
            maximum=1,
        ),
        Panel(
            "Answered by the base instead",
            Unit.REQUESTS_PER_SECOND,
            (Query(_most(rate("loraserve_gateway_fallbacks_total", "model", "reason")), "{{model}}: {{reason}}"),),
            "Callers got the base model's answer: `loraserve status` says why the adapter did not give its own.",
            warn=0.001,
        ),
    ),
)
