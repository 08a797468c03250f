"""Who may call: keys that are kept as digests, rotated, revoked and limited."""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraserve.contract.keys import InvalidKeys, Key, KeyRing, create_key
from loraserve.gateway.errors import RateLimited, Unauthorized
from loraserve.gateway.keys import Keys, RateLimits
from loraserve.operator.cli import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def ring(*keys: Key) -> str:
    return KeyRing(keys=keys).to_json()


def test_a_key_is_known_by_its_digest_alone(file: Path) -> None:
    key, entry = create_key("team-a", ("faq",), 60)
    file.write_text(ring(entry))
    keys = Keys(file)
    keys.refresh()

    assert keys.authenticate(f"Bearer {key}") == entry
    assert key not in file.read_text()
    assert key.split("-", 2)[2] not in file.read_text()


def test_when_keys_end_is_known_of_those_that_do(file: Path) -> None:
    _, lasting = create_key("team-a", ("faq",), 60)
    _, ending = create_key("team-a", ("faq",), 60, expires_at="2026-12-24T00:00:00Z")
    file.write_text(ring(lasting, ending))
    keys = Keys(file)
    keys.refresh()
    assert keys.ends == {("team-a", ending.id): datetime(2026, 12, 24, tzinfo=UTC)}


@pytest.mark.parametrize("drawn", ["03427940", "12e45678", "34279401"])
def test_no_reader_of_a_stack_file_takes_an_id_for_a_number(drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML writes the first two without quotes, and Pulumi reads numbers."""
    monkeypatch.setattr("secrets.token_hex", lambda _: drawn)

    _, entry = create_key("team-a", ("faq",), 60)

    assert entry.id == f"k{drawn}"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {cut}",
        "Bearer lsk-{id}-",
        "Bearer lsk",
    ],
)
def test_whatever_is_not_the_whole_key_is_refused(file: Path, authorization: str | None) -> None:
    key, entry = create_key("team-a", ("*",), None)
    file.write_text(ring(entry))
    keys = Keys(file)
    keys.refresh()

    presented = authorization and authorization.format(key=key, cut=key[:-1], id=entry.id)
    with pytest.raises(Unauthorized):
        keys.authenticate(presented)


def test_both_keys_of_a_rotation_are_valid_until_the_old_one_is_removed(file: Path) -> None:
    old, old_entry = create_key("team-a", ("*",), None)
    new, new_entry = create_key("team-a", ("*",), None)
    file.write_text(ring(old_entry, new_entry))
    keys = Keys(file)
    keys.refresh()
    assert {keys.authenticate(f"Bearer {key}").tenant for key in (old, new)} == {"team-a"}

    file.write_text(ring(new_entry))
    keys.refresh()

    assert keys.authenticate(f"Bearer {new}") == new_entry
    with pytest.raises(Unauthorized):
        keys.authenticate(f"Bearer {old}")


@pytest.mark.parametrize("bad", ["", "{}x", '{"keys": [{"id": "a"}]}', "gone"])
def test_a_bad_document_never_replaces_a_good_one(file: Path, bad: str) -> None:
    key, entry = create_key("team-a", ("*",), None)
    file.write_text(ring(entry))
    keys = Keys(file)
    keys.refresh()

    file.unlink() if bad == "gone" else file.write_text(bad)
    keys.refresh()
    assert keys.authenticate(f"Bearer {key}") == entry
    assert keys.known

    file.write_text(ring())
    keys.refresh()
    with pytest.raises(Unauthorized):
        keys.authenticate(f"Bearer {key}")


def test_two_keys_with_one_id_are_refused() -> None:
    _, entry = create_key("team-a", ("*",), None)
    with pytest.raises(InvalidKeys, match="2 keys have the id"):
        KeyRing.parse(json.dumps({"keys": [entry.model_dump(mode="json", by_alias=True)] * 2}))


def test_a_key_allows_the_models_it_names() -> None:
    _, entry = create_key("team-a", ("faq",), None)
    assert entry.allows("faq")
    assert not entry.allows("legal")


def test_a_limit_is_a_minutes_worth_and_refills_steadily() -> None:
    now = 0.0
    limits = RateLimits(lambda: now)
    _, entry = create_key("team-a", ("*",), 60)
    for _ in range(60):
        limits.admit(entry, replicas=1)
    with pytest.raises(RateLimited) as refused:
        limits.admit(entry, replicas=1)
    assert refused.value.retry_after == 1

    now = 2.0
    limits.admit(entry, replicas=1)
    limits.admit(entry, replicas=1)
    with pytest.raises(RateLimited):
        limits.admit(entry, replicas=1)


def test_replicas_share_a_limit() -> None:
    _, entry = create_key("team-a", ("*",), 60)
    replicas = [RateLimits(lambda: 0.0) for _ in range(3)]
    granted = 0
    for replica in replicas:
        for _ in range(100):
            try:
                replica.admit(entry, replicas=3)
                granted += 1
            except RateLimited:
                break
    assert granted == 60


@given(limit=st.integers(1, 1000), replicas=st.integers(1, 50))
@example(limit=1, replicas=2)
@example(limit=1, replicas=9)
def test_whatever_the_share_is_a_replica_grants_a_request_now_and_the_next_when_it_says(
    limit: int, replicas: int
) -> None:
    now = 0.0
    limits = RateLimits(lambda: now)
    _, entry = create_key("team-a", ("*",), limit)
    for _ in range(max(1, limit // replicas)):
        limits.admit(entry, replicas)
    with pytest.raises(RateLimited) as refused:
        limits.admit(entry, replicas)

    assert refused.value.retry_after
    now = refused.value.retry_after
    limits.admit(entry, replicas)


def test_a_limit_that_replicas_cannot_share_is_kept_over_time() -> None:
    """One a minute over two replicas: each grants one in two minutes."""
    now = 0.0
    limits = RateLimits(lambda: now)
    _, entry = create_key("team-a", ("*",), 1)
    granted = []
    for second in range(0, 600, 10):
        now = float(second)
        with contextlib.suppress(RateLimited):
            limits.admit(entry, replicas=2)
            granted.append(second)
    assert granted == [0, 120, 240, 360, 480]


def test_a_tenants_keys_do_not_share_one_bucket_with_another_tenant() -> None:
    limits = RateLimits(lambda: 0.0)
    busy, calm = create_key("busy", ("*",), 1)[1], create_key("calm", ("*",), 1)[1]
    limits.admit(busy, replicas=1)
    with pytest.raises(RateLimited):
        limits.admit(busy, replicas=1)
    limits.admit(calm, replicas=1)


def test_the_command_shows_the_key_once_and_prints_the_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "key",
                "team-a",
                "--models",
                "faq,legal",
                "--requests-per-minute",
                "600",
                "--tokens-per-minute",
                "9000",
                "--expires-at",
                "2030-01-31T00:00:00Z",
            ]
        )
        == 0
    )
    shown = capsys.readouterr()
    key = next(word for word in shown.err.split() if word.startswith("lsk-"))

    assert f'sha256: "{hashlib.sha256(key.encode()).hexdigest()}"' in shown.out
    assert 'models: ["faq", "legal"]' in shown.out
    assert "requestsPerMinute: 600" in shown.out
    assert "tokensPerMinute: 9000" in shown.out
    assert 'expiresAt: "2030-01-31T00:00:00Z"' in shown.out
    assert key not in shown.out


@pytest.mark.parametrize("when", ["soon", "2030-01-31T00:00:00"])
def test_an_end_that_is_no_time_with_its_zone_is_refused(capsys: pytest.CaptureFixture[str], when: str) -> None:
    assert main(["key", "team-a", "--expires-at", when]) == 1
    assert "expires" in capsys.readouterr().err


def test_a_tenant_that_is_no_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "team a"]) == 1
    assert "tenant: must be letters" in capsys.readouterr().err


def test_a_tenant_agrees_to_be_sampled_by_a_share_in_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "team-a", "--sample-percent", "5"]) == 0
    assert "samplePercent: 5" in capsys.readouterr().out
    assert main(["key", "team-a", "--sample-percent", "101"]) == 1
    assert "sample_percent" in capsys.readouterr().err
    assert main(["key", "team-a"]) == 0
    assert "samplePercent" not in capsys.readouterr().out
