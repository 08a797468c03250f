"""Runs a policy pack by the SDK's own runner, until the language host that started it ends.

Arguments: the engine's address, and the pack's folder.
"""

from __future__ import annotations

import os
import runpy
import threading


def main() -> None:
    threading.Thread(target=_exit_with_host, daemon=True).start()
    runpy.run_module("pulumi.policy", run_name="__main__")


def _exit_with_host() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
