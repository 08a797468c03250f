"""`name@version` is put together and taken apart in one place."""

import pytest

from loraserve.contract.agent_state import AdapterStatus, State
from loraserve.contract.desired_state import Adapter
from loraserve.contract.served_name import ServedName
from tests.stack_values import adapter


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("faq@v1", "faq", "v1"),
        ("faq", "faq", None),
        ("faq@", "faq", ""),
        ("faq@v1@2", "faq", "v1@2"),
        ("mistralai/Mistral-7B", "mistralai/Mistral-7B", None),
    ],
)
def test_any_text_is_taken_apart(text: str, name: str, version: str | None) -> None:
    served = ServedName(text)
    assert (served.adapter, served.version) == (name, version)


def test_what_is_put_together_is_the_name_that_vllm_knows() -> None:
    served = ServedName.of("faq", "v1")
    assert (served, served.adapter, served.version) == ("faq@v1", "faq", "v1")
    assert {"faq@v1": 1}[served] == 1, "it finds what vLLM calls so"


def test_an_entry_and_its_agents_word_have_one_name() -> None:
    entry = Adapter.model_validate(adapter("faq"))
    status = AdapterStatus(name=entry.name, version=entry.version, state=State.READY)
    assert entry.served_name == status.served_name == ServedName.of(entry.name, entry.version)
