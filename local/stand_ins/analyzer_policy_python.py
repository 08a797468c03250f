"""Pulumi's analyzer for policy packs in Python, as which the SDK's own runner of them is served.

Packs run under the Python of this checkout, whatever environment their PulumiPolicy.yaml names.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

from local.stand_ins.provider import wait_for_end_of_input


def main() -> None:
    """The engine's arguments are its address and the pack's folder; then options of the pack's runtime, which the runner takes for its own."""
    threading.Thread(target=_exit_with_engine, daemon=True).start()
    sys.argv = sys.argv[:3]
    runpy.run_module("pulumi.policy", run_name="__main__")


def _exit_with_engine() -> None:
    wait_for_end_of_input()
    os._exit(0)


if __name__ == "__main__":
    main()
