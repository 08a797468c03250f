"""Whether a base model answers conversations, and in which format: known from the stack's settings alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loraserve.planning.known_models import DEFAULT_CHAT_TEMPLATES
from loraserve.planning.settings_parser import parse
from loraserve.planning.stack_settings import Settings
from tests.stack_values import OWN_MODEL_SHAPE, stack_values

DEFAULT_BASE = "TheBloke/Mistral-7B-v0.1-AWQ"


def settings(**changes: Any) -> Settings:
    return parse(stack_values("dev", **changes))


def own(**changes: Any) -> Settings:
    return settings(baseModel="acme/own-1b", baseModelShape=OWN_MODEL_SHAPE, **changes)


def prompt(*messages: tuple[str, str]) -> str:
    """As transformers renders the default base model's template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(DEFAULT_CHAT_TEMPLATES[DEFAULT_BASE].read_text())
    said = [{"role": role, "content": content} for role, content in messages]
    return template.render(messages=said, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", "Hi")], "<s>[INST] Hi [/INST]"),
        (
            [("user", "Hi"), ("assistant", "Hello."), ("user", "Who are you?")],
            "<s>[INST] Hi [/INST] Hello.</s>[INST] Who are you? [/INST]",
        ),
        ([("system", "Be brief."), ("user", "Hi")], "<s>[INST] Be brief.\n\nHi [/INST]"),
        ([("system", "Be brief.")], "<s>[INST] Be brief. [/INST]"),
    ],
)
def test_the_default_base_model_is_asked_in_mistrals_format(messages: list[tuple[str, str]], expected: str) -> None:
    assert prompt(*messages) == expected


def test_the_default_base_model_which_has_no_template_gets_one() -> None:
    assert settings().base_model == DEFAULT_BASE
    assert settings().chat_template == DEFAULT_CHAT_TEMPLATES[DEFAULT_BASE]
    assert settings().base.has_chat_template


def test_another_base_model_keeps_its_own() -> None:
    assert own().chat_template is None
    assert own().base.has_chat_template


def test_a_base_model_without_a_template_answers_no_conversations_unless_it_is_given_one(tmp_path: Path) -> None:
    assert not own(baseModelHasChatTemplate=False).base.has_chat_template
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[-1].content }}")
    given = own(baseModelHasChatTemplate=False, chatTemplateFile=str(file))
    assert (given.chat_template, given.base.has_chat_template) == (file, True)
