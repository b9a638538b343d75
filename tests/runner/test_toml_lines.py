from __future__ import annotations

import string
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.toml_lines import KeyPath, dotted, key_lines, line_of


def paths_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every path that a parsed document has."""
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found |= paths_of(inner, (*path, index))
    return found


def test_the_nested_arrays_of_tables_of_a_project_are_counted() -> None:
    text = (
        'name = "x"\n'  # 1
        "[[traits]]\n"  # 2
        "[[traits.datasets]]\n"  # 3
        "dataset_id = 1\n"  # 4
        "[[traits.datasets]]\n"  # 5
        "dataset_id = 2\n"  # 6
        "[[traits]]\n"  # 7
        "[[traits.datasets]]\n"  # 8
        "dataset_id = 3\n"  # 9
    )
    lines = key_lines(text)
    assert lines[("traits", 0, "datasets", 1, "dataset_id")] == 6
    assert lines[("traits", 1)] == 7
    assert lines[("traits", 1, "datasets", 0, "dataset_id")] == 9


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("# '''\nkey = 1", ("key",), 2),
        ('# """\nkey = 1', ("key",), 2),
        ("a = \"'''\"\nkey = 1", ("key",), 2),
        ('a = """\nkey = 5\n[key]\n"""\nkey = 1', ("key",), 5),
        ("a = '''\n'' key = 5\n'''\nkey = 1", ("key",), 4),
        ('a = """x\\"""" # "\nkey = 1', ("key",), 2),
        ('a = """""two""""" # quotes\nkey = 1', ("key",), 2),
        ('a = [\n  "key = 2",\n  ["x"]\n]\nkey = 1', ("key",), 5),
        ('a = [\n  "one", # ]\n\n  "two",\n]', ("a", 1), 4),
        ("a = [\n  { key = 1 },\n  { key = 2 },\n]", ("a", 1, "key"), 3),
        ("a = {\n  b = 1,\n  c.key = 2,\n}", ("a", "c", "key"), 3),
        ('["a]b"."c.d"] # ]\n"e = f" = 1', ("a]b", "c.d", "e = f"), 2),
        ('"\\u006bey" = 1', ("key",), 1),
        (" a . key\t=\t1", ("a", "key"), 1),
        ("a = 1\r\n\r\nkey = 1\r\n", ("key",), 3),
        ("a = 'one line\u2028\x85 for TOML'\nkey = 1", ("key",), 2),
        ("# end without a line break", (), None),
        ("[a.key]\n[a]\nb = 1", ("a", "key"), 1),
    ],
)
def test_the_line_is_right_where_looks_deceive(text: str, path: KeyPath, line: int | None) -> None:
    tomli.loads(text)
    assert line_of(key_lines(text), path) == line


def test_what_has_no_line_is_where_its_holder_is() -> None:
    lines = key_lines("\n[lora]\nr = 1")
    assert line_of(lines, ("lora", "lora_alpha")) == 2
    assert line_of(lines, ("base_model",)) is None


def test_paths_read_like_code() -> None:
    assert dotted(("traits", 0, "datasets", 1, "percentage")) == "traits[0].datasets[1].percentage"
    assert dotted(()) == ""


BARE = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=6)
KEY = BARE | st.sampled_from(["a.b", "a b", "", "#", "[x]", "=", "'"]).map(lambda key: f'"{key}"')
SCALAR = st.sampled_from(
    [
        *("1", "-0.5", "true", "nan", "0xFF", "1979-05-27T07:32:00Z", "07:32:00", '""', "''"),
        '"# no comment"',
        '"a \\" = [1]"',
        "'\\'",
        '"""one = 1\n[two]\n"""',
        "'''\n[[three]]\n'''''",
        '"""\\\n  four\\"""""""',
    ]
)
GAP = st.sampled_from(["", " ", "\n", " # ]}, \" ''' \n  "])


def _array(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    item = st.tuples(GAP, values, GAP).map("".join)
    return st.tuples(st.lists(item, max_size=3), st.booleans(), GAP).map(
        lambda parts: f"[{','.join(parts[0])}{',' if parts[1] and parts[0] else ''}{parts[2]}]"
    )


def _inline_table(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(st.sampled_from([" ", "  "]), KEY, st.just(" = "), values).map("".join)
    return st.lists(pair, max_size=3).map(lambda pairs: "{" + ",".join(pairs) + " }")


VALUE = st.recursive(SCALAR, lambda inner: _array(inner) | _inline_table(inner), max_leaves=6)
DOTTED = st.lists(KEY, min_size=1, max_size=3).map(" . ".join)
STATEMENT = st.one_of(
    st.tuples(DOTTED, st.just(" = "), VALUE).map("".join),
    DOTTED.map(lambda key: f"[ {key} ]"),
    DOTTED.map(lambda key: f"[[{key}]]"),
    st.sampled_from(["", "# [comment] = 1", "  "]),
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Valid documents: each statement that TOML refuses where it stands is left out."""
    text = ""
    for statement in draw(st.lists(STATEMENT, max_size=10)):
        longer = text + statement + draw(st.sampled_from(["\n", " # why\n", "\r\n"]))
        try:
            tomli.loads(longer)
        except tomli.TOMLDecodeError:
            continue
        text = longer
    return text


@settings(deadline=None)  # a busy machine is no finding
@given(documents())
def test_every_path_of_a_document_has_a_line_and_nothing_else_has(text: str) -> None:
    assert set(key_lines(text)) == paths_of(tomli.loads(text))


@settings(deadline=None)  # a busy machine is no finding
@given(documents())
def test_the_line_of_a_key_holds_that_key(text: str) -> None:
    shown = text.replace("\r\n", "\n").split("\n")
    for path, line in key_lines(text).items():
        keys = [part for part in path if isinstance(part, str)]
        if isinstance(path[-1], str):
            assert keys[-1] in shown[line - 1]
