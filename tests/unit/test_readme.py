"""What README promises to applications, compared with the code. tests/e2e/test_readme.py runs its blocks."""

from __future__ import annotations

import re

from loraserve.gateway.errors import ApiError
from tests.stack_values import CHECKOUT

README = (CHECKOUT / "README.md").read_text()


def test_the_first_screen_says_what_it_is_and_the_two_commands() -> None:
    first = README.splitlines()[:24]
    assert "multi-LoRA serving" in first[2]
    assert [line.split("  ")[0] for line in first if line.startswith("make ")] == ["make up", "make test"]


def test_every_error_that_a_client_can_get_is_explained() -> None:
    def kinds(kind: type[ApiError]) -> set[tuple[int, str]]:
        return {(kind.status, kind.code)}.union(*map(kinds, kind.__subclasses__()))

    explained = set[tuple[int, str]]()
    for line in README.splitlines():
        if re.match(r"\| \d{3} `", line):
            cell = line.split("|")[1]
            for status, codes in re.findall(r"(\d{3}) ((?:`\w+`(?:, )?)+)", cell):
                explained |= {(int(status), code) for code in re.findall(r"`(\w+)`", codes)}
    assert explained == kinds(ApiError)
