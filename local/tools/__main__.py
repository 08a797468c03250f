"""`python -m local.tools`: builds every tool that is missing."""

import sys

from local.tools.toolchain import Tool, ToolchainError, crds, ensure, kwok_stages


def main() -> None:
    try:
        for tool, path in ensure(*Tool).items():
            print(f"{tool:<24} {path}")
        crds()
        kwok_stages()
    except ToolchainError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
