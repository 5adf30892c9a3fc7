"""OpenAI's own client: what it sends is understood, and what comes back is what it reads. Many of them at once: nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from int8conv.runtime.model import Model

pytest.importorskip("uvicorn")
pytest.importorskip("openai")

import openai

from int8conv.serve.app import Limits, Server

from .conftest import running


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    with running(Server(model, "small", key="secret", limits=Limits(waiting=64)).app) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as made:
        yield made


def test_completions_chats_streams_and_embeddings(client: openai.OpenAI, model: Model) -> None:
    assert [each.id for each in client.models.list()] == ["small"]
    expected = model.generate("A vector is", max_new_tokens=8, logprobs=True)
    found = client.completions.create(model="small", prompt="A vector is", max_tokens=8, logprobs=1)
    assert found.choices[0].text == expected.text
    assert found.choices[0].logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    chat = {"model": "small", "messages": [{"role": "user", "content": "A list"}], "max_tokens": 8}
    whole = client.chat.completions.create(**chat)
    parts = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))  # fmt: skip
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    vectors = client.embeddings.create(model="small", input=["A list"], encoding_format="float")
    assert vectors.data[0].embedding == pytest.approx(model.embed(["A list"])[0].tolist(), abs=1e-4)


def test_errors_are_the_clients_own(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="small", prompt="a", temperature=-1)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="other") as other, pytest.raises(openai.AuthenticationError):  # fmt: skip
        other.models.list()


def test_many_clients_at_once(address: str, model: Model) -> None:
    """Each gets the answer to its own question, in the order in which they came."""
    prompts = [[5 + i, 6, 7] for i in range(12)]
    expected = [model.generate(prompt, max_new_tokens=4).text for prompt in prompts]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as made:
            found[i] = made.completions.create(model="small", prompt=prompts[i], max_tokens=4).choices[0].text  # fmt: skip

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == expected
