"""An AWS budget that writes an e-mail before a month has cost more than it was to."""

from __future__ import annotations

import pulumi_aws as aws

from loraserve.planning import setting_sections

_WARNINGS = ((80, "ACTUAL"), (100, "FORECASTED"), (100, "ACTUAL"))
"""Percent of the budget, spent or foreseen."""


def budget(name: str, wanted: setting_sections.Budget) -> aws.budgets.Budget:
    """Of the whole account: costs are told apart by tags only where somebody has activated these for billing."""
    return aws.budgets.Budget(
        name,
        budget_type="COST",
        limit_amount=f"{wanted.dollars_per_month:.2f}",
        limit_unit="USD",
        time_unit="MONTHLY",
        notifications=[
            {
                "comparison_operator": "GREATER_THAN",
                "notification_type": kind,
                "threshold": percent,
                "threshold_type": "PERCENTAGE",
                "subscriber_email_addresses": list(wanted.emails),
            }
            for percent, kind in _WARNINGS
        ],
    )
