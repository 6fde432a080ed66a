"""A recipe as a form, and what is typed into it as a patch of its YAML."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.board import recipe_form as form
from posttrain.board.recipe_edit import with_entry, with_typed, without
from posttrain.board.recipe_form import USUAL_FILE, Draft, draft, written_keys
from posttrain.board.recipe_nodes import Field, Group, GroupList, walk
from posttrain.board.yaml_values import same, value_at, without_value
from posttrain.config import (
    ConfigPath,
    build,
    dotted,
    fields_of,
    keys_of,
    override,
    parse_yaml,
    resolved_yaml,
    shape_of,
    variants_of,
)
from posttrain.errors import ConfigError
from posttrain.lab.recipe import Recipe, load_recipe
from posttrain.stages import KINDS, AnyStage

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").rglob("*.yaml"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in RECIPES if path.parent.name == "recipes"}
SMALL = """\
# a comment
name: small
model: smollm2-135m-instruct
stages:
  rows:
    kind: data
    sources:
      - path: alpaca_en_demo   # the rows
  sft:
    kind: train
    data: rows
    learning_rate: 2e-4        # fast
  report: {kind: report}
"""


def fields(found: Draft) -> dict[str, Field]:
    return {dotted(node.path): node for node in walk(found.nodes) if isinstance(node, Field)}


@cache
def fields_of_ours(name: str) -> list[Field]:
    """All fields of a recipe of ours but the kinds of its stages and steps."""
    return [one for one in fields(draft(TEXTS[name], name)).values() if one.name != "kind"]


def at(path: str) -> ConfigPath:
    return tuple(int(part) if part.isdecimal() else part for part in path.split("."))


# ---- the form ------------------------------------------------------------------------------------------------------


def test_a_field_says_what_it_is() -> None:
    found = fields(draft(SMALL, "small.yaml"))
    rate = found["stages.sft.learning_rate"]
    assert (rate.text, rate.is_set, rate.input, rate.default) == ("2e-4", True, "number", "null")
    assert rate.allowed == "a number greater than 0 or null"
    assert rate.help.startswith("Highest rate;")
    schedule = found["stages.sft.schedule"]
    assert (schedule.text, schedule.is_set, schedule.default) == ("", False, "cosine")
    assert schedule.choices == ("cosine", "linear", "constant")
    assert found["stages.sft.gradient_checkpointing"].choices == ("true", "false")
    assert found["stages.sft.adapter.quantize"].choices == ("nf4", "null")
    assert found["stages.sft.data"].choices == ("rows",)
    assert found["stages.sft.start_from"].suggestions == ("base",)
    assert "alpaca_zh_demo" in found["stages.rows.sources.0.path"].suggestions
    assert found["model"].suggestions[0] == "smollm2-135m-instruct"
    assert "auto" in found["stages.sft.micro_batch_tokens"].suggestions


def test_a_choice_of_groups_shows_the_keys_of_the_chosen_one() -> None:
    text = with_typed(SMALL, "s", at("stages.sft.objective.name"), "dpo")
    found = fields(draft(text, "s"))
    assert found["stages.sft.objective.name"].text == "dpo"
    assert found["stages.sft.objective.beta"].default == "0.1"
    assert found["stages.sft.objective.reference"].choices[0] == "base"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_name())
def test_every_key_of_every_kind_of_stage_is_in_the_form(kind: type) -> None:
    text = f"name: x\nstages:\n  one: {{kind: {kind.kind_name()}}}\n"  # type: ignore[attr-defined]
    stage = next(node for node in walk(draft(text, "x").nodes) if node.path == ("stages", "one"))
    assert isinstance(stage, Group)
    assert [node.name for node in stage.nodes] == [key.name for key in keys_of(kind) if key.name != "kind"]
    required = [key.name for key in keys_of(kind) if key.default is None and key.name != "kind"]
    assert all(node.is_simple for node in stage.nodes if node.name in required)


def test_simple_is_what_is_required_set_or_usual() -> None:
    found = fields(draft(SMALL, "small.yaml"))
    assert found["stages.sft.data"].is_simple
    assert found["stages.sft.learning_rate"].is_simple
    assert found["stages.sft.batch_size"].is_simple
    assert not found["stages.sft.adam_beta1"].is_simple
    assert fields(draft(with_typed(SMALL, "s", at("stages.sft.adam_beta1"), "0.8"), "s"))[
        "stages.sft.adam_beta1"
    ].is_simple


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_form_shows_typed_again_changes_nothing(name: str) -> None:
    found = draft(TEXTS[name], name)
    assert found.error is None
    unset = {}
    for field in fields(found).values():
        if field.is_set:
            assert with_typed(TEXTS[name], name, field.path, field.text) == TEXTS[name], field.path
        else:
            assert field.text == ""
            unset[field.path[:-1]] = field.path
    for path in unset.values():  # one of every group
        assert without(TEXTS[name], name, path) == TEXTS[name]


# ---- edits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "typed", "old", "new"),
    [
        ("stages.sft.learning_rate", "1e-5", "learning_rate: 2e-4        # fast", "learning_rate: 1e-5        # fast"),
        ("stages.sft.learning_rate", "null", "    learning_rate: 2e-4        # fast\n", ""),
        ("stages.sft.learning_rate", "", "    learning_rate: 2e-4        # fast\n", ""),
        ("stages.sft.epochs", "2", "# fast\n", "# fast\n    epochs: 2\n"),
        ("stages.sft.max_grad_norm", "null", "# fast\n", "# fast\n    max_grad_norm: null\n"),
        ("stages.sft.max_steps", "null", "", ""),
        ("stages.sft.adapter.rank", "8", "# fast\n", "# fast\n    adapter: {name: lora, rank: 8}\n"),
        ("stages.sft.objective.name", "dpo", "# fast\n", "# fast\n    objective: {name: dpo}\n"),
        ("stages.sft.track", "wandb, tensorboard", "# fast\n", "# fast\n    track: [wandb, tensorboard]\n"),
        ("stages.report.title", "DPO: why?  # 1", "{kind: report}", "{kind: report, title: 'DPO: why?  # 1'}"),
        ("name", "2024", "name: small", "name: '2024'"),
        ("seed", "7", "  report: {kind: report}\n", "  report: {kind: report}\nseed: 7\n"),
        ("stages.rows.sources.0.max_rows", "50", "# the rows\n", "# the rows\n        max_rows: 50\n"),
    ],
)
def test_what_is_typed_becomes_a_patch(path: str, typed: str, old: str, new: str) -> None:
    assert with_typed(SMALL, "s", at(path), typed) == SMALL.replace(old, new) if old else SMALL


def test_another_kind_keeps_the_keys_that_it_knows() -> None:
    text = SMALL.replace("# fast\n", "# fast\n    objective:\n      name: dpo\n      # of the tie\n      beta: 0.2\n      label_smoothing: 0.1\n")  # fmt: skip
    found = with_typed(text, "s", at("stages.sft.objective.name"), "ipo")
    assert found == text.replace("name: dpo", "name: ipo").replace("      label_smoothing: 0.1\n", "")
    assert with_typed(found, "s", at("stages.sft.objective.name"), "").count("objective") == 0


@pytest.mark.parametrize(
    ("path", "kind", "name", "old", "new"),
    [
        ("stages.rows.sources", "", "", "# the rows\n", "# the rows\n      - {}\n"),
        ("stages.rows.steps", "dedup", "", "# the rows\n", "# the rows\n    steps: [{kind: dedup}]\n"),
        ("stages.sft.early_stopping", "", "", "# fast\n", "# fast\n    early_stopping: {}\n"),
        ("stages.rows.mix", "", "", "# the rows\n", "# the rows\n    mix: {kind: mix}\n"),
        ("stages", "eval", "measure", "{kind: report}\n", "{kind: report}\n  measure:\n    kind: eval\n"),
    ],
)
def test_entries_and_groups_can_be_added(path: str, kind: str, name: str, old: str, new: str) -> None:
    found = with_entry(SMALL, "s", at(path), kind, name)
    assert found == SMALL.replace(old, new)


def test_an_added_group_can_be_taken_out_again() -> None:
    added = with_entry(with_entry(SMALL, "s", at("stages.rows.steps"), "dedup"), "s", at("stages.rows.steps"), "filter")
    assert "steps: [{kind: dedup}, {kind: filter}]" in added
    assert without(without(added, "s", at("stages.rows.steps.1")), "s", at("stages.rows.steps")) == SMALL


@pytest.mark.parametrize("name", ["", "sft"])
def test_a_stage_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="a name is needed" if not name else "there is an entry 'sft' already"):
        with_entry(SMALL, "s", ("stages",), "eval", name)


def test_what_is_no_yaml_is_told_as_the_command_line_tells_it() -> None:
    with pytest.raises(ConfigError) as typed:
        with_typed(SMALL, "s", at("stages.sft.epochs"), "[1")
    with pytest.raises(ConfigError) as command:
        override(parse_yaml(SMALL, "s"), ["stages.sft.epochs=[1"], Recipe)
    assert str(typed.value) == str(command.value)


def test_a_shared_stage_keeps_what_it_had() -> None:
    text = SMALL.replace("  sft:\n", "  sft: &sft\n").replace(
        "  report:", "  again:\n    <<: *sft\n    epochs: 2\n  report:"
    )
    found = with_typed(text, "s", at("stages.sft.warmup"), "0.2")
    assert found == text.replace("# fast\n", "# fast\n    warmup: 0.2\n").replace("    epochs: 2\n", "    epochs: 2\n    warmup: 0.05\n")  # fmt: skip
    assert with_typed(text, "s", at("stages.again.learning_rate"), "1e-5") == text.replace("    epochs: 2\n", "    epochs: 2\n    learning_rate: 1e-5\n")  # fmt: skip


def recipe_stages(text: str, name: str, without: tuple[str | int, ...]) -> dict[str, object]:
    document = parse_yaml(text, name)
    others = [stage for stage in document.value["stages"] if (stage,) != without]
    return {stage: build(AnyStage, document, ("stages", stage)) for stage in others}


def lines_taken(old: str, new: str) -> list[str]:
    return list((Counter(old.splitlines()) - Counter(new.splitlines())).elements())


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_an_edit_means_what_an_override_means_and_leaves_all_other_lines(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TEXTS)))
    text, document = TEXTS[name], parse_yaml(TEXTS[name], name)
    field = data.draw(st.sampled_from(fields_of_ours(name)))
    is_tag = any(
        shape_of(annotation).tag == field.name for owner in [Recipe] for annotation in fields_of(owner).values()
    )
    numbers = st.integers(0, 9).map(str) | st.sampled_from(["1e-4", "0.25", "3.0"])
    typed = data.draw(st.sampled_from(field.choices) if field.choices else numbers | st.sampled_from(["x", "a b", "[1, 2]", "{a: 1}"]))  # fmt: skip
    found = with_typed(text, name, field.path, typed)
    tags = {shape_of(a).tag for kind in KINDS for a in fields_of(kind).values()} | {"method", "by", "measure"}
    if not is_tag and field.name not in tags:
        quoted = f"'{typed}'" if field.input in ("text", "long") else f"[{typed}]" if field.input == "list" and typed[0] != "[" else typed  # fmt: skip
        wanted = override(document, [f"{dotted(field.path)}={quoted}"], Recipe).value
        if typed == "null" and field.default == "null":
            wanted = without_value(document.value, field.path)
        assert same(value_at(parse_yaml(found, name).value, field.path[:2]), value_at(wanted, field.path[:2]))
    # other stages mean what they meant, also those that share something with this one
    before, after = (recipe_stages(one, name, without=field.path[1:2]) for one in (text, found))
    assert before == after
    taken = [line for line in lines_taken(text, found) if ": *" not in line]  # an alias may become a value of its own
    assert len(taken) <= (1 if field.input != "choice" or field.name not in tags else 9)


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("learning_rate: 2e-4", "learning_rate: fast", "stages.sft.learning_rate", "must be a number greater than 0 or null, got 'fast'"),
        ("learning_rate: 2e-4", "learning_rat: 2e-4", "stages.sft.learning_rat", "unknown key (did you mean 'learning_rate'?)"),
        ("data: rows", "data: row", "stages.sft.data", "there is no stage 'row' (did you mean 'rows'?); possible here: rows"),
        ("    data: rows\n", "", "stages.sft.data", "this key is missing; it must be text"),
        ("kind: train", "kind: trai", "stages.sft.kind", None),
        ("name: small", "name: a/b", "name", None),
        ("- path: alpaca_en_demo", "- path: 5", "stages.rows.sources.0.path", "must be text, got 5"),
    ],
)  # fmt: skip
def test_an_error_stands_at_its_field_in_the_words_of_the_command_line(
    tmp_path: Path, old: str, new: str, path: str, message: str | None
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(SMALL.replace(old, new))
    found = draft(SMALL.replace(old, new), str(file))
    told = fields(found)[path].problems
    with pytest.raises(ConfigError) as command:
        load_recipe(file)
    assert found.error is not None
    assert str(found.error) == str(command.value)
    assert len(told) == 1
    assert f"{path}: {told[0]}" in str(command.value)
    assert message is None or told == (message,)
    assert found.unplaced == ()
    assert fields(found)[path].is_simple


def test_an_error_in_an_entry_of_a_list_stands_at_the_list() -> None:
    text = with_entry(SMALL, "s", ("stages",), "eval", "measure").replace("kind: eval\n", "kind: eval\n    data: rows\n    models: [base, stf]\n")  # fmt: skip
    found = draft(text, "s")
    assert fields(found)["stages.measure.models"].problems == (
        "1: there is no stage 'stf' (did you mean 'sft'?); possible here: base, sft",
    )


def test_an_error_of_a_group_stands_at_the_group() -> None:
    text = with_typed(SMALL, "s", at("stages.sft.objective.name"), "dpo").replace("data: rows", "data: rows\n    over_length: truncate")  # fmt: skip
    stage = next(node for node in walk(draft(text, "s").nodes) if node.path == ("stages", "sft"))
    assert "over_length: truncate can't be used with dpo" in stage.problems[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\n", "s:2: a ',' or the closing ']' of the bracket opened on line 1 is missing"),
        ("", "s: the file is empty"),
        ("- 1\n", "(top level): must be a mapping"),
        ("name: x\nname: y\n", "s:2: name: this key is given twice"),
    ],
)
def test_what_stands_at_no_field_stands_above(text: str, told: str) -> None:
    found = draft(text, "s")
    assert found.recipe is None
    assert told in str(found.error)
    assert found.unplaced


@pytest.mark.parametrize(
    "text",
    ["stages: 5\n", "stages: [a]\n", "stages: {a: 1}\n", "stages: {a: {kind: [x]}}\n", "stages: {a: {kind: data, sources: {x: 1}, steps: 3}}\n"],
)  # fmt: skip
def test_any_yaml_has_a_form(text: str) -> None:
    assert draft(text, "s").error is not None


def test_kinds_of_entries_are_offered() -> None:
    lists = {dotted(node.path): node for node in walk(draft(SMALL, "s").nodes) if isinstance(node, GroupList)}
    assert lists["stages"].kinds == tuple(variants_of(shape_of(get_args(fields_of(Recipe)["stages"])[0].__args__[1])))
    assert lists["stages"].is_named
    assert lists["stages.rows.steps"].kinds == ("filter", "dedup", "decontaminate", "select", "split")
    assert lists["stages.rows.sources"].kinds == ()


def test_usual_is_what_our_recipes_set() -> None:
    told = Path(form.__file__).with_name(USUAL_FILE)
    found = written_keys(parse_yaml(text, name).value for name, text in TEXTS.items())
    assert parse_yaml(told.read_text(), USUAL_FILE).value == found, f"write {resolved_yaml(found)} into {told}"
