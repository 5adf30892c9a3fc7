"""A conversation: each turn is what the whole conversation's text gives, and computes its own tokens only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import int8conv
from int8conv.errors import GenerationError, TokenizerError
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
    chat = Chat(model, max_new_tokens=500, temperature=1.0, seed=1)
    reply = chat.say("word " * 700)
    assert 0 < len(reply.token_ids) < 400  # as many as fit
    before = list(chat.messages)
    with pytest.raises(GenerationError, match=r"do not fit the context: expected 1 to 1024 positions, found \d{4}"):  # fmt: skip
        chat.say("word " * 500)
    assert chat.messages == before


def test_text_that_cannot_fit_is_not_tokenized(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template made the text; tokenizing it takes seconds."""
    (model.folder / "chat_template.jinja").write_text("{{ 'ab' * 3000000 }}")
    chat = Chat(model)
    monkeypatch.setattr(model.tokenizer, "encode", None)
    with pytest.raises(GenerationError, match=r"at most 65,536 characters for 1,024 positions, found 6,000,000"):  # fmt: skip
        chat.say("x")
    assert chat.messages == []


def test_a_template_that_refuses_leaves_the_conversation(model: Model) -> None:
    source = "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}hello"
    (model.folder / "chat_template.jinja").write_text(source)
    chat = Chat(model, max_new_tokens=2)
    with pytest.raises(TokenizerError, match="not that"):
        chat.say("no")
    assert chat.messages == []
    assert len(chat.say("yes").token_ids) == 2
