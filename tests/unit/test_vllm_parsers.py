"""Names of vLLM's parsers: a wrong one would be found by a vLLM that does not start, minutes after `up`."""

from __future__ import annotations

import pytest

from infra import versions
from loraserve.planning.settings_parser import InvalidSettings, parse
from loraserve.planning.vllm_parsers import REASONING_PARSERS, TOOL_CALL_PARSERS
from tests.stack_values import stack_values


def test_the_names_are_those_of_the_pinned_vllm() -> None:
    """The end-to-end tests compare them with the image's."""
    assert versions.VLLM == "0.32.0", "copy the names in vllm/tool_parsers and vllm/reasoning (__init__.py) anew"


def test_they_are_compared_with_an_installed_vllm() -> None:
    """Skipped where vLLM is not installed (`pip install --group vllm`)."""
    tools, reasoning = pytest.importorskip("vllm.tool_parsers"), pytest.importorskip("vllm.reasoning")
    assert tools._TOOL_PARSERS_TO_REGISTER.keys() == TOOL_CALL_PARSERS
    assert reasoning._REASONING_PARSERS_TO_REGISTER.keys() == REASONING_PARSERS


@pytest.mark.parametrize(("key", "near"), [("toolCallParser", "hermes"), ("reasoningParser", "qwen3")])
def test_a_parser_that_vllm_has_not_is_refused_with_those_it_has(key: str, near: str) -> None:
    assert parse(stack_values("dev", **{key: near}))
    with pytest.raises(InvalidSettings, match=rf"loraserve:{key}: vLLM has no such parser; choose one of .*\b{near}\b"):
        parse(stack_values("dev", **{key: "hermes-2"}))
