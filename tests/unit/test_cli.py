"""The `loraserve` command as a person and a script meet it: help, completion, usage, `ask`, and AWS's errors."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    SSOTokenLoadError,
)

from loraserve.catalog.aws_errors import explain
from loraserve.operator.cli import cli, main

KEY = "lsk-secret"


def test_every_command_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, command in cli.commands.items():
        assert command.help, name
        assert told.count(f"\n  {name} ") == 1
        assert main([name, "--help"]) == 0
    assert not [line for line in told.splitlines()[1:] if line.endswith("...")], "whole sentences"


def test_wrong_usage_is_told_from_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["publish", "folder"]) == 2
    assert "Missing option '--bucket'" in capsys.readouterr().err
    assert main(["check", "folder", "--base", "{}", "--stack-file", "file"]) == 2
    assert main(["check", str(tmp_path / "no-folder")]) == 1
    assert f"{tmp_path / 'no-folder'} is no folder" in capsys.readouterr().err


def test_a_missing_key_names_the_variable_that_it_is_taken_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["ask", "faq", "Hi"]) == 2
    assert "Missing option '--key' (env var: 'OPENAI_API_KEY')" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["completion", shell]) == 0
    assert "_LORASERVE_COMPLETE=" in capsys.readouterr().out

    monkeypatch.setenv("_LORASERVE_COMPLETE", "bash_complete")
    for words, index, expected in (("loraserve sta", "1", "status"), ("loraserve status --con", "2", "--context")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", index)
        with pytest.raises(SystemExit):
            main([])
        assert expected in capsys.readouterr().out


class Gateway(BaseHTTPRequestHandler):
    """Answers every model with its own name, in pieces where it is asked to; refuses another key."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pieces = ["I am ", body["model"]]
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._send(401, json.dumps({"error": {"message": "the API key is not known"}}))
        elif body["model"] == "broken":
            self._send(200, f"data: {_event('I am')}\n\ndata: {json.dumps({'error': {'message': 'it stopped'}})}\n\n")
        elif body.get("stream"):
            self._send(
                200, ": waiting\n\n" + "".join(f"data: {_event(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
            )
        else:
            self._send(200, json.dumps({"choices": [{"message": {"content": "".join(pieces)}}]}))

    def _send(self, status: int, content: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _event(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a port of this machine is no business of a proxy


@pytest.mark.usefixtures("asked")
def test_ask_prints_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "faq", "Who are you?"]) == 0
    assert capsys.readouterr().out == "I am faq\n"

    assert main(["ask", "faq", "Who are you?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["choices"][0]["message"]["content"] == "I am faq"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ask", "faq", "Hello", "--key", "other"], "the API key is not known"),
        (["ask", "faq", "Hello", "--key", "other", "--json"], "the API key is not known"),
        (["ask", "broken", "Hello"], "it stopped"),
        (["ask", "faq", "Hello", "--url", "http://127.0.0.1:9/v1"], "the gateway did not answer ([Errno 111]"),
    ],
)
def test_what_the_gateway_refuses_is_told_in_its_words(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(f"loraserve: {reason}")


def test_ask_reaches_the_gateway_through_kubectl(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl, told = tmp_path / "kubectl", tmp_path / "told"
    kubectl.write_text(
        f"#!/bin/sh\necho $$ $@ >> {told}\necho 'Forwarding from 127.0.0.1:{port} -> 8080'\nexec sleep 60\n"
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    assert main(["ask", "faq", "Hello", "--context", "mine"]) == 0

    process, _, words = told.read_text().strip().partition(" ")
    assert capsys.readouterr().out == "I am faq\n"
    assert words == "--context mine --namespace ml-models port-forward service/gateway :8080"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_a_port_forward_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubectl").write_text('#!/bin/sh\necho "services \\"gateway\\" not found" >&2\nexit 1\n')
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    assert main(["ask", "faq", "Hello", "--key", KEY]) == 1
    assert capsys.readouterr().err == 'loraserve: kubectl port-forward: services "gateway" not found\n'


def _answered(code: str, status: int = 403) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "some words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoCredentialsError(), "there are no AWS credentials here; log in"),
        (SSOTokenLoadError(error_msg="Token for x does not exist"), "the AWS credentials cannot be renewed; log in"),
        (NoRegionError(), "set AWS_REGION"),
        (EndpointConnectionError(endpoint_url="https://s3"), "AWS cannot be reached; check the network"),
        (_answered("ExpiredToken", 400), "wrong or expired (ExpiredToken); log in"),
        (_answered("RequestTimeTooSkewed"), "clock is minutes away from AWS' (RequestTimeTooSkewed); set it"),
        (_answered("AccessDenied"), "access denied (AccessDenied); check the policies"),
        (_answered("InternalError", 500), "AWS answered 500 InternalError"),
        (BotoCoreError(), "the AWS SDK cannot go on (BotoCoreError)"),
    ],
)
def test_what_aws_says_becomes_one_sentence_with_a_way_out(error: BotoCoreError | ClientError, told: str) -> None:
    sentence = explain(error)
    assert told in sentence
    assert str(error) not in sentence


def test_without_credentials_or_with_an_unknown_profile_a_command_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    assert main(["list", "--bucket", "mine"]) == 1
    assert capsys.readouterr().err.startswith(
        "loraserve: s3://mine/llm-models/: there are no AWS credentials here; log in"
    )

    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert main(["list", "--bucket", "mine"]) == 1
    assert capsys.readouterr().err.startswith("loraserve: AWS_PROFILE names a profile that ~/.aws/config has not")
