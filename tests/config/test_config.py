"""Configuration: YAML as people write it, errors as people need them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Discriminator

from posttrain import config
from posttrain.config import build, json_schema, override, parse_yaml, read_yaml, resolved_yaml, sections, words
from posttrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Square:
    """Four equal sides."""

    shape: Literal["square"] = "square"
    side: Annotated[float, Gt(0)] = 1.0
    """Length of a side,
    in metres."""


@dataclass(frozen=True, kw_only=True)
class Circle:
    """All points at one distance."""

    shape: Literal["circle"] = "circle"
    radius: Annotated[float, Gt(0), Le(10)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A border."""

    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thing to draw."""

    title: str
    """Shown above."""
    count: Annotated[int, Ge(1)] = 1
    ratio: Annotated[float, Ge(0), Lt(1)] = 0.5
    bold: bool = False
    colour: Literal["red", "green"] = "red"
    main: Annotated[Square | Circle, Discriminator("shape")] = field(default_factory=Square)
    frame: Frame | None = None
    every: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    labels: str | tuple[str, ...] = "none"
    corners: tuple[Annotated[Square | Circle, Discriminator("shape")], ...] = ()
    parts: dict[str, Frame] = field(default_factory=dict)
    points: Annotated[tuple[int, ...], MinLen(1)] = (1,)


def picture(text: str, *overrides: str) -> Picture:
    return build(Picture, override(parse_yaml(text, "p.yaml"), overrides, Picture, shorthand="parts"))


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        picture(text, *overrides)
    return str(caught.value)


# ---- YAML 1.2 core schema ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.0", -0.0),
        ("16", 16),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b11", "0b11"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("~", None),
        ("", None),
        ("null", None),
        ("2026-11-22", "2026-11-22"),
        ("=", "="),
        ("'1e-4'", "1e-4"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("١", "١"),  # an Arabic-Indic digit is text
        ("{a: [1, {b: ~}]}", {"a": [1, {"b": None}]}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = parse_yaml(f"key: {text}\n", "f.yaml").value["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text():
    assert parse_yaml("1: a\ntrue: b\n~: c\non: d\n", "f").value == {"1": "a", "true": "b", "~": "c", "on": "d"}


def test_anchors_aliases_and_merges():
    document = parse_yaml("a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\nd:\n  <<: [{p: 5}, *x]\n", "f")
    assert document.value["b"] == {"p": 1, "q": 2}
    assert document.value["c"] == {"p": 1, "q": 3}
    assert document.value["d"] == {"p": 5, "q": 2}
    assert document.place(("c", "q")) == 5
    assert document.place(("c", "p")) == 1


def test_places_are_lines_of_keys_and_entries():
    document = parse_yaml("# first\na:\n  - x\n  -\n    b: 1\n", "f")
    assert document.places == {(): 1, ("a",): 2, ("a", 0): 3, ("a", 1): 5, ("a", 1, "b"): 5}
    assert document.place(("a", 1, "nothing", "here")) == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\n\tb: 2\n", "f:2: a tab is used for indentation"),
        ("a:\n\tb: 2\n", "f:2: a tab is used for indentation"),
        ("a:\n  b: 1\n  \tc: 2\n", "f:3: a tab is used for indentation"),
        ("", "f: the file is empty"),
        ("# only a comment\n\n", "f: the file is empty"),
        ("a: b: c\n", "f:1: a second ':' here"),
        ("a: 1\n  b: 2\n", "f:2: a second ':' here, or wrong indentation"),
        ("a:\n  b: 1\n c: 2\n", "f:3: wrong indentation"),
        ("a: 1\nb\n", "f:3: a key without ':'"),
        ("a: [1, 2\nb: 3\n", "f:2: a ',' or the closing ']' of the bracket opened on line 1 is missing"),
        ("a: {b: 1\nc: 3\n", "f:2: a ',' or the closing '}' of the bracket opened on line 1 is missing"),
        ("a: 1\nb: 'x\nc: 3\n", "f:2: the quote opened here is never closed"),
        ("a: *b\n", "f:1: this is not YAML: found undefined alias 'b'"),
        ("---\na: 1\n---\nb: 2\n", "f:3: a second document starts here"),
        ("a: 1\nb: 2\na: 3\n", "f:3: a: this key is given twice (first on line 1)"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "a: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed",
        ),
        ("a: !secret x\n", "a: the tag '!secret' is not allowed"),
        ("a: !!int x\n", "a: 'x' can't be read with the tag '!!int'"),
        ("a: .inf\n", "f:1: a: .inf is not a finite number"),
        ("a: 1e999\n", "f:1: a: 1e999 is not a finite number"),
        (f"a: {'9' * 500}\n", "is not a finite number"),
        ("? [a]\n: 1\n", "a key must be text, not a list or a mapping"),
        ("a: \x07\n", "f:1: the character '\\x07' is not allowed in YAML"),
        ('a: "\\ud800"\n', "f:1: a: half of a surrogate pair is not text"),
        ('a: "\\UFFFFFFFF"\n', "f: this is not YAML"),
        ("<<: 3\n", "'<<' merges a mapping or a list of mappings"),
        ("a: &a [*a]\n", "more than 20,000 values or 40 levels"),
        ("[" * 2000, "f:1: this is not YAML: nested deeper than 40 levels"),
        ("a" + ": {a" * 50, "nested deeper than 40 levels"),
    ],
)
def test_what_is_not_a_configuration_is_told_with_its_line(text, told):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")
    assert told in str(caught.value)


def test_alias_bombs_are_refused_quickly():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="once the aliases"):
        parse_yaml("\n".join(lines), "f")


def test_all_duplicate_keys_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_yaml("s:\n  x: 1\n  x: 2\ns: 3\n", "f")
    assert (
        str(caught.value)
        == "f: 2 problems\n  line 3: s.x: this key is given twice (first on line 2)\n  line 4: s: this key is given twice (first on line 1)"
    )


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@#,?\t\n 1.e~\\u\U0001f600\ud800\x00\u2028<="), max_size=40))
def test_any_text_is_a_document_or_a_config_error(text):
    try:
        document = parse_yaml(text, "f")
    except ConfigError:
        return
    assert json.loads(json.dumps(document.value, allow_nan=False)) == document.value
    with pytest.raises(ConfigError):
        build(Picture, document)


# ---- files ---------------------------------------------------------------------------------------------------------


def read_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    return str(caught.value)


def test_files_that_can_not_be_read(tmp_path):
    good = tmp_path / "recipe.yaml"
    good.write_text("a: 1\n")
    assert (
        read_error(tmp_path / "recipes.yaml") == f"{tmp_path}/recipes.yaml: no such file (did you mean 'recipe.yaml'?)"
    )
    assert f"the folder '{tmp_path}/no' does not exist either" in read_error(tmp_path / "no" / "x.yaml")
    assert (
        read_error(tmp_path) == f"{tmp_path}: this is a folder, not a YAML file\n  fix: name a file in it: recipe.yaml"
    )
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: caf\xe9\n".encode("latin-1"))
    assert read_error(latin) == f"{latin}:2: byte 0xe9 is not UTF-8\n  fix: save the file as UTF-8"
    wide = tmp_path / "wide.yaml"
    wide.write_text("a: 1\n", encoding="utf-16")
    assert read_error(wide) == f"{wide}: this file is UTF-16\n  fix: save it as UTF-8"
    large = tmp_path / "large.json"
    large.write_text("[" + "1," * (1 << 20) + "1]")
    assert "too large for a configuration" in read_error(large)
    assert "did you give a data file" in read_error(large)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    assert "can't read this file: Permission denied" in read_error(path)


def test_bom_and_crlf_are_fine(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbftitle: x\r\ncount: 3\r\n")
    assert build(Picture, read_yaml(path)) == Picture(title="x", count=3)


# ---- strict types --------------------------------------------------------------------------------------------------


def test_a_full_file_becomes_frozen_values():
    found = picture(
        "title: x\ncount: 3\nratio: 0\nmain: {shape: circle, radius: 2}\nframe: {width: 4}\nevery: 7\nlabels: [a, b]\n"
        "corners: [{shape: square}, {shape: circle}]\nparts: {a: {width: 1}}\n"
    )
    assert found == Picture(
        title="x",
        count=3,
        ratio=0.0,
        main=Circle(radius=2.0),
        frame=Frame(width=4),
        every=7,
        labels=("a", "b"),
        corners=(Square(), Circle()),
        parts={"a": Frame(width=1)},
    )
    assert isinstance(found.ratio, float)
    with pytest.raises(AttributeError):
        found.count = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('count: "16"', "p.yaml:2: count: must be a whole number of at least 1, got '16' (write 16, without quotes)"),
        (
            "count: 1_000",
            "p.yaml:2: count: must be a whole number of at least 1, got '1_000' (write 1000, without quotes)",
        ),
        ("count: 1.5", "p.yaml:2: count: must be a whole number of at least 1, got 1.5"),
        ("count: 0", "p.yaml:2: count: must be a whole number of at least 1, got 0"),
        ("count: true", "p.yaml:2: count: must be a whole number of at least 1, got true"),
        ("count:", "p.yaml:2: count: must be a whole number of at least 1, got null (nothing)"),
        ("ratio: true", "p.yaml:2: ratio: must be a number of at least 0 and below 1, got true"),
        ("ratio: 1", "p.yaml:2: ratio: must be a number of at least 0 and below 1, got 1"),
        ("bold: yes", "p.yaml:2: bold: must be true or false, got 'yes' (write true, without quotes)"),
        ("bold: 1", "p.yaml:2: bold: must be true or false, got 1"),
        ("colour: greem", "p.yaml:2: colour: must be one of 'red', 'green', got 'greem' (did you mean 'green'?)"),
        ("colour: [red]", "p.yaml:2: colour: must be one of 'red', 'green', got a list"),
        ("main: {side: 2}", "p.yaml:2: main.shape: this key is missing; it must be one of 'square', 'circle'"),
        (
            "main: {shape: sqare}",
            "p.yaml:2: main.shape: must be one of 'square', 'circle', got 'sqare' (did you mean 'square'?)",
        ),
        ("main: {shape: circle, side: 2}", "p.yaml:2: main.side: unknown key; known here: shape, radius"),
        (
            "main: {shape: circle, radius: 11}",
            "p.yaml:2: main.radius: must be a number greater than 0 and at most 10, got 11",
        ),
        ("main: circle", "p.yaml:2: main: must be a mapping with shape: square or circle, got 'circle'"),
        ("frame: 3", "p.yaml:2: frame: must be a mapping (width) or null, got 3"),
        (
            "every: aut",
            "p.yaml:2: every: must be a whole number of at least 1 or 'auto', got 'aut' (did you mean 'auto'?)",
        ),
        ("every: 0", "p.yaml:2: every: must be a whole number of at least 1 or 'auto', got 0"),
        ("labels: [a, 3]", "p.yaml:2: labels: must be text or a list, each entry text, got a list"),
        ("corners: [{shape: square, side: -1}]", "p.yaml:2: corners.0.side: must be a number greater than 0, got -1"),
        ("parts: {a: {widht: 1}}", "p.yaml:2: parts.a.widht: unknown key (did you mean 'width'?)"),
        ("parts: {a: {width: x}}", "p.yaml:2: parts.a.width: must be a whole number, got 'x'"),
        ("parts: 3", "p.yaml:2: parts: must be a mapping, got 3"),
        (
            "points: []",
            "p.yaml:2: points: must be a list with at least 1 entry, each entry a whole number, got an empty list",
        ),
        (
            "corners: {shape: square}",
            "p.yaml:2: corners: must be a list, each entry a mapping with shape: square or circle, got a mapping (start each entry with '- ')",
        ),
        ("points: [a]", "p.yaml:2: points.0: must be a whole number, got 'a'"),
        ("width: 3", "p.yaml:2: width: unknown key here; it belongs one level deeper: 'frame.width'"),
        ("cuont: 3", "p.yaml:2: cuont: unknown key (did you mean 'count'?)"),
        (f"colour: {'x' * 99}", f"p.yaml:2: colour: must be one of 'red', 'green', got '{'x' * 57}...'"),
    ],
)
def test_one_wrong_value_is_one_plain_sentence(line, told):
    assert message(f"title: x\n{line}\n") == told


def test_a_misspelt_required_key_is_told_once():
    assert message("titel: x\n") == "p.yaml:1: titel: unknown key (did you mean 'title'?)"


def test_a_missing_key_says_what_it_must_be():
    assert message("count: 1\n") == "p.yaml:1: title: this key is missing; it must be text"


def test_what_is_not_a_mapping_at_all():
    assert message("- a\n").startswith("p.yaml:1: (top level): must be a mapping (title, count,")
    assert message("title:x\n").endswith("got 'title:x' (a space is needed after each ':')")


def test_all_problems_are_told_in_the_order_of_the_file():
    assert message("title: x\nbold: 3\nmain:\n  shape: square\n  side: -1\ncount: 0\n") == (
        "p.yaml: 3 problems\n"
        "  line 2: bold: must be true or false, got 3\n"
        "  line 5: main.side: must be a number greater than 0, got -1\n"
        "  line 6: count: must be a whole number of at least 1, got 0"
    )


def test_more_than_ten_problems_are_counted():
    told = message("title: x\n" + "".join(f"zz{i}: 1\n" for i in range(13)))
    assert told.startswith("p.yaml: 13 problems\n")
    assert told.count("\n") == 11
    assert told.endswith("\n  and 3 more")


# ---- overrides -----------------------------------------------------------------------------------------------------

BASE = "title: x\nmain: {shape: square, side: 2}\ncorners: [{shape: circle}]\nparts: {a: {width: 1}, b-1: {}}\n"


@pytest.mark.parametrize(
    ("assignment", "get", "value"),
    [
        ("count=3", lambda p: p.count, 3),
        ("ratio=1e-4", lambda p: p.ratio, 1e-4),
        ("title=", lambda p: p.frame, None),
        ("title='a #3'", lambda p: p.title, "a #3"),
        ("title=a=b", lambda p: p.title, "a=b"),
        ("main.side=3", lambda p: p.main, Square(side=3.0)),
        ("main={shape: circle}", lambda p: p.main, Circle()),
        ("corners.0.radius=4", lambda p: p.corners, (Circle(radius=4.0),)),
        ("corners=[]", lambda p: p.corners, ()),
        ("frame.width=9", lambda p: p.frame, Frame(width=9)),
        ("parts.a.width=5", lambda p: p.parts["a"].width, 5),
        ("a.width=6", lambda p: p.parts["a"].width, 6),
        ("b-1.width=7", lambda p: p.parts["b-1"].width, 7),
        ("labels=[p, q]", lambda p: p.labels, ("p", "q")),
        ("every=auto", lambda p: p.every, "auto"),
    ],
)
def test_overrides_reach_every_value(assignment, get, value):
    if assignment == "title=":
        assert message(BASE, assignment) == "override 'title=': title: must be text, got null (nothing)"
    else:
        assert get(picture(BASE, assignment)) == value


def test_overrides_reach_into_a_default_of_a_tagged_union():
    assert picture("title: x\n", "main.side=3").main == Square(side=3.0)
    assert picture("title: x\n", "main.shape=circle", "main.radius=3").main == Circle(radius=3.0)


def test_later_overrides_win():
    assert picture(BASE, "count=2", "count=3", "main={shape: circle}", "main.radius=5") == picture(
        BASE, "count=3", "main={shape: circle, radius: 5}"
    )


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("cuont=3", "override 'cuont=3': unknown key 'cuont' (did you mean 'count'?)\n  fix: known: title, "),
        ("count", "override 'count': an override is written key=value"),
        ("=3", "override '=3': an override is written key=value"),
        ("count=-0.1", "override 'count=-0.1': count: must be a whole number of at least 1, got -0.1"),
        ("main.sid=1", "override 'main.sid=1': main.sid: unknown key (did you mean 'side'?)"),
        ("main.radius=1", "override 'main.radius=1': main.radius: unknown key; known here: shape, side"),
        ("corners.1.radius=1", "corners.1: a list entry is named by its number, 0 to 0"),
        ("corners.x.radius=1", "corners.x: a list entry is named by its number, 0 to 0"),
        ("parts.c.width=1", "parts.c: there is no such entry; known: a, b-1"),
        ("title.x=1", "title is 'x', nothing inside it can be set"),
        ("count.x=1", "count is null (nothing), nothing inside it can be set"),
        ("points.0=1", "points is null (nothing), nothing inside it can be set"),
        ("title=a #b", "'#' starts a comment in YAML\n  fix: put the value in quotes"),
        ("title=#b", "'#' starts a comment in YAML\n  fix: put the value in quotes"),
        ("title=[a", "override 'title=[a': a ',' or the closing ']'"),
        ("title={a: 1, a: 2}", "override 'title={a: 1, a: 2}': a: this key is given twice"),
        ("count=.inf", "override 'count=.inf': .inf is not a finite number"),
        ("main.shape=circle", "p.yaml:2: main.side: unknown key; known here: shape, radius"),
    ],
)
def test_wrong_overrides_are_told(assignment, told):
    assert told in message(BASE, assignment)


def test_files_and_overrides_are_told_together():
    assert message("title: 3\n", "count=0") == (
        "p.yaml: 2 problems\n  line 1: title: must be text, got 3\n  override 'count=0': count: must be a whole number of at least 1, got 0"
    )


def test_documents_know_what_was_overridden():
    document = override(
        parse_yaml(BASE, "p.yaml"), ["corners.0={shape: square}", "a.width=2"], Picture, shorthand="parts"
    )
    assert document.is_override(("corners", 0, "side"))
    assert document.is_override(("parts", "a", "width"))
    assert not document.is_override(("parts", "a"))
    assert not document.is_override(("title",))


# ---- the way back --------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "1e-4",
            "yes",
            "null",
            "~",
            "",
            " a",
            "a: b",
            "#x",
            "- a",
            "1_0",
            "0o7",
            "2026-01-01",
            "=",
            "<<",
            "true",
            "\u2028",
            "\x85",
            "\ufeffx",
            "'\"",
            "a\n\n b\t",
        ]
    ),
).filter(lambda text: not re.search("[\ud800-\udfff]", text))
squares, circles = st.builds(Square, side=st.floats(1e-300, 1e300)), st.builds(Circle, radius=st.floats(1e-9, 10))
frames = st.builds(Frame, width=st.integers(-(10**30), 10**30))
pictures = st.builds(
    Picture,
    title=texts,
    count=st.integers(1, 10**9),
    ratio=st.floats(0, 1, exclude_max=True),
    bold=st.booleans(),
    colour=st.sampled_from(["red", "green"]),
    main=squares | circles,
    frame=st.none() | frames,
    every=st.integers(1) | st.just("auto"),
    labels=texts | st.lists(texts, max_size=3).map(tuple),
    corners=st.lists(squares | circles, max_size=3).map(tuple),
    parts=st.dictionaries(texts.filter(lambda text: text != "<<"), frames, max_size=3),
    points=st.lists(st.integers(), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(pictures)
def test_the_resolved_yaml_parses_back_to_an_equal_value(value):
    assert picture(resolved_yaml(value)) == value


def test_the_resolved_yaml_has_every_default():
    assert resolved_yaml(Picture(title="yes", ratio=1e-5)) == (
        "title: 'yes'\ncount: 1\nratio: 1.0e-05\nbold: false\ncolour: red\nmain:\n  shape: square\n  side: 1.0\n"
        "frame: null\nevery: auto\nlabels: none\ncorners: []\nparts: {}\npoints:\n- 1\n"
    )


@settings(max_examples=100, deadline=None)
@given(texts)
def test_text_is_read_as_the_same_text_by_yaml_1_1_too(text):
    assert yaml.safe_load(resolved_yaml(Frame2(text=text)))["text"] == text


@dataclass(frozen=True)
class Frame2:
    text: str


# ---- descriptions --------------------------------------------------------------------------------------------------


def test_words():
    assert words(int) == "a whole number"
    assert words(Annotated[float, Gt(0)] | None) == "a number greater than 0 or null"
    assert words(tuple[Literal["a", "b"], ...]) == "a list, each entry one of 'a', 'b'"
    assert words(Annotated[str, MinLen(1)]) == "text with at least 1 character"
    assert words(Annotated[Square | Circle, Discriminator("shape")]) == "a mapping with shape: square or circle"


def test_sections_hold_every_key_once():
    found = {(s.path, s.choice): s for s in sections(Picture)}
    assert list(found) == [("", None), ("main", "shape: square"), ("main", "shape: circle"), ("frame", None)]
    assert found[("main", "shape: square")].meaning == "Four equal sides."
    side = found[("main", "shape: square")].keys[1]
    assert side == ("side", "a number greater than 0", "1.0", "Length of a side, in metres.")
    root = {key.name: key for key in found[("", None)].keys}
    assert root["title"].default is None
    assert root["main"].default == "{shape: square, side: 1.0}"
    assert root["frame"].default == "null"


def test_the_json_schema_describes_and_forbids():
    schema = json_schema(Picture)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["title"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["title"]["description"] == "Shown above."
    square = schema["$defs"]["Square"]
    assert square["additionalProperties"] is False
    assert square["description"] == "Four equal sides."
    assert square["properties"]["side"] == {
        "default": 1.0,
        "exclusiveMinimum": 0,
        "type": "number",
        "description": "Length of a side, in metres.",
    }
    assert schema["properties"]["main"]["default"] == {"shape": "square", "side": 1.0}
    assert schema["properties"]["points"]["minItems"] == 1
    json.dumps(schema)


def test_field_docs_are_empty_where_the_source_is_not_at_hand():
    made = dataclass(type("Made", (), {"__annotations__": {"x": int}}))
    assert config.field_docs(made) == {}
