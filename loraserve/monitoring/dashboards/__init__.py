"""One module per subject; `ALL` is in the order in which a person looks."""

from loraserve.monitoring.dashboards import adapters, cold_start, cost, gpu, lora, serving, tenants

ALL = (
    serving.DASHBOARD,
    adapters.DASHBOARD,
    lora.DASHBOARD,
    gpu.DASHBOARD,
    cold_start.DASHBOARD,
    cost.DASHBOARD,
    tenants.DASHBOARD,
)
