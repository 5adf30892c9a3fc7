"""Chat templates of the shapes that are in use: the text is that of transformers' ``apply_chat_template``."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from int8conv.errors import Int8convError, JsonFileError, TokenizerError
from int8conv.runtime.text.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' -}}
{% endif %}""",
    "chatml with a system message of its own": (
        "{%- if messages[0]['role'] != 'system' -%}<|im_start|>system\nBe brief.<|im_end|>\n{%- endif %}"
        "{%- for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] | trim ~ '<|im_end|>\n' }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
    ),
    "llama 2": """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{% else %}
{% set rest = messages %}{% set system = '' %}
{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('user and assistant have to take turns') }}
{% endif %}
{% set content = system + message['content'] if loop.index0 == 0 else message['content'] %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% else %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
{% endif %}
{% endfor %}""",
    "llama 3": """{{- bos_token }}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}
{%- for message in messages %}
{%- if loop.first and message.role == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date + '\n\n' + message.content | trim + '<|eot_id|>' }}
{%- continue %}
{%- endif %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    "gemma": """{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}
{%- else %}{% set first = '' %}{% set turns = messages %}
{%- endif %}
{%- for turn in turns %}
{%- set role = 'model' if turn.role == 'assistant' else turn.role %}
<start_of_turn>{{ role }}
{{ (first if loop.first else '') + turn.content | trim }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}
<start_of_turn>model
{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] in ['user', 'system'] %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "phi 3": (
        "{% for m in messages %}{{'<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "macros, namespaces, training marks": """{%- macro turn(role, text) -%}
[{{ role | upper }}]{{ text | tojson }}
{%- endmacro -%}
{%- set state = namespace(count=0) -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' %}{% generation %}{{ turn(m.role, m.content) }}{% endgeneration %}
{%- else %}{{ turn(m.role, m.content) }}{% endif -%}
{%- set state.count = state.count + 1 -%}
{%- if state.count > 9 %}{% break %}{% endif -%}
{%- endfor -%}
{{ state.count }}{{ unk_token }}{% if add_generation_prompt %}[ASSISTANT]{% endif %}""",
}

SYSTEM = {"role": "system", "content": " You answer in one line.\n"}
TURNS = [
    {"role": "user", "content": "Say <b>\"größer\"</b> & 'grösser' \N{SLIGHTLY SMILING FACE}\n"},
    {"role": "assistant", "content": "  größer\n\n"},
    {"role": "user", "content": "Again: {{ 7 * 7 }} {% if %}"},
    {"role": "assistant", "content": "49"},
]
CONVERSATIONS = {
    "one message": TURNS[:1],
    "three turns": TURNS[:3],
    "ended by the assistant": TURNS,
    "system": [SYSTEM, *TURNS[:1]],
    "system, three turns": [SYSTEM, *TURNS[:3]],
}


@pytest.fixture(scope="module")
def theirs(example: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(example / "tokenizer.json"), **SPECIAL)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_is_that_of_transformers(
    theirs: PreTrainedTokenizerFast, template: str, messages: list[Any], add_generation_prompt: bool
) -> None:
    expected = theirs.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False
    )  # fmt: skip
    ours = ChatTemplate(template, SPECIAL, Path("t"))
    assert ours.render(messages, add_generation_prompt=add_generation_prompt) == expected
    assert messages[-1]["content"].strip() in expected or "tojson" in template


def test_the_date_is_todays() -> None:
    text = ChatTemplate(TEMPLATES["llama 3"], SPECIAL, Path("t")).render([SYSTEM, TURNS[0]])
    assert datetime.now().strftime("%Y") in text


def write(folder: Path, config: dict[str, Any], jinja: str | None = None) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return folder


def test_where_templates_and_tokens_are(tmp_path: Path) -> None:
    config = {"chat_template": "config {{ eos_token }}", "eos_token": {"content": "</s>"}}
    assert ChatTemplate.load(write(tmp_path, config)).render([]) == "config </s>"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    assert ChatTemplate.load(write(tmp_path, {"chat_template": named})).render([]) == "named"
    assert ChatTemplate.load(write(tmp_path, config, "file {{ eos_token }}")).render([]) == "file </s>"  # fmt: skip
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "old", "bos_token": "<s>"}')
    source = "{{ bos_token }}{{ eos_token }}{{ unk_token }}"
    assert ChatTemplate.load(write(tmp_path, config, source)).render([]) == "<s>old"
    listed = config | {"added_tokens_decoder": {}}  # then the map is not read
    assert ChatTemplate.load(write(tmp_path, listed, source)).render([]) == "</s>"


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


def test_several_templates(tmp_path: Path) -> None:
    """As transformers: files before the config, the one for tools where there are tools, others by name."""
    named = {"default": "plain", "tool_use": "{{ tools[0].function.name }}", "rag": "{{ documents[0].text }}"}  # fmt: skip
    write(tmp_path, {"chat_template": named})
    template = ChatTemplate.load(tmp_path)
    assert template.render([]) == "plain"
    assert template.render([], tools=TOOLS) == "look_up"
    documents = [{"title": "t", "text": "facts"}]
    assert ChatTemplate.load(tmp_path, "rag").render([], documents=documents) == "facts"
    with pytest.raises(TokenizerError, match="no chat template named 'x': expected default or rag or tool_use"):  # fmt: skip
        ChatTemplate.load(tmp_path, "x")
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("file: {{ tools | length }}")
    write(tmp_path, {"chat_template": named}, "file")
    assert ChatTemplate.load(tmp_path).render([], tools=TOOLS) == "file: 1"
    assert ChatTemplate.load(tmp_path).render([]) == "file"


def test_a_processors_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    assert ChatTemplate.load(tmp_path).render([]) == "of a processor"


def test_arguments_are_variables(tmp_path: Path) -> None:
    source = "{{ eos_token }} {{ enable_thinking }} {{ more.a }} {{ tools is none }}"
    template = ChatTemplate.load(write(tmp_path, {"eos_token": "</s>"}, source))
    found = template.render([], arguments={"enable_thinking": False, "more": {"a": 1}, "eos_token": "x"})  # fmt: skip
    assert found == "x False 1 True"


def test_no_template(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path}: no chat template in this folder"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("value", [3, {"default": 1}, ["a"], [{"name": "default"}]])  # fmt: skip
def test_a_key_that_is_no_template(tmp_path: Path, value: Any) -> None:
    with pytest.raises(JsonFileError, match=r"tokenizer_config.json: key 'chat_template'"):
        ChatTemplate.load(write(tmp_path, {"chat_template": value}))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja: cannot be read"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\n{% for m in messages %}", "in line 2: Unexpected end of template"),
        ("{{ messages | nonsense }}", "No filter named 'nonsense'"),
        ("{% include 'other' %}", "no loader"),
        ("{{ messages[7].content.strip() }}", "no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{{ raise_exception('two\nlines') }}", "two lines"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception.__globals__.os }}", "unsafe"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "."),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_malformed_and_hostile_templates_are_one_clear_line(source: str, words: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate(source, SPECIAL, Path("folder/t.jinja")).render(TURNS[:1])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("folder/t.jinja: the chat template fails")
    assert re.search(words, line)
    assert isinstance(caught.value, Int8convError)


def test_messages_stay_as_they_are() -> None:
    messages = [dict(TURNS[0])]
    with pytest.raises(TokenizerError):
        ChatTemplate("{% set _ = messages[0].update({'a': 1}) %}", SPECIAL, Path("t")).render(
            messages
        )
    assert messages == [TURNS[0]]
