"""The server with OpenAI's interface: replies are the library's, streams too; limits, the key, and clients that go away."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from int8conv.runtime.model import Model

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from int8conv.runtime.generate.generation import Continuation
from int8conv.serve.app import Limits, Server
from int8conv.serve.asking import Asked
from int8conv.serve.generating import Generating, Piece

from .conftest import running

MESSAGES = [{"role": "user", "content": "A list"}]


@pytest.fixture(scope="module")
def client(model: Model) -> Iterator[TestClient]:
    server = Server(model, "small", key="secret", limits=Limits(body=5000, tokens=12))
    with TestClient(server.app, headers={"Authorization": "Bearer secret"}) as made:
        yield made


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    found = client.post(f"/v1/{path}", json=body)
    assert found.status_code == status, found.text
    return found.json()


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_key_and_what_needs_none(client: TestClient) -> None:
    assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok", "waiting": 0}  # fmt: skip
    refused = client.get("/v1/models", headers={"Authorization": "Bearer other"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["small"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200), ({"host": "localhost"}, 200), ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, 200),
        ({"host": "rebound.example:8000"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://elsewhere.example"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "null"}, 403), ({"host": "[::1"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://[::1"}, 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_cannot_use_it(model: Model, headers: dict[str, str], status: int) -> None:  # fmt: skip
    """In a browser on this machine: by a request across sites, or by a name of theirs that leads here."""
    client = TestClient(Server(model, "small", hosts=("127.0.0.1", "localhost", "::1")).app)
    assert client.get("/v1/models", headers=headers).status_code == status


def test_completions(client: TestClient, model: Model) -> None:
    expected = model.generate_batch(["A vector is", [5, 6]], max_new_tokens=5, logprobs=True, top_logprobs=2)  # fmt: skip
    found = post(client, "completions", prompt=["A vector is", [5, 6]], max_tokens=5, logprobs=2, echo=True)  # fmt: skip
    first, second = found["choices"]
    assert first["text"] == "A vector is" + expected[0].text
    assert (second["text"], second["index"], second["finish_reason"]) == (model.tokenizer.decode([5, 6]) + expected[1].text, 1, "length")  # fmt: skip
    assert first["logprobs"]["token_logprobs"] == pytest.approx(expected[0].logprobs, abs=1e-3)
    assert [len(top) for top in first["logprobs"]["top_logprobs"]] == [2] * 5
    prompt = sum(each.prompt_tokens for each in expected)
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10}  # fmt: skip
    drawn = post(client, "completions", prompt="A", n=2, max_tokens=4, temperature=1, seed=3, stop="never")  # fmt: skip
    alone = [model.generate("A", max_new_tokens=4, temperature=1.0, seed=3 + i).text for i in range(2)]  # fmt: skip
    assert [each["text"] for each in drawn["choices"]] == alone
    assert len(post(client, "completions", prompt=[5])["choices"][0]["text"]) > 5  # 12 tokens


def test_a_prompt_is_part_of_the_text_on_request(client: TestClient, model: Model) -> None:
    """Once for each choice; in a stream, and of token ids, too."""
    ids = model.tokenizer.encode("A vector is")
    asked = {"prompt": ["A vector is", ids], "n": 2, "echo": True, "max_tokens": 3}
    whole = [each["text"] for each in post(client, "completions", **asked)["choices"]]
    assert whole == ["A vector is" + model.generate(ids, max_new_tokens=3).text] * 4
    texts = [""] * 4
    for part in events(client.post("/v1/completions", json={**asked, "stream": True}).text):
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == whole


def test_tokens_that_are_parts_of_characters_have_their_bytes(client: TestClient, model: Model) -> None:  # fmt: skip
    """Their text would be U+FFFD, whichever they are."""
    numbers = [
        model.tokenizer.token_id(each) for each in "ÃÂ"
    ]  # bytes C3 and C2, as GPT-2 spells them
    bias = {str(number): 1e9 for number in numbers}
    asked = {"max_tokens": 1, "logit_bias": bias, "temperature": 0}
    found = post(client, "chat/completions", messages=MESSAGES, logprobs=True, **asked)
    (token,) = found["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["bytes"]) in (("bytes:\\xc3", [0xC3]), ("bytes:\\xc2", [0xC2]))
    found = post(client, "completions", prompt="A", logprobs=1, **asked)
    assert found["choices"][0]["logprobs"]["tokens"][0] in ("bytes:\\xc3", "bytes:\\xc2")


def test_chats_and_their_streams(client: TestClient, model: Model) -> None:
    ids = model.tokenizer.encode("[user] A list\nlook_up[assistant]", special=False)
    expected = model.generate(ids, max_new_tokens=7)
    parts = [{"role": "user", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "list"}]}]  # fmt: skip
    asked = {"messages": parts, "tools": [{"name": "look_up"}], "max_completion_tokens": 7}
    found = post(client, "chat/completions", **asked, logprobs=True, top_logprobs=1)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["logprobs"]["content"][0]["bytes"]
    assert found["usage"]["prompt_tokens"] == len(ids)
    response = client.post("/v1/chat/completions", json={**asked, "stream": True, "stream_options": {"include_usage": True}})  # fmt: skip
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *middle, last, used = events(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in [*middle, last])
    assert text == expected.text
    assert len(middle) > 2
    assert last["choices"][0]["finish_reason"] == "length"
    assert (used["choices"], used["usage"]["completion_tokens"]) == ([], 7)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_has_the_log_probabilities_of_the_whole(client: TestClient, kind: str) -> None:
    """One entry for each token, in order, also of tokens that end a character or a text and have none of their own."""
    if kind == "chat":
        path, asked = "chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}  # fmt: skip
    else:
        path, asked = "completions", {"prompt": "A list", "logprobs": 2}
    asked |= {"max_tokens": 9, "n": 2, "seed": 3, "temperature": 2.5}
    whole = post(client, path, **asked)["choices"]
    found = client.post(f"/v1/{path}", json={**asked, "stream": True})
    parts = [part["choices"][0] for part in events(found.text)]
    for choice in whole:
        streamed = [part["logprobs"] for part in parts if part["index"] == choice["index"]]
        (tokens, values), expected = tokens_of(streamed), tokens_of([choice["logprobs"]])
        assert tokens == expected[0]
        assert values == pytest.approx(expected[1], abs=1e-3)
        assert len(tokens) == 9


def tokens_of(logprobs: list[Any]) -> tuple[list[str], list[float]]:
    """Those of one choice, in both interfaces."""
    tokens, values = list[str](), list[float]()
    for each in filter(None, logprobs):
        content = each.get("content", [])
        tokens += each.get("tokens", [one["token"] for one in content])
        values += each.get("token_logprobs", [one["logprob"] for one in content])
        assert all(len(one["top_logprobs"]) == 2 for one in content)
    return tokens, values


def test_replies_in_a_given_form(client: TestClient) -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["red", "blue"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    found = post(client, "chat/completions", messages=MESSAGES, response_format=wanted)
    assert json.loads(found["choices"][0]["message"]["content"]) in ("red", "blue")
    found = post(client, "completions", prompt="A", response_format={"type": "json_object"})
    assert found["choices"][0]["text"].startswith("{")


def test_embeddings(client: TestClient, model: Model) -> None:
    found = post(client, "embeddings", input=["A list", "A map"])
    expected = model.embed(["A list", "A map"]).tolist()
    assert [each["embedding"] for each in found["data"]] == [pytest.approx(e, abs=1e-4) for e in expected]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {}, "prompt: expected text"), ("completions", {"prompt": "a", "n": 0}, "n: expected an integer, 1 to 16"),
        ("completions", {"prompt": "a", "temperature": "hot"}, "temperature"), ("completions", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("completions", {"prompt": ["a"] * 5, "n": 4}, "at most 16"), ("completions", {"prompt": ""}, "the prompt has no tokens"),
        ("completions", {"prompt": "a", "stream": True, "top_p": 7}, "top_p"), ("completions", {"prompt": [10**7]}, "token outside the vocabulary"),
        ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"), ("completions", {"prompt": "a", "stream": 3}, "stream"),
        ("chat/completions", {"messages": []}, "at least one"), ("chat/completions", {"messages": [3]}, "a list of objects"),
        ("chat/completions", {"messages": [{}]}, "a role"), ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "xml"}}, "response_format"), ("chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_schema"}}, "with a schema"),
        ("chat/completions", {"messages": MESSAGES, "response_format": 3}, "response_format"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"image_url": "x"}]}]}, "parts of text"),
        ("embeddings", {"input": 3}, "input: expected text"),
        ("completions", {"prompt": [10**25]}, "token outside the vocabulary"), ("embeddings", {"input": [[-(10**25)]]}, "token outside the vocabulary"),
        ("completions", {"prompt": "a", "temperature": 10**400}, "temperature: expected 0 or more, found an integer of 1329 bits"),
        ("completions", {"prompt": "a", "stop": {"a": 1}}, "stop: expected strings"), ("completions", {"prompt": "a", "logit_bias": {"3": 1e300}}, "logit_bias"),
    ],
)  # fmt: skip
def test_one_clear_error_each(client: TestClient, path: str, body: Any, words: str) -> None:
    assert words in post(client, path, 400, **body)["error"]["message"]


def test_what_is_no_request(client: TestClient) -> None:
    url = "/v1/completions"
    assert client.post(url, content=b"{").status_code == 400
    assert client.post(url, content=b"[]").json()["error"]["message"].endswith("expected an object")
    assert client.post(url, content=b" " * 6000).status_code == 413
    found = [client.get(url), client.post("/v1/nothing")]
    assert [each.status_code for each in found] == [405, 404]
    assert all(each.json()["error"]["type"] == "invalid_request_error" for each in found)
    lone = client.post(url, content=rb'{"prompt": "\ud800"}')  # JSON that is no Unicode
    assert "half a surrogate pair" in lone.json()["error"]["message"]
    stop = client.post(url, content=rb'{"prompt": "a", "stop": "\ud800", "max_tokens": 1}')
    assert stop.json()["usage"]["completion_tokens"] == 1  # never found, and no failure
    odd = post(client, "completions", prompt="a", seed=2**63 - 1, n=2, max_tokens=1, temperature=1)
    assert len(odd["choices"]) == 2  # the second has a seed of 64 bits too


def test_what_goes_wrong_in_the_server_is_told_as_json(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a stream, and to a client that has gone before its turn."""
    client = TestClient(Server(model, "small").app, raise_server_exceptions=False)
    asked: dict[str, Any] = {"prompt": "a", "max_tokens": 2}
    real = Generating.work

    def broken(self: Generating, asked: Asked) -> Callable[[], Iterator[list[Piece]]]:
        def work() -> Iterator[list[Piece]]:
            yield from [[Piece(0, "")]] if asked.stream else []
            raise ZeroDivisionError

        return work

    monkeypatch.setattr(Generating, "work", broken)
    assert "its log says why" in post(client, "completions", 500, **asked)["error"]["message"]
    text = client.post("/v1/completions", json={**asked, "stream": True}).text
    assert "its log says why" in json.loads(text.split("data: ")[-1])["error"]["message"]
    monkeypatch.setattr(Generating, "work", lambda self, asked: lambda: iter(()))
    assert post(client, "completions", 499, **asked, stream=True)["error"]["message"] == "the client has gone"  # fmt: skip
    monkeypatch.setattr(Generating, "work", real)
    assert post(client, "completions", **asked)["usage"]["completion_tokens"] == 2


def test_a_client_of_a_real_server_that_hangs_up(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is the next one's, of which this server has one."""
    begun: list[Continuation] = []
    real = model.continuation

    def recorded(*args: Any, **options: Any) -> Continuation:
        begun.append(real(*args, **options))
        return begun[-1]

    monkeypatch.setattr(model, "continuation", recorded)
    with running(Server(model, "small", limits=Limits(batch=1)).app) as address:
        parts = urlsplit(address)
        body = json.dumps({"prompt": "A", "max_tokens": 1000, "stream": True, "temperature": 1}).encode()  # fmt: skip
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((parts.hostname, parts.port)) as one:
            one.sendall(head.encode() + body)
            while b"data:" not in one.recv(4096):
                pass
        with urlopen(f"{address}/v1/completions", json.dumps({"prompt": "A", "max_tokens": 2}).encode()) as after:  # fmt: skip
            assert json.load(after)["usage"]["completion_tokens"] == 2
    assert [each.result().finish_reason for each in begun] == ["cancelled", "length"]


def test_choices_that_end_in_another_order(client: TestClient, model: Model) -> None:
    """They are in the order of the request, with the prompt's tokens counted once."""
    asked = {"prompt": ["A vector is", [5, 6]], "n": 2, "temperature": 1, "seed": 8, "max_tokens": 9}  # fmt: skip
    alone = [
        model.generate(prompt, max_new_tokens=9, temperature=1.0, seed=8 + i, stop=" ")
        for i, prompt in enumerate(p for p in ("A vector is", [5, 6]) for _ in range(2))
    ]
    assert len({len(each.token_ids) for each in alone}) > 1
    found = post(client, "completions", **asked, stop=" ")
    assert [(c["index"], c["text"], c["finish_reason"]) for c in found["choices"]] == [
        (i, each.text, each.finish_reason) for i, each in enumerate(alone)
    ]
    used = found["usage"]
    assert used["prompt_tokens"] == alone[0].prompt_tokens + alone[2].prompt_tokens
    body = {**asked, "stop": " ", "stream": True, "stream_options": {"include_usage": True}}
    *parts, last = events(client.post("/v1/completions", json=body).text)
    texts = ["", "", "", ""]
    for part in parts:
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [each.text for each in alone]
    assert last["usage"] == used
