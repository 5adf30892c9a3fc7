"""The text of errors: one line that a terminal only shows."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Iterator

import pytest

from int8conv import errors
from int8conv.errors import Int8convError, ShapeError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("Größe, größer: 権重 😀", "Größe, größer: 権重 😀"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\td\x7f", r"a\rb\nc\td\x7f"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066x\u2069\u200f\u200b", r"\u2066x\u2069\u200f\u200b"),
        ("\u2028new line", r"\u2028new line"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("", ""),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_an_error_is_a_line_without_escapes_in_any_of_its_parts() -> None:
    evil = "x\x1b[2J\u202e\0\udc80"
    error = ShapeError(evil, file=evil, tensor=evil, expected=evil, found=evil, hint=evil)
    assert str(error).isprintable()
    assert str(error).count(r"x\x1b[2J\u202e\x00\udc80") == 6
    assert error.tensor == evil


def test_long_values_are_cut() -> None:
    long = "x" * 10**6
    error = Int8convError(long, file=long, tensor=long, expected=long, found=long, hint=long)
    assert len(str(error)) < 5000


def below(kind: type[Int8convError]) -> Iterator[type[Int8convError]]:
    for found in kind.__subclasses__():
        if found.__module__ == errors.__name__:
            yield found
            yield from below(found)


def drawn(kind: type[Int8convError], indent: str = "") -> Iterator[tuple[str, str]]:
    """Branches and meanings below a class."""
    children = [found for found in kind.__subclasses__() if found.__module__ == errors.__name__]
    for child in children:
        last = child is children[-1]
        built_in = [base.__name__ for base in child.__bases__ if base.__module__ == "builtins"]
        name = child.__name__ + "".join(f" ({base})" for base in built_in)
        meaning = (child.__doc__ or "").partition("\n")[0].replace("``", "").removesuffix(".")
        yield f"{indent}{'`-' if last else '|-'} {name}", meaning
        yield from drawn(child, indent + ("   " if last else "|  "))


def test_the_tree_at_the_top_is_that_of_the_classes() -> None:
    branches = list(drawn(Int8convError))
    width = max(len(branch) for branch, _ in branches) + 2
    lines = ["Int8convError", *(f"{branch:{width}}{meaning}" for branch, meaning in branches)]
    assert errors.__doc__ is not None
    assert "\n".join(f"    {line}" for line in lines) in errors.__doc__


def test_every_error_of_the_module_is_in_the_tree() -> None:
    classes = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert classes == {Int8convError, *below(Int8convError)}


PARTS = {"file": "a/b", "tensor": "t.weight", "expected": [1, 2], "found": None, "hint": "do so"}
LINE = "a/b: tensor 't.weight': no good: expected [1, 2] (do so)"


@pytest.mark.parametrize("kind", [Int8convError, *below(Int8convError)], ids=lambda k: k.__name__)
def test_every_error_is_one_line_and_can_be_copied_and_pickled(kind: type[Int8convError]) -> None:
    error = kind("no good", **PARTS)
    error.add_note("noted") if hasattr(error, "add_note") else None
    for found in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(found) is kind
        assert str(found) == LINE
        assert found.args == error.args
        assert vars(found) == vars(error)
        if isinstance(found, OSError) and isinstance(error, OSError):
            assert found.errno == error.errno
            assert (found.strerror, found.filename) == ("no good", "a/b")


@pytest.mark.parametrize(
    ("kind", "built_in", "number"),
    [
        (errors.ArgumentError, ValueError, None),
        (errors.NotFoundError, FileNotFoundError, errno.ENOENT),
        (errors.HubNotFoundError, FileNotFoundError, errno.ENOENT),
        (errors.HubAccessError, PermissionError, errno.EACCES),
        (errors.HubExistsError, FileExistsError, errno.EEXIST),
        (errors.HubUnavailableError, ConnectionError, None),
        (errors.OutputExistsError, FileExistsError, errno.EEXIST),
        (errors.NotWritableError, PermissionError, errno.EACCES),
        (errors.NoSpaceError, OSError, errno.ENOSPC),
        (errors.MissingShardError, FileNotFoundError, errno.ENOENT),
        (errors.MissingShardError, ValueError, errno.ENOENT),
        (errors.TruncatedFileError, ValueError, None),
        (errors.ChecksumError, ValueError, None),
        (errors.UnknownFamilyError, NotImplementedError, None),
        (errors.StatsError, ValueError, None),
    ],
)
def test_an_error_is_the_built_in_that_fits(
    kind: type[Int8convError], built_in: type[Exception], number: int | None
) -> None:
    with pytest.raises(built_in, match="no good") as caught:
        raise kind("no good", file="a/b")
    assert getattr(caught.value, "errno", None) == number


def test_an_error_about_a_tensor() -> None:
    error = errors.MissingShardError("no good", file="a/b")
    assert str(error.about("t")) == "a/b: tensor 't': no good"
    assert str(error.about("t").about("u")) == "a/b: tensor 't': no good"
    assert type(error.about("t")) is errors.MissingShardError
