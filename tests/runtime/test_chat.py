"""A conversation: each turn is what the whole conversation's text gives, and computes its own tokens only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import int8conv
from int8conv.errors import (
    GenerationError,
    JsonFileError,
    NotWritableError,
    OutputExistsError,
    TokenizerError,
)
from int8conv.runtime.chat import Chat
from int8conv.runtime.model import Model

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def model(converted: Path) -> Model:
    (converted / "chat_template.jinja").write_text(TEMPLATE)
    return int8conv.load(converted, mode="w8a16")


def test_a_turn_is_what_its_text_gives(model: Model) -> None:
    chat = Chat(model, system="A system.", max_new_tokens=8)
    text = "[system] A system.\n"
    for message in ("The function", "A list of", "And?"):
        text += f"[user] {message}\n[assistant]"
        pieces: list[str] = []
        reply = chat.say(message, on_text=pieces.append)
        ids = model.tokenizer.encode(text, special=False)
        assert reply == model.generate(ids, max_new_tokens=8)
        assert "".join(pieces) == reply.text
        text = f"{text.removesuffix('[assistant]')}[assistant] {reply.text}\n"
    assert [message["role"] for message in chat.messages] == ["system"] + ["user", "assistant"] * 3


def test_the_history_stays_in_the_cache(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    forward = model.decoder.forward

    def counting(token_ids: Any, *args: Any, **options: Any) -> Any:
        passed.append(token_ids.shape[1])
        return forward(token_ids, *args, **options)

    monkeypatch.setattr(model.decoder, "forward", counting)
    chat = Chat(model, max_new_tokens=4)
    chat.say("A long message: " + "one two three four five six " * 10)
    first = passed[0]
    passed.clear()
    chat.say("Short.")
    assert first > 60
    assert passed[0] < 25


def test_a_reply_ends_at_the_tokenizers_end_token(model: Model) -> None:
    free = Chat(model, max_new_tokens=12).say("The function")
    token = free.token_ids[4]
    word = model.tokenizer._tokenizer.id_to_token(token)
    (model.folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": word}))
    reply = Chat(model, max_new_tokens=12).say("The function")
    assert reply.token_ids == free.token_ids[: free.token_ids.index(token) + 1]
    assert reply.finish_reason == "stop"


def test_a_conversation_that_outgrows_the_context(model: Model) -> None:
    """The oldest turns make room, the system message stays; a message that alone is too long is refused."""
    chat = Chat(model, system="Be brief.", max_new_tokens=500, temperature=1.0, seed=1)
    reply = chat.say("word " * 970)
    assert 0 < len(reply.token_ids) < 60  # as many as fit
    assert chat.is_cut_by_context(reply)
    before = list(chat.messages)
    with pytest.raises(GenerationError, match=r"does not fit the context: expected less than 1024 tokens, found \d{4}"):  # fmt: skip
        chat.say("word " * 1100)
    assert (chat.messages, chat.dropped) == (before, 0)
    chat._limit = 3
    again = chat.say("Short.")
    assert chat.dropped == 2
    assert not chat.is_cut_by_context(again)
    text = "[system] Be brief.\n[user] Short.\n[assistant]"
    assert again.prompt_tokens == len(model.tokenizer.encode(text, special=False))
    assert chat.messages[:3] == before


def test_a_reply_that_is_ended_belongs_to_the_conversation(model: Model) -> None:
    chat = Chat(model, max_new_tokens=30)
    whole = chat.model.generate(chat.prompt("The function"), max_new_tokens=30).text
    with chat.stream("The function") as stream:
        first = next(stream)
    chat.accept("The function", stream.result)
    assert stream.result.finish_reason == "cancelled"
    assert whole.startswith(first)
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    assert chat.say("And?").prompt_tokens > 10


def test_a_conversation_is_saved_and_loaded(model: Model, tmp_path: Path) -> None:
    chat, again = Chat(model, max_new_tokens=4, system="größer"), Chat(model, max_new_tokens=4)
    chat.say("One")
    chat.save(tmp_path / "chat.json")
    again.load(tmp_path / "chat.json")
    assert again.messages == chat.messages
    assert again.say("Two") == chat.say("Two")
    (tmp_path / "chat.json").write_text('{"messages": [1]}')
    with pytest.raises(JsonFileError, match=r"chat.json: key 'messages'"):
        again.load(tmp_path / "chat.json")
    with pytest.raises(NotWritableError, match="nowhere"):
        chat.save(tmp_path / "nowhere" / "chat.json")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="saved conversation"):
        chat.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_no_new_tokens(model: Model) -> None:
    assert Chat(model, max_new_tokens=0).say("The function").token_ids == []


def test_tokens_that_end_a_reply_may_be_added(model: Model) -> None:
    free = Chat(model, max_new_tokens=12).say("The function").token_ids
    reply = Chat(model, max_new_tokens=12, end_tokens=[free[3]]).say("The function")
    assert reply.token_ids == free[: free.index(free[3]) + 1]


def test_a_template_that_refuses_leaves_the_conversation(model: Model) -> None:
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}hello"
    (model.folder / "chat_template.jinja").write_text(source)
    chat = Chat(model, max_new_tokens=2)
    with pytest.raises(TokenizerError, match="not that"):
        chat.say("no")
    assert chat.messages == []
    assert len(chat.say("yes").token_ids) == 2
