"""Who asks, how much, and who is refused."""

from loraserve.monitoring.metrics import OVER_LIMIT, rate
from loraserve.monitoring.panels import Dashboard, Look, Panel, Query, Unit

_REQUESTS = "loraserve_gateway_tenant_requests_total"

DASHBOARD = Dashboard(
    "loraserve-tenants",
    "Tenants",
    (
        Panel(
            "Requests",
            Unit.REQUESTS_PER_SECOND,
            (Query(rate(_REQUESTS, "tenant"), "{{tenant}}"),),
            "One tenant far above its usual rate: a loop? Its key has limits of its own.",
            look=Look.STACKED,
        ),
        Panel(
            "Refused for a limit (429)",
            Unit.REQUESTS_PER_SECOND,
            (Query(rate(_REQUESTS, "tenant", where=f'{{outcome="{OVER_LIMIT}"}}'), "{{tenant}}"),),
            "The tenant asks more than its key allows: raise the limit, or talk to it.",
        ),
        Panel(
            "Tokens",
            Unit.PER_SECOND,
            (Query(rate("loraserve_gateway_tokens_total", "tenant", "direction"), "{{tenant}} {{direction}}"),),
            "What a bill is made of; written tokens cost many times what read ones do.",
            look=Look.STACKED,
        ),
        Panel(
            "Held requests",
            Unit.COUNT,
            (Query("sum by (tenant) (loraserve_gateway_tenant_waiting)", "{{tenant}}"),),
            "The waiting room is shared fairly: one full tenant does not hold another's.",
        ),
    ),
)
