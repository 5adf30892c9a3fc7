"""``int8conv generate``: repeatable text, from a converted folder and from a source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import int8conv
from int8conv.cli import main

from .helpers import ROOT, check_refused, run, succeed

PROMPT = "Once upon a time"


def generate(path: Path, *flags: object) -> str:
    result = succeed("generate", path, "--prompt", PROMPT, "-n", 12, *flags)
    assert result.stderr == ""
    assert result.stdout.startswith(PROMPT)
    assert result.stdout.endswith("\n")
    return result.stdout


def test_the_most_likely_text_is_the_librarys(example_int8: Path) -> None:
    expected = int8conv.load(example_int8).generate(PROMPT, max_new_tokens=12).text
    assert generate(example_int8) == f"{PROMPT}{expected}\n"
    assert generate(example_int8, "--seed", 7) == f"{PROMPT}{expected}\n"


def test_an_unconverted_folder(example: Path) -> None:
    expected = int8conv.load(example).generate(PROMPT, max_new_tokens=12).text
    assert generate(example) == f"{PROMPT}{expected}\n"


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_narrower_cache(example_int8: Path, cache: str) -> None:
    model = int8conv.load(example_int8, kv_cache=cache)
    expected = model.generate(PROMPT, max_new_tokens=12).text
    assert generate(example_int8, "--kv-cache", cache) == f"{PROMPT}{expected}\n"
    assert run("generate", example_int8, "-p", PROMPT, "--kv-cache", "int4").exit_code == 2


@pytest.mark.parametrize("flags", [(), ("--top-k", 50), ("--top-p", 0.9)], ids=str)
def test_a_seed_makes_it_repeatable(example_int8: Path, flags: tuple[object, ...]) -> None:
    drawn = [generate(example_int8, "-t", 1.0, "--seed", seed, *flags) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_one_candidate_is_the_most_likely(example_int8: Path) -> None:
    greedy = generate(example_int8)
    assert generate(example_int8, "-t", 1.0, "--top-k", 1) == greedy
    assert generate(example_int8, "-t", 1.0, "--top-p", 1e-9) == greedy


def test_a_stop_string_is_not_printed(example_int8: Path) -> None:
    free = generate(example_int8)
    stop = free[len(PROMPT) + 7 : len(PROMPT) + 12]
    assert generate(example_int8, "--stop", stop) == free[: free.index(stop, len(PROMPT))] + "\n"
    assert generate(example_int8, "--stop", "nowhere", "--stop", stop) == generate(example_int8, "--stop", stop)  # fmt: skip


def test_a_penalty_and_min_p_change_what_is_drawn(example_int8: Path) -> None:
    drawn = generate(example_int8, "-t", 2.0, "--seed", 1)
    assert generate(example_int8, "-t", 2.0, "--seed", 1, "--min-p", 1) == generate(example_int8)
    assert generate(example_int8, "--repetition-penalty", 5) not in (drawn, generate(example_int8))


def test_log_probabilities_are_printed_after_the_text(example_int8: Path) -> None:
    expected = int8conv.load(example_int8).generate(PROMPT, max_new_tokens=12, logprobs=True)
    text, table = generate(example_int8, "--logprobs").split("token", 1)
    assert text.rstrip(" ") == f"{PROMPT}{expected.text}\n"
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == expected.token_ids
    assert [float(row[-1]) for row in rows] == [round(x, 4) for x in expected.logprobs or []]


def test_what_the_checkpoint_asks_for_and_does_not_get_is_said(converted: Path) -> None:
    (converted / "generation_config.json").write_text('{"num_beams": 4, "top_k": 3}')
    result = succeed("generate", converted, "--prompt", PROMPT, "-n", 1)
    assert result.stderr == "int8conv: note: generation_config.json: num_beams=4 is not followed\n"


@pytest.mark.parametrize("mode", ["w8a8", "w8a16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_modes_and_dtypes(example_int8: Path, mode: str, dtype: str) -> None:
    assert len(generate(example_int8, "--mode", mode, "--dtype", dtype)) > len(PROMPT) + 10


def test_no_new_tokens(example_int8: Path) -> None:
    assert succeed("generate", example_int8, "-p", PROMPT, "-n", 0).stdout == f"{PROMPT}\n"


def test_a_prompt_of_any_characters(example_int8: Path) -> None:
    prompt = "naïve 文字 🙂\nline"
    assert succeed("generate", example_int8, "-p", prompt, "-n", 2).stdout.startswith(prompt)


def test_a_prompt_that_is_not_text(example_int8: Path) -> None:
    """Bytes that are not UTF-8 come from the shell as lone surrogates."""
    check_refused(run("generate", example_int8, "-p", "a\udcff"), "not UTF-8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-p", ""], "the prompt has no tokens"),
        (["-p", "Once", "-n", 5000], "do not fit the context: expected 1 to 1024 positions"),
        (["-p", "Once " * 2000], "do not fit the context"),
        (["-p", "Once", "--top-p", 1.5], "top_p: expected above 0, at most 1, found 1.5"),
        (["-p", "Once", "--top-p", 0], "top_p"),
        (["-p", "Once", "--top-p", "nan"], "top_p"),
        (["-p", "Once", "--top-k", -1], "top_k: expected 0 or more, found -1"),
        (["-p", "Once", "--min-p", 1.5], "min_p: expected 0 to 1, found 1.5"),
        (["-p", "Once", "--repetition-penalty", 0], "repetition_penalty: expected above 0, found 0.0"),
        (["-p", "Once", "--stop", ""], "stop: expected strings that are not empty"),
        (["-p", "Once", "-t", -0.5], "temperature: expected 0 or more, found -0.5"),
        (["-p", "Once", "-t", "nan"], "temperature"),
        (["-p", "Once", "--dtype", "float8"], "dtype: expected float32 or float16 or bfloat16, found float8"),
        (["-p", "Once", "--device", "abacus"], "device"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_options_that_cannot_be(example_int8: Path, flags: list[object], words: str) -> None:
    check_refused(run("generate", example_int8, *flags), words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["generate", "-p", "Once"], ["chat"]], ids=" ".join)
def test_no_gpu_is_one_clear_line(example_int8: Path, command: list[str]) -> None:
    result = run(*command, example_int8, "--device", "cuda")
    check_refused(result, "device: expected cpu: PyTorch finds no GPU here, found cuda")


def test_a_mode_is_for_converted_folders(example: Path) -> None:
    result = run("generate", example, "-p", "Once", "--mode", "w8a8")
    check_refused(result, example, "mode applies to converted folders only")


def test_outliers_are_reported_on_stderr(example_int8: Path) -> None:
    options = ["-p", "A vector is a thing that " * 10, "-n", 2, "--mode", "w8a8"]
    plain = succeed("generate", example_int8, *options)
    told = succeed("generate", example_int8, *options, "--report-outliers")
    assert told.stdout == plain.stdout
    assert told.stderr.splitlines()[-1].startswith("outlier fallback: ")
    assert " inputs" in told.stderr
    off = succeed("generate", example_int8, *options, "--no-outlier-fallback", "--report-outliers")
    assert off.stderr == "outlier fallback: not used, as no tokens were computed in W8A8 with it\n"


TEXT = "naïve 文字\n\nA list of"


def test_a_prompt_from_a_file_or_stdin(example_int8: Path, tmp_path: Path) -> None:
    """With one line break at the end that is not part of it."""
    expected = succeed("generate", example_int8, "-p", TEXT, "-n", 5).stdout
    for end in ("", "\n", "\r\n"):
        (tmp_path / "prompt.txt").write_bytes((TEXT + end).encode())
        assert succeed("generate", example_int8, "--prompt-file", tmp_path / "prompt.txt", "-n", 5).stdout == expected  # fmt: skip
    args = ["generate", str(example_int8), "--prompt", "-", "-n", "5"]
    result = CliRunner().invoke(main, args, input=TEXT + "\n")
    assert (result.exit_code, result.stdout) == (0, expected)


def test_several_prompts_print_one_after_the_other(example_int8: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT)
    options = ["-n", 6, "--mode", "w8a16"]
    single = [succeed("generate", example_int8, "-p", p, *options).stdout for p in (PROMPT, "A", TEXT)]  # fmt: skip
    found = succeed("generate", example_int8, "-p", PROMPT, "--prompt-file", tmp_path / "prompt.txt", "-p", "A", *options)  # fmt: skip
    assert found.stdout == "".join(f"==> prompt {i} <==\n{s}" for i, s in enumerate(single, 1))


def test_json(example_int8: Path) -> None:
    options = ["-n", 5, "--json", "--logprobs", "--mode", "w8a16"]
    found = json.loads(succeed("generate", example_int8, "-p", PROMPT, "-p", "A", *options).stdout)
    model = int8conv.load(example_int8, mode="w8a16")
    results = model.generate_batch([PROMPT, "A"], max_new_tokens=5, logprobs=True)
    assert found == [{"prompt": p, **asdict(r)} for p, r in zip([PROMPT, "A"], results, strict=True)]  # fmt: skip


def test_token_ids_need_no_tokenizer(example: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(example / name)
    expected = int8conv.load(example).generate([5, 6, 7], max_new_tokens=5).token_ids
    found = succeed("generate", tmp_path, "--prompt-ids", "5, 6 7", "-n", 5)
    assert found.stdout == " ".join(map(str, expected)) + "\n"
    text = succeed("generate", tmp_path, "--tokenizer", example, "-p", "A", "-n", 3).stdout
    assert text == succeed("generate", example, "-p", "A", "-n", 3).stdout
    check_refused(run("generate", tmp_path, "-p", "A"), tmp_path, "no tokenizer in this folder")
    check_refused(run("generate", tmp_path, "--prompt-ids", "5", "--stop", "a"), "no tokenizer")
    assert run("generate", tmp_path, "--prompt-ids", "a").exit_code == 2


def test_one_message_of_a_chat(converted: Path) -> None:
    (converted / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")  # fmt: skip
    model = int8conv.load(converted)
    ids = model.tokenizer.encode("[system] Be brief.\n[user] A list\n", special=False)
    reply = model.generate(ids, max_new_tokens=5)
    found = succeed("generate", converted, "-p", "A list", "--system", "Be brief.", "-n", 5)
    assert (found.stdout, found.stderr) == (f"{reply.text}\n", "")
    raw = succeed("generate", converted, "-p", "A list", "-n", 1)
    assert raw.stderr == "int8conv: note: this model has a chat template, which --chat applies; now it continues the text as it is\n"  # fmt: skip


def test_nothing_is_printed_before_all_is_checked(example_int8: Path) -> None:
    for flags in (["-n", 5000], ["--top-p", 7], ["--stop-token", "<nothing>"], ["--logit-bias", "999999=1"]):  # fmt: skip
        result = run("generate", example_int8, "-p", PROMPT, *flags)
        check_refused(result)
        assert result.stdout == ""


def test_samples_biases_and_tokens_that_stop(example_int8: Path) -> None:
    model = int8conv.load(example_int8, mode="w8a16")
    ids = model.generate(PROMPT, max_new_tokens=6).token_ids
    options = ["-p", PROMPT, "-n", 6, "--mode", "w8a16", "--json"]
    (found,) = json.loads(
        succeed("generate", example_int8, *options, "--stop-token", ids[2]).stdout
    )
    assert found["token_ids"] == ids[: ids.index(ids[2]) + 1]
    (found,) = json.loads(succeed("generate", example_int8, *options, "--logit-bias", "7=1e9", "--top-logprobs", 2).stdout)  # fmt: skip
    assert found["token_ids"] == [7] * 6
    assert [len(top) for top in found["top_logprobs"]] == [2] * 6
    assert found["top_logprobs"][0][0][0] == ids[0]
    drawn = succeed("generate", example_int8, "-p", PROMPT, "-n", 4, "-t", 1, "--seed", 3, "--samples", 2, "--mode", "w8a16").stdout  # fmt: skip
    expected = model.generate_batch([PROMPT], n=2, max_new_tokens=4, temperature=1.0, seed=3)
    assert drawn == "".join(f"==> prompt 1, sample {i} <==\n{PROMPT}{each.text}\n" for i, each in enumerate(expected, 1))  # fmt: skip


def test_characters_that_the_terminal_lacks_are_replaced(example_int8: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "int8conv", "generate", str(example_int8), "-p", "größer 日本", "-n", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("größer ??".encode("latin-1"))


def test_a_prompt_file_that_cannot_be(example_int8: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    check_refused(
        run("generate", example_int8, "--prompt-file", missing), missing, "cannot be read"
    )
    check_refused(run("generate", example_int8, "--prompt-file", tmp_path), tmp_path, "cannot be read")  # fmt: skip
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"a\xff")
    check_refused(run("generate", example_int8, "--prompt-file", bad), bad, "not UTF-8 text")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["generate", "--prompt", "-"], 1, b"int8conv: error: stdin: cannot be read: it is closed\n"),
        (["chat"], 1, None),
    ],
    ids=["generate", "chat"],
)  # fmt: skip
def test_a_closed_stdin(
    example_int8: Path, command: list[str], code: int, message: bytes | None
) -> None:
    line = 'exec "$0" -m int8conv "$@" <&-'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, *command, str(example_int8)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert message is None or done.stderr == message
    assert b"Traceback" not in done.stderr


def test_interrupted_text_ends_cleanly(example_int8: Path) -> None:
    """Ctrl-C after the first text has come: exit code 130, the text so far, one line on stderr."""
    args = ["generate", str(example_int8), "-p", PROMPT, "-n", "1000", "-t", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "int8conv", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    begun = process.stdout.read(len(PROMPT) + 20)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr == b"int8conv: interrupted\n"
    assert begun.startswith(PROMPT.encode())
    assert (begun + rest).endswith(b"\n")
    (begun + rest).decode()


def test_text_in_a_given_form(example_int8: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": ["red", "blue"]}')
    grammar.write_text('start: "x" | "y"')
    asked = ["generate", example_int8, "-p", "A", "--json"]
    for option, value, allowed in (
        ("--json-schema", schema, {'"red"', '"blue"'}), ("--regex", "1|2", {"1", "2"}), ("--grammar", grammar, {"x", "y"}),
    ):  # fmt: skip
        (found,) = json.loads(succeed(*asked, option, value).stdout)
        assert found["text"] in allowed
    assert run(*asked, "--regex", "a", "--grammar", grammar).exit_code == 2
    schema.write_text("[")
    check_refused(run(*asked, "--json-schema", schema), "JSON schema")
