"""A bad document never replaces a good one, whoever reads it."""

from collections.abc import Callable

import pytest

from loraserve.contract.keys import KeyRing
from loraserve.contract.last_good import LastGood

GOOD, OTHER = KeyRing().to_json().encode(), b'{"schemaVersion": 1, "keys": []}'


@pytest.fixture
def keys() -> LastGood[KeyRing]:
    return LastGood("keys", KeyRing.parse)


def failing(problem: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise FileNotFoundError(problem)

    return read


def test_nothing_is_in_force_before_the_first_good_document(keys: LastGood[KeyRing]) -> None:
    assert not keys.take(b"{")
    assert (keys.value, keys.digest) == (None, None)
    assert keys.problem


@pytest.mark.parametrize("spoil", [lambda keys: keys.take(b"{"), lambda keys: keys.refresh(failing("gone"))])
def test_what_is_bad_or_gone_leaves_the_last_good_one(
    keys: LastGood[KeyRing], spoil: Callable[[LastGood[KeyRing]], bool]
) -> None:
    assert keys.refresh(lambda: GOOD)
    in_force, digest = keys.value, keys.digest

    assert not spoil(keys)
    assert (keys.value, keys.digest) == (in_force, digest)
    assert keys.problem

    assert keys.take(GOOD), "the same text again is a change for the good"
    assert keys.problem is None


def test_only_another_text_is_a_change(keys: LastGood[KeyRing]) -> None:
    assert [keys.take(text) for text in (GOOD, GOOD, OTHER)] == [True, False, True]


def test_a_problem_is_said_once_and_what_is_in_force_with_it(
    keys: LastGood[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"{", b"{", GOOD, b"{", b"{"):
        keys.take(content)
    refusals = [record.message for record in caplog.records if "refused" in record.message]
    assert ["none is in force yet" in refusals[0], "the last good one stays" in refusals[1]] == [True, True]
    assert len(refusals) == 2
