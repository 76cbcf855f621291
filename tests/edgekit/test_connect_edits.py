"""Edits of config files: what was asked is there, and every other byte still is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.connect import jsonc, toml_text, yaml_text
from edgekit.connect.merge import merge
from edgekit.connect.textedit import edit_text
from edgekit.connect.values import Edit, NotEditableError, Pick, apply, filled

ITEM = {"name": "ours", "roles": ["chat", "edit"], "options": {"n": 1, "text": "a: b # c"}}
EDITS = [
    Edit(("models", Pick("name", "ours")), ITEM),
    Edit(("our.table", "deep", "x"), "http://127.0.0.1:1/v1"),
    Edit(("our.table", "deep", "on"), False),
]
TOML_EDITS = [
    Edit(("our_model",), "id"),
    Edit(("features", "ours"), False),
    Edit(("providers", "ours"), {"name": "ours", "n": 1}),
]


def is_part(part: str, whole: str) -> bool:
    """Whether `whole` is `part` with something put in between."""
    letters = iter(whole)
    return all(letter in letters for letter in part)


# JSON with comments

KEYS = st.sampled_from(["a", "b", "editor.font", "zürich", 'q"q', "models ", "//"])
SCALARS = st.sampled_from(["1", "-2.5e3", "true", "null", '"text"', '"// no"', '"\\u00e9"', '"{"'])
SPACE = st.sampled_from(
    ["", " ", "\n", "\n  ", "\t", " // note\n", " /* n\n */ ", "\n\n\t// é }\n"]
)


@st.composite
def jsonc_values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 3 if depth else 1))
    if kind < 2:
        return draw(SCALARS)
    return draw(containers("{}" if kind == 2 else "[]", depth - 1))


@st.composite
def containers(draw: st.DrawFn, brackets: str, depth: int, extra: tuple[str, ...] = ()) -> str:
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    parts = list(extra)
    for key in keys:
        value = draw(jsonc_values(depth))
        head = json.dumps(key, ensure_ascii=False) + draw(SPACE) + ":" if brackets == "{}" else ""
        parts.append(f"{draw(SPACE)}{head}{draw(SPACE)}{value}{draw(SPACE)}")
    body = ",".join(draw(st.permutations(parts)))
    tail = ("," if parts and draw(st.booleans()) else "") + draw(SPACE)
    return brackets[0] + body + tail + brackets[1]


@st.composite
def jsonc_files(draw: st.DrawFn) -> str:
    extra: tuple[str, ...] = ()
    if draw(st.booleans()):
        listed = draw(containers("[]", 1))
        extra = (f'{draw(SPACE)}"models":{draw(SPACE)}{listed}{draw(SPACE)}',)
    text = draw(SPACE) + draw(containers("{}", 2, extra)) + draw(SPACE)
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@settings(deadline=None, max_examples=40)
@given(jsonc_files())
def test_jsonc_keeps_every_foreign_byte(text: str) -> None:
    new = edit_text("jsonc", text, EDITS)
    assert is_part(text, new)
    assert jsonc.load(new) == apply(jsonc.load(text), EDITS)
    assert edit_text("jsonc", new, EDITS) == new
    if "\r\n" in text:
        assert not re.search(r"(?<!\r)\n", new)


@settings(deadline=None, max_examples=40)
@given(jsonc_files())
def test_jsonc_changes_our_value_and_nothing_else(text: str) -> None:
    new = edit_text("jsonc", text, EDITS)
    again = edit_text("jsonc", new, [Edit(("our.table", "deep", "x"), "second")])
    assert again == new.replace("http://127.0.0.1:1/v1", "second")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, '{\n  "a": 1\n}\n'),
        ("", '{\n  "a": 1\n}\n'),
        ("// only this\n", '// only this\n{\n  "a": 1\n}\n'),
        ('{"b": 2}', '{"b": 2,\n  "a": 1\n}'),
        ("{\n\t// why\n}\n", '{\n\t// why\n\t"a": 1\n}\n'),
        ('{\n\t"b": 2 // two\n}', '{\n\t"b": 2, // two\n\t"a": 1\n}'),
        (
            '{\n    "b": 2, // two\n    // end\n}',
            '{\n    "b": 2, // two\n    "a": 1,\n    // end\n}',
        ),
        ('{"a": 3 /* c */}', '{"a": 1 /* c */}'),
        ('\ufeff{"a": 0}', '\ufeff{"a": 1}'),
        ('{"a": 1}', '{"a": 1}'),
    ],
)
def test_jsonc_as_a_person_would_write_it(text: str | None, expected: str) -> None:
    assert edit_text("jsonc", text, [Edit(("a",), 1)]) == expected


@pytest.mark.parametrize("text", ["{", '{"a" 1}', "[1 2]", "{,}", '{"a": 1} x', "{a: 1}", "nul"])
def test_jsonc_that_is_broken_is_left_alone(text: str) -> None:
    with pytest.raises(NotEditableError):
        edit_text("jsonc", text, [Edit(("a",), 1)])


def test_a_path_through_something_else_is_refused() -> None:
    for kind, text in (("jsonc", '{"a": [1]}'), ("yaml", "a: [1]\n"), ("toml", "a = [1]\n")):
        with pytest.raises(NotEditableError):
            edit_text(kind, text, [Edit(("a", "b"), 1)])
    with pytest.raises(NotEditableError):
        edit_text("yaml", "models: {a: 1}\n", EDITS)


# YAML

PIECES = st.sampled_from(
    [
        "K: value # note\n", "K: 'quo''ted'   \n", 'K: "a # b"\n', "K:\n  - a # one\n\n  - b\n",
        "K:\n- a\n- {b: 1}\n", "K: {a: 1, b: [x, y]} # flow\n", "K: |\n  text\n   more\n\n",
        "K: >-\n  folded\n  text\n",
        "K:\n    deep:\n        x: 1 # é\n    # in\n", "K:\n", "K: ~\n",
        "K: !secret name\n", "K: &K\n  a: 1\n", "# a comment\n", "\n",
        "K: 2024-01-01\n", "K: [\n 1,\n 2]\n",
    ]
)  # fmt: skip
MODELS = st.sampled_from(
    [
        "", "models:\n", "models: []\n", "models: [{name: z}] # flow\n",
        "models: # list\n  - name: z # c\n",
        "models:\n- name: y\n  deep:\n  - 1\n  # end\n- name: z\n",
        "models:\n  - {name: z, a: 1}\n\n",
        "models:\n    -   name: z\n        t: |\n          lit\n", "models:\n  - name: z\n    k:\n",
    ]
)  # fmt: skip


@st.composite
def yaml_files(draw: st.DrawFn) -> str:
    pieces = draw(st.lists(PIECES, max_size=5))
    text = [piece.replace("K", f"k{number}") for number, piece in enumerate(pieces)]
    text.insert(draw(st.integers(0, len(text))), draw(MODELS))
    anchors = re.findall(r"&(k\d)", "".join(text))
    if anchors and draw(st.booleans()):
        text.append(f"last: *{anchors[0]}\n")
    joined = draw(st.sampled_from(["", "---\n", "# head\n"])) + "".join(text)
    # Block texts without their last line break mean something else once a line follows.
    if not joined.rstrip().endswith(("lit", "more", "text")) and draw(st.booleans()):
        joined = joined.rstrip("\n")
    return joined.replace("\n", "\r\n") if draw(st.booleans()) else joined


@settings(deadline=None, max_examples=40)
@given(yaml_files())
def test_yaml_keeps_every_foreign_byte(text: str) -> None:
    new = edit_text("yaml", text, EDITS)
    assert is_part(text, new)
    assert yaml_text.load(new) == apply(yaml_text.load(text), EDITS)
    assert edit_text("yaml", new, EDITS) == new


@settings(deadline=None, max_examples=40)
@given(yaml_files())
def test_yaml_changes_our_value_and_nothing_else(text: str) -> None:
    new = edit_text("yaml", text, EDITS)
    other = {"name": "ours", "model": "second"}
    again = edit_text("yaml", new, [Edit(("models", Pick("name", "ours")), other)])
    assert yaml_text.load(again)["models"][-1] == other
    foreign = [line for line in text.splitlines() if line.strip()]
    assert is_part("".join(foreign), again)


def test_yaml_as_a_person_would_write_it() -> None:
    text = "# mine\nname: x\nmodels:\n  - name: a # first\n    roles: [chat]\n\nrules: []\n"
    new = edit_text("yaml", text, [Edit(("models", Pick("name", "b")), {"name": "b", "n": [1]})])
    wanted = "    roles: [chat]\n  - name: b\n    n:\n    - 1\n\nrules"
    assert new == text.replace("    roles: [chat]\n\nrules", wanted)


@pytest.mark.parametrize("text", ["a: [", "a: 1\n---\nb: 2\n", "x: &a {b: 1}\na: *a\n", "- 1\n"])
def test_yaml_that_is_not_understood_is_left_alone(text: str) -> None:
    with pytest.raises(NotEditableError):
        edit_text("yaml", text, [Edit(("a", "b"), 2)])


# TOML

TOML_HEAD = [
    "# mine\n",
    "a = 1 # one\n",
    "\n",
    'our_models = ["x"]\n',
    "b.c = 'd'\n",
    "t = '''\nx\n'''\n",
]
TOML_TABLES = [
    "[features]\nz = true # keep\n\n", "[providers.other]\nname='k'\n", "[[list]]\nx = 1\n",
    "[deep.er]\n# only a comment\n", "[providers]\n", "[last]\nk = {a = 1, b = [1, 2,]}\n",
]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(TOML_HEAD), unique=True, max_size=5),
    st.lists(st.sampled_from(TOML_TABLES), unique=True, max_size=5),
)
def test_toml_keeps_every_foreign_byte(head: list[str], tables: list[str]) -> None:
    tables.sort(key=lambda t: t.startswith("[providers.other"))  # a table comes before its parts
    text = "".join(head + tables)
    new = edit_text("toml", text, TOML_EDITS)
    assert is_part(text, new)
    assert toml_text.load(new) == apply(toml_text.load(text), TOML_EDITS)
    assert edit_text("toml", new, TOML_EDITS) == new


def test_toml_replaces_in_place() -> None:
    text = 'model = "x" # mine\n[features]\nz = 1\n'
    assert edit_text("toml", text, [Edit(("model",), "y")]) == text.replace('"x"', '"y"')


# values and merges

WORDS: dict[str, object] = {"n": 5, "id": "m", "none": None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{n}", 5), ("x{n}{id}", "x5m"), ("${input:key}", "${input:key}"), ("{env:A}", "{env:A}"),
        ("{none}", None), ({"{id}": ["{n}"]}, {"m": [5]}), ("{unknown}", "{unknown}"),
    ],
)  # fmt: skip
def test_placeholders(value: Any, expected: Any) -> None:
    assert filled(value, WORDS) == expected


LINES = st.lists(st.sampled_from("abcd"), max_size=8).map(lambda x: "".join(f"{c}\n" for c in x))


@settings(deadline=None, max_examples=40)
@given(LINES, LINES)
def test_a_merge_with_one_side_unchanged_is_the_other(base: str, other: str) -> None:
    assert merge(base, base, other) == other
    assert merge(base, other, base) == other


def test_a_merge_carries_far_changes_and_refuses_near_ones() -> None:
    base = "1\n2\n3\n4\n5\n"
    assert merge(base, "1\n2\n3\n4\nours\n", "theirs\n2\n3\n4\n5\n") == "theirs\n2\n3\n4\nours\n"
    assert merge(base, "1\n2\nours\n4\n5\n", "1\n2\ntheirs\n4\n5\n") is None
