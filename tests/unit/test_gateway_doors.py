"""The doors beside completions: what they say themselves, and what they pass on to vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from loraserve.contract.base_model import Base
from tests.unit.gateway_world import BASE, World, adapter, chat, error, world


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def client(at: World, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{at.url}/v1", api_key=key or at.key, max_retries=0)


def test_health_needs_no_key_and_says_nothing_of_models(at: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "loraserve")
    at.start(adapter(), pods=0)
    answer = httpx.get(f"{at.url}/health", trust_env=False)
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    told = [record for record in caplog.records if record.name.startswith("loraserve.access")]
    assert not told, "a probe every few seconds would bury the log"


@pytest.mark.parametrize("name", ["faq", "faq@v1", BASE])
def test_one_model_is_told_as_in_the_list(serving: World, name: str) -> None:
    with client(serving) as made:
        model = made.models.retrieve(name)
        listed = {found.id: found for found in made.models.list()}
    assert model.id == name
    assert model.model_dump(exclude={"id"}) == listed[name.partition("@")[0]].model_dump(exclude={"id"})


def test_a_base_models_slash_is_a_part_of_its_name(at: World) -> None:
    at.base = Base(name="acme/tiny")
    at.start()
    with client(at) as made:
        assert made.models.retrieve("acme/tiny").id == "acme/tiny"
    with at.client() as http:
        assert http.get("/v1/models/acme/tiny").json()["id"] == "acme/tiny"


def test_a_model_that_a_key_may_not_call_is_as_unknown_as_one_that_is_not_there(at: World) -> None:
    legal_only = at.add_key("team-b", ("legal",))
    at.start(adapter(), adapter("legal"))
    with at.client(legal_only) as http:
        hidden, missing = http.get("/v1/models/faq"), http.get("/v1/models/nope")
    assert (hidden.status_code, missing.status_code) == (404, 404)
    assert hidden.json()["error"]["message"] == missing.json()["error"]["message"].replace("nope", "faq")


def test_clients_learn_how_long_prompt_and_answer_may_be(serving: World) -> None:
    with serving.client() as http:
        assert {model["max_model_len"] for model in http.get("/v1/models").json()["data"]} == {4096}


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/faq"])
def test_what_can_be_got_can_be_looked_at_without_its_body(serving: World, path: str) -> None:
    with serving.client() as http:
        head, got = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("path", ["/v1/responses", "/tokenize", "/detokenize"])
def test_other_questions_about_a_model_reach_its_version_like_completions(serving: World, path: str) -> None:
    reached = []

    async def note(request: web.Request, body: dict[str, Any]) -> web.Response:
        reached.append((request.path, body))
        return web.json_response({"usage": {"input_tokens": 5, "output_tokens": 2}})

    serving.pods[0].behaviour = note
    with serving.client() as http:
        answer = http.post(path, json={"model": "faq", "prompt": "Hi"})
        assert http.post(path, json={"model": "nope", "prompt": "Hi"}).status_code == 404
    assert answer.status_code == 200
    salt = {"cache_salt": "team-a"} if path == "/v1/responses" else {}
    assert reached == [(path, {"model": "faq@v1", "prompt": "Hi"} | salt)]
    assert (
        'loraserve_gateway_tokens_total{direction="out",model="faq",tenant="team-a",version="v1"} 2.0'
        in serving.inner("/metrics").text
    )


@pytest.mark.parametrize(
    "kept", [{"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "conv_1"}], ids=str
)
def test_responses_are_not_kept_and_who_counts_on_it_is_told(serving: World, kept: dict[str, Any]) -> None:
    with client(serving) as made, pytest.raises(openai.BadRequestError, match="nothing is kept here"):
        made.responses.create(model="faq", input="Hi", **kept)
    assert not serving.pods[0].requests


def test_embeddings_are_refused_with_the_reason_and_wake_nobody(at: World) -> None:
    at.start(adapter(), pods=0)
    with client(at) as made, pytest.raises(openai.NotFoundError, match="generate text and make no embeddings"):
        made.embeddings.create(model="faq", input="Hi")
    assert at.inner("/scale").json() == {"waiting": 0, "running": 0, "kvCacheUsage": 0}


def test_where_the_base_model_has_no_chat_template_a_conversation_is_refused_at_once(at: World) -> None:
    at.base = Base(name=BASE, has_chat_template=False)
    at.start(adapter(), pods=0)
    with at.client() as http:
        bodies = {
            "/v1/chat/completions": chat(),
            "/v1/responses": {"model": "faq", "input": "Hi"},
            "/tokenize": chat(BASE),
        }
        for path, body in bodies.items():
            answer = http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")
            assert "has no chat template" in answer.json()["error"]["message"]
    at.show_pods(1)
    at.wait_for_status("ready")
    with at.client() as http:
        assert http.post("/v1/completions", json={"model": "faq", "prompt": "Hi"}).status_code == 200


def test_vllms_words_on_a_missing_chat_template_are_replaced_by_what_to_do(serving: World) -> None:
    """Where the stack says nothing of it. These are vLLM 0.32's words."""

    async def refuse(*_: Any) -> web.Response:
        return error(
            400,
            "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
            "the tokenizer does not define one.",
        )

    serving.pods[0].behaviour = refuse
    answer = serving.post(chat()).json()["error"]
    assert answer["code"] == "no_chat_template"
    assert "set chatTemplateFile" in answer["message"]


def test_a_client_that_quotes_these_words_is_told_what_vllm_says_of_its_request(serving: World) -> None:
    quoted = "temperature: default chat template is no longer allowed is no number"

    async def refuse(*_: Any) -> web.Response:
        return error(400, quoted)

    serving.pods[0].behaviour = refuse
    assert serving.post(chat()).json()["error"]["message"] == quoted


def test_users_are_kept_on_their_side_of_a_canary_by_either_name(at: World) -> None:
    at.pods[0].holds("faq@v1", "faq@v2")
    at.start(adapter(), adapter(version="v2", canary_percent=50))
    at.wait_for_status("ready")
    users = [f"user-{number}" for number in range(12)]
    by_user = [at.post(chat(user=user)).headers["x-loraserve-model"] for user in users]
    by_identifier = [at.post(chat(safety_identifier=user)).headers["x-loraserve-model"] for user in users]
    assert by_user == by_identifier
    assert set(by_user) == {"faq@v1", "faq@v2"}

    at.post(chat(model="faq@v2", user="who names a version"))
    sums = at.inner("/metrics").text
    for version in ("v1", "v2"):
        asked = by_user.count(f"faq@{version}")
        for moment, value in (("callers", asked), ("requests", 2 * asked), ("failures", 0)):
            assert f'canary_callers{{model="faq",moment="{moment}",version="{version}"}} {value:.1f}' in sums


def test_who_can_wait_says_so_by_openais_own_word_and_nobody_gets_ahead_by_vllms(serving: World) -> None:
    with client(serving) as made:
        made.chat.completions.create(model="faq", messages=[{"role": "user", "content": "Hi"}], service_tier="flex")
    serving.post(chat(priority=-5), **{"X-Vllm-Priority": "-5"})
    assert [headers["x-vllm-priority"] for headers in serving.pods[0].headers] == ["1", "0"]


def test_who_can_wait_leaves_half_of_the_places_to_who_cannot(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with world(tmp_path, pod_concurrency=4) as at:
        at.pods[0].holds("faq@v1")
        at.pods[0].go_on = asyncio.Semaphore(0)
        at.start(adapter())
        at.wait_for_status("ready")
        patient = [pool.submit(at.post, chat(stream=True, service_tier="flex")) for _ in range(4)]
        at.wait_for_load(waiting=2, running=2)
        hasty = [pool.submit(at.post, chat(stream=True)) for _ in range(2)]
        at.wait_for_load(waiting=2, running=4)
        at.pods[0].permit(100)
        assert [future.result().status_code for future in (*hasty, *patient)] == [200] * 6


def test_pages_of_other_origins_may_not_call(serving: World) -> None:
    """A browser then refuses to; keys belong in an application's server."""
    with serving.client() as http:
        asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
        preflight = http.options("/v1/chat/completions", headers=asked)
        answer = http.get("/v1/models", headers=asked)
    assert preflight.status_code == 405
    assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control-")]
