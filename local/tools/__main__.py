"""`python -m local.tools`: builds every tool that is missing, but for the bench's own, the scanners and what watches a stack.
`python -m local.tools lock [NAME ...]`: pins anew what the modules of these names are built from, after a version in
versions.py was changed. `python -m local.tools browser`: installs what tests draw our pages in."""

from __future__ import annotations

import sys

from local.processes import ProcessError
from local.progress import say
from local.tools.debian import ensure_browser
from local.tools.toolchain import OF_MONITORING, OF_SCANS, Tool, crds, ensure, kwok_stages, write_locks


def main(words: list[str]) -> None:
    try:
        if words[:1] == ["lock"]:
            write_locks(words[1:], say)
            return
        if words == ["browser"]:
            ensure_browser(say)
            return
        for tool, path in ensure(
            *(tool for tool in Tool if tool not in (Tool.VEGETA, *OF_MONITORING, *OF_SCANS))
        ).items():
            print(f"{tool:<28} {path}")
        crds()
        kwok_stages()
    except ProcessError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
