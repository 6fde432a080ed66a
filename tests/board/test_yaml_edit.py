"""Patches of a YAML text: it says what is wanted, and every other line is as it was."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.board.yaml_edit import patched
from posttrain.board.yaml_nodes import spellings
from posttrain.board.yaml_values import MISSING, same, value_at, with_value, without_value
from posttrain.config import ConfigPath, parse_yaml, resolved_yaml
from posttrain.errors import ConfigError


def changed(text: str, path: str, new: Any, **more: Any) -> str:
    """The text with one value set, or taken out (`MISSING`), and the proof that it says so."""
    value = parse_yaml(text, "f").value
    at: ConfigPath = tuple(int(part) if part.isdecimal() else part for part in path.split("."))
    wanted = without_value(value, at) if new is MISSING else with_value(value, at, new)
    found = patched(text, wanted, "f", **more)
    if "absent" not in more:
        assert parse_yaml(found, "f").value == wanted
    return found


BLOCK = """\
# head
a: 1        # one
b:
  # about c
  c: two    # two

  d: [1, 2]

e: {f: 1, g: x}   # flow
"""


@pytest.mark.parametrize(
    ("path", "new", "old_line", "new_line"),
    [
        ("a", 2, "a: 1        # one", "a: 2        # one"),
        ("a", None, "a: 1        # one", "a: null        # one"),
        ("a", "x: y", "a: 1        # one", "a: 'x: y'        # one"),
        ("a", "l1\nl2", "a: 1        # one", 'a: "l1\\nl2"        # one'),
        ("b.c", True, "  c: two    # two", "  c: true    # two"),
        ("b.d", [1], "  d: [1, 2]", "  d: [1]"),
        ("b.d", [1, 2, 3], "  d: [1, 2]", "  d: [1, 2, 3]"),
        ("b.d", [0, 1, 2], "  d: [1, 2]", "  d: [0, 1, 2]"),
        ("b.d", [], "  d: [1, 2]", "  d: []"),
        ("b.d.1", {"x": 1}, "  d: [1, 2]", "  d: [1, {x: 1}]"),
        ("e.g", "你好", "e: {f: 1, g: x}   # flow", "e: {f: 1, g: 你好}   # flow"),
        ("e.h", 1.5, "e: {f: 1, g: x}   # flow", "e: {f: 1, g: x, h: 1.5}   # flow"),
        ("e.f", MISSING, "e: {f: 1, g: x}   # flow", "e: {g: x}   # flow"),
        ("e", {}, "e: {f: 1, g: x}   # flow", "e: {}   # flow"),
        ("e", {"g": "x", "z": 1}, "e: {f: 1, g: x}   # flow", "e: {g: x, z: 1}   # flow"),
    ],
)
def test_one_line_is_changed(path: str, new: Any, old_line: str, new_line: str) -> None:
    assert changed(BLOCK, path, new) == BLOCK.replace(old_line, new_line)


@pytest.mark.parametrize(
    ("text", "path", "new", "found"),
    [
        # keys that are missing
        ("a:\n  b: 1  # c\n\nd: 2\n", "a.e", 3, "a:\n  b: 1  # c\n  e: 3\n\nd: 2\n"),
        ("a: 1", "b", 2, "a: 1\nb: 2\n"),
        ("a: 1\r\nb: 2\r\n", "c", 3, "a: 1\r\nb: 2\r\nc: 3\r\n"),
        ("a: {}\n", "a.b", 1, "a: {b: 1}\n"),
        ("a: {b: 1,}\n", "a.c", 2, "a: {b: 1, c: 2,}\n"),
        ("a:\n", "a.b", 1, "a: {b: 1}\n"),
        ("a: # later\n", "a", 1, "a: 1 # later\n"),
        ("a:\n- b: 1\n", "a.0.c", 2, "a:\n- b: 1\n  c: 2\n"),
        ("a: |\n  x\n  y\n\nb: 1\n", "c", 1, "a: |\n  x\n  y\n\nb: 1\nc: 1\n"),
        ("b: 1\na: |\n  x\n\n", "c", 1, "b: 1\na: |\n  x\nc: 1\n\n"),
        ("b: 1\na: |+\n  x\n\n", "c", 1, "b: 1\na: |+\n  x\n\nc: 1\n"),
        ("s:\n  x:\n    k: 1\n", "s.y", {"k": 2, "l": [1]}, "s:\n  x:\n    k: 1\n  y:\n    k: 2\n    l: [1]\n"),
        ("a: {b: 1}\n", "c", {"k": 2}, "a: {b: 1}\nc: {k: 2}\n"),
        ("a: 1\n", "t", "one\ntwo\n", "a: 1\nt: |\n  one\n  two\n"),
        ("a: 1\n", "t", "one\ntwo", "a: 1\nt: |-\n  one\n  two\n"),
        ("a: 1\n", "t", " one\ntwo", 'a: 1\nt: " one\\ntwo"\n'),
        # keys that go
        ("a: 1\nb: 2  # two\nc: 3\n", "b", MISSING, "a: 1\nc: 3\n"),
        ("a: 1\nb: 2", "b", MISSING, "a: 1\n"),
        ("a:\n  b: 1\nc: 2\n", "a.b", MISSING, "a: {}\nc: 2\n"),
        ("a:   # why\n  # more\n  b: 1\nc: 2\n", "a.b", MISSING, "a: {}   # why\n  # more\nc: 2\n"),
        ("a:\n- b: 1\n  c: 2\n", "a.0.b", MISSING, "a:\n- c: 2\n"),
        ("a:\n- b: 1\n  # of c\n  c: 2\n", "a.0.b", MISSING, "a:\n- \n  # of c\n  c: 2\n"),
        ("a:\n- b: 1\n", "a.0.b", MISSING, "a:\n- {}\n"),
        ("a:\n-\n  b: 1\n", "a.0.b", MISSING, "a:\n- {}\n"),
        ("a:\n  b:\n    c: 1\n    d: 2\n  e: 1\n", "a.b", MISSING, "a:\n  e: 1\n"),
        # lists
        ("a:\n- x  # X\n- y\n", "a", ["x", "y", "z"], "a:\n- x  # X\n- y\n- z\n"),
        ("a:\n  - x  # X\n  - y\n", "a", ["w", "x", "y"], "a:\n  - w\n  - x  # X\n  - y\n"),
        ("a:\n  - x  # X\n  - y\n", "a", ["y"], "a:\n  - y\n"),
        ("a:\n- x\n", "a", [], "a: []\n"),
        ("a:\n- k: 1\n", "a", [{"k": 1}, {"k": 2, "l": 3}], "a:\n- k: 1\n- k: 2\n  l: 3\n"),
        ("a:\n- {k: 1}\n", "a", [{"k": 1}, {"k": 2, "l": 3}], "a:\n- {k: 1}\n- {k: 2, l: 3}\n"),
        ("a:\n- - x\n  - y\n- z\n", "a", [["y"], "z"], "a:\n- - y\n- z\n"),
        ("a:\n- - x\n  - y\n", "a", [["w", "x", "y"]], "a:\n- - w\n  - x\n  - y\n"),
        # another form
        ("a:\n  b: 1\nc: 2\n", "a", "x", "a: x\nc: 2\n"),
        ("a:\n- 1\nc: 2\n", "a", 5, "a: 5\nc: 2\n"),
        ("a: >\n  x\n  y\nc: 2\n", "a", "z", "a: z\nc: 2\n"),
        ("a: |\n  x\n  y\nc: 2\n", "a", "z\nw\n", "a: |\n  z\n  w\nc: 2\n"),
        ("a: 'x'\n", "a", [1, {"b": None}], "a: [1, {b: null}]\n"),
    ],
)
def test_the_rest_stays(text: str, path: str, new: Any, found: str) -> None:
    assert changed(text, path, new) == found


SHARED = """\
sft: &sft
  kind: train    # both
  rate: &rate 1e-4
other:
  <<: *sft
  epochs: 2
third:
  rate: *rate
  like: *sft
"""


@pytest.mark.parametrize(
    ("path", "new", "parts"),
    [
        # behind an alias or a merge: a key of its own
        ("other.kind", "eval", [("  epochs: 2\n", "  epochs: 2\n  kind: eval\n")]),
        ("third.rate", 0.5, [("rate: *rate", "rate: 0.5")]),
        ("third.like.kind", "eval", [("like: *sft", "like: {<<: *sft, kind: eval}")]),
        ("third.like", MISSING, [("  like: *sft\n", "")]),
        # at the anchor: the others keep what they had
        (
            "sft.kind",
            "eval",
            [
                ("kind: train ", "kind: eval "),
                ("  epochs: 2\n", "  epochs: 2\n  kind: train\n"),
                ("like: *sft", "like: {<<: *sft, kind: train}"),
            ],
        ),
        # an anchor that goes stands at its first alias
        (
            "sft.rate",
            0.5,
            [
                ("rate: &rate 1e-4", "rate: 0.5"),
                ("  epochs: 2\n", "  epochs: 2\n  rate: 0.0001\n"),
                ("rate: *rate", "rate: &rate 0.0001"),
                ("like: *sft", "like: {<<: *sft, rate: 0.0001}"),
            ],
        ),
        (
            "sft",
            MISSING,
            [
                ("sft: &sft\n  kind: train    # both\n  rate: &rate 1e-4\n", ""),
                ("<<: *sft", "<<: &sft {kind: train, rate: 0.0001}"),
                ("rate: *rate", "rate: &rate 0.0001"),
            ],
        ),
    ],
)
def test_anchors_are_not_broken(path: str, new: Any, parts: list[tuple[str, str]]) -> None:
    expected = SHARED
    for old, replacement in parts:
        assert expected.count(old) == 1
        expected = expected.replace(old, replacement)
    assert changed(SHARED, path, new) == expected


def test_a_merged_key_that_should_not_be_there_is_written_with_its_default() -> None:
    found = changed(SHARED, "sft.warmup", 0.1, absent=lambda path: 0.05 if path[-1] == "warmup" else MISSING)
    assert found.count("warmup: 0.1\n") == 1
    assert "  epochs: 2\n  warmup: 0.05\n" in found
    assert "like: {kind: train, rate: 0.0001}" in found


def test_a_merged_key_that_has_its_default_anyway_is_left_alone() -> None:
    text = "sft: &sft\n  kind: train\nother:\n  <<: *sft\n  epochs: 2\n"
    wanted = with_value(parse_yaml(text, "f").value, ("sft", "warmup"), 0.05)
    assert patched(text, wanted, "f", absent=lambda path: 0.05) == text.replace("train\n", "train\n  warmup: 0.05\n")


def test_without_a_default_the_merge_is_written_out() -> None:
    found = changed(SHARED, "other.rate", MISSING)
    assert "<<" not in found
    assert parse_yaml(found, "f").value["other"] == {"kind": "train", "epochs": 2}


def test_a_value_is_written_as_it_is_spelled_where_that_means_the_same() -> None:
    assert changed("a: 1\n", "a", 2e-4, spelled={("a",): "2e-4"}) == "a: 2e-4\n"
    assert changed("a: 1\n", "b", 2e-4, spelled={("b",): "2e-4"}) == "a: 1\nb: 2e-4\n"
    assert changed("a: [1]\n", "a.0", "x, y", spelled={("a", 0): "x, y"}) == "a: ['x, y']\n"
    assert changed("a: 1\n", "a", "#", spelled={("a",): "#"}) == "a: '#'\n"


def test_spellings_are_those_of_plain_values_and_brackets() -> None:
    found = spellings("a: 2e-4\nb: &x {c: 1e-5}\nd: *x\ne: 'q'\nf:\n  <<: *x\n  g: [1e3, 2]\n", "f")
    assert found == {
        ("a",): "2e-4",
        ("b", "c"): "1e-5",
        ("f", "g"): "[1e3, 2]",
        ("f", "g", 0): "1e3",
        ("f", "g", 1): "2",
    }


@pytest.mark.parametrize(("text", "path", "new"), [("? a\n: 1\n", "b", 2), ("? [x, y]\n: 1\n", "b", 2)])
def test_what_cannot_be_patched_is_refused(text: str, path: str, new: Any) -> None:
    with pytest.raises(ConfigError):
        changed(text, path, new)


# ---- any text ------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", "on", "1", "x y", "é"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.sampled_from([1e-4, 2.5, -0.5])
    | st.sampled_from(
        [
            "x",
            "",
            "1",
            "yes",
            "a: b",
            "# c",
            "l1\nl2",
            "l1\n",
            " s",
            "- x",
            "{",
            "'",
            '"',
            "*a",
            "&a",
            "你",
            "x#",
            "null",
        ]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
MAPPINGS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)


@st.composite
def texts(draw: st.DrawFn, value: Any = None) -> str:
    """A mapping as someone might write it: blocks and brackets, comments and empty lines."""
    found = draw(MAPPINGS) if value is None else value
    lines = [f"# head {draw(st.integers(0, 9))}"] if draw(st.booleans()) else []
    for key, inner in found.items():
        flow = draw(st.booleans()) or not isinstance(inner, dict | list) or not inner
        written = resolved_yaml([inner], inline=True).strip()[1:-1] if flow else resolved_yaml(inner)
        name = resolved_yaml([key], inline=True).strip()[1:-1]
        comment = draw(st.sampled_from(["", "  # note", "   #"]))
        if flow:
            lines.append(f"{name}: {written}{comment}")
        else:
            indent = draw(st.sampled_from(["  ", "    "]))
            lines.append(f"{name}:{comment}")
            lines += [indent + line for line in written.splitlines()]
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "# between", "  # indented"])))
    return "\n".join(lines) + draw(st.sampled_from(["\n", ""]))


def places(value: Any, path: ConfigPath = ()) -> list[ConfigPath]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in entries for found in places(inner, (*path, key)))]


def comments(text: str) -> list[str]:
    return re.findall(r"(?m)^\s*#.*$|  # note$", text)


def altered(old: str, new: str) -> list[str]:
    """The lines of the old text that are not in the new one, between equal begins and ends."""
    a, b = old.splitlines(), new.splitlines()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a


@settings(deadline=None, max_examples=200)
@given(text=texts(), data=st.data())
def test_any_value_can_be_set_anywhere(text: str, data: st.DataObject) -> None:
    value = parse_yaml(text, "f").value
    path = data.draw(st.sampled_from(places(value)[1:]))
    new = data.draw(VALUES)
    wanted = with_value(value, path, new)
    found = patched(text, wanted, "f")
    assert same(parse_yaml(found, "f").value, wanted)
    old = value_at(value, path)
    if not isinstance(old, dict | list) and not (isinstance(old, str) and "\n" in old):
        assert len(altered(text, found)) <= 1
        assert comments(found) == comments(text)


@settings(deadline=None, max_examples=200)
@given(text=texts(), data=st.data())
def test_keys_come_and_go(text: str, data: st.DataObject) -> None:
    value = parse_yaml(text, "f").value
    path = data.draw(st.sampled_from(places(value)[1:]))
    wanted = without_value(value, path)
    assert same(parse_yaml(patched(text, wanted, "f"), "f").value, wanted)
    maps = [one for one in places(value) if isinstance(value_at(value, one), dict)]
    key = (*data.draw(st.sampled_from(maps)), "new")
    wanted = with_value(value, key, data.draw(VALUES))
    found = patched(text, wanted, "f")
    assert same(parse_yaml(found, "f").value, wanted)
    assert len(altered(text, found)) <= 1
    assert not Counter(comments(text)) - Counter(comments(found))


@settings(deadline=None, max_examples=200)
@given(value=MAPPINGS, wanted=MAPPINGS, data=st.data())
def test_any_text_can_become_any_other(value: dict[str, Any], wanted: dict[str, Any], data: st.DataObject) -> None:
    text = data.draw(texts(value))
    assert same(parse_yaml(patched(text, wanted, "f"), "f").value, wanted)
