"""The card itself, by NVIDIA's DCGM exporter; empty while no GPU node runs."""

from loraserve.monitoring.panels import Dashboard, Panel, Query, Unit

_CARD = "{{Hostname}} GPU {{gpu}}"

DASHBOARD = Dashboard(
    "loraserve-gpu",
    "GPU",
    (
        Panel(
            "Busy",
            Unit.PERCENT,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL)", _CARD),),
            "Near 0 with requests waiting: vLLM hangs. Near 0 for long with a node up: money for nothing.",
            maximum=100,
        ),
        Panel(
            "Memory in use",
            Unit.MEBIBYTES,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_FB_USED)", _CARD),),
            "Flat by design: vLLM takes its share at start. Growth after that is a leak.",
        ),
        Panel(
            "Memory bandwidth in use",
            Unit.PERCENT,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_MEM_COPY_UTIL)", _CARD),),
            "Decoding is bound by it: near 100 more requests at once cost latency.",
            maximum=100,
        ),
        Panel(
            "Power",
            Unit.WATT,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_POWER_USAGE)", _CARD),),
            "At the card's limit (72 W of an L4) its clock falls: that is full use, not a fault.",
        ),
        Panel(
            "Temperature",
            Unit.CELSIUS,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_GPU_TEMP)", _CARD),),
            "Above 85 the card slows down; replace the node.",
            warn=85,
        ),
        Panel(
            "Last Xid error",
            Unit.COUNT,
            (Query("max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS)", _CARD),),
            "Anything but 0: runbook, GpuError.",
            warn=1,
        ),
    ),
)
