"""Preferences by hand: lots, answers that outlive a kill, two people at once, agreement, and the pairs that come of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import StageDir
from posttrain.board import labelling
from posttrain.board.label_results import results
from posttrain.board.label_sets import Item, LabelSet, create, folder_of, read_items, read_set, set_names
from posttrain.board.label_sources import items_of, models_of
from posttrain.board.labelling import Given, export, give, pairs, queue, read_answers, undo
from posttrain.board.row_sets import find, sets_of_folders, sets_of_run, votes_of
from posttrain.data.config import DataSettings, Source
from posttrain.data.pipeline import prepare
from posttrain.data.rows import read_pairs
from posttrain.errors import ConfigError, RunError
from posttrain.report.values import Facts, Number, Table
from posttrain.types import Message


def item(number: int, **more: Any) -> Item:
    asked = (Message("user", f"Question {number}?"),)
    return Item(
        f"item-{number}",
        asked,
        (Message("assistant", f"good {number}"),),
        (Message("assistant", f"bad {number}"),),
        "one",
        "two",
        **more,
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def made(runs: Path, items: int = 10, overlap: float = 1.0, seed: int = 0) -> Path:
    create(runs, "set", "Which is better?", "here", [item(n) for n in range(items)], seed=seed, overlap=overlap)
    return folder_of(runs, "set")


def towards(folder: Path, annotator: str, item_id: str, side: str, seconds: float = 1.0) -> Given:
    """Choose a reply wherever it stands."""
    left = labelling.left_of(read_set(folder), annotator, item_id)
    return give(folder, annotator, item_id, "left" if left == side else "right", seconds)


def left_to_do(folder: Path, annotator: str) -> list[str]:
    return list(queue(read_set(folder), read_items(folder), read_answers(folder), annotator))


# ---- sets ----------------------------------------------------------------------------------------------------------


def test_a_set_is_made_once_and_found_by_its_name(runs: Path) -> None:
    folder = made(runs, 5)
    assert set_names(runs) == ["set"]
    assert read_set(folder).items == 5
    assert sorted(read_items(folder)) == [f"item-{n}" for n in range(5)]
    with pytest.raises(ConfigError, match="there is a set of this name"):
        made(runs)
    for name in ("", "../set", "a/b", ".hidden", "a" * 65, "set\n"):
        with pytest.raises(ConfigError, match="can't be called"):
            create(runs, name, "", "", [item(1)])
    for name in ("..", "set/..", "other", ""):
        with pytest.raises(RunError, match="no set of preferences"):
            folder_of(runs, name)
    (runs / ".labels" / "link").symlink_to(folder)
    assert set_names(runs) == ["set"]


def test_equal_items_count_once_and_nothing_to_label_is_an_error(runs: Path) -> None:
    about = create(runs, "twice", "", "here", [item(1), item(1), item(2)])
    assert (about.items, about.left_out) == (2, {"exact_duplicate": 1})
    with pytest.raises(ConfigError, match="nothing to label \\(left out: no_pair 3\\)"):
        create(runs, "none", "", "here", [], left_out={"no_pair": 3})
    with pytest.raises(ConfigError, match="is no share"):
        create(runs, "none", "", "here", [item(1)], overlap=1.5)


# ---- lots ----------------------------------------------------------------------------------------------------------


def test_the_sides_are_drawn_by_the_seed_for_every_annotator_and_item() -> None:
    about = LabelSet(name="s", question="", source="", seed=7, overlap=0.25, created=0, items=1)
    names = [f"item-{n}" for n in range(2000)]
    ann, bob = ([labelling.left_of(about, who, name) for name in names] for who in ("ann", "bob"))
    assert ann == [labelling.left_of(about, "ann", name) for name in names]
    assert 900 < ann.count("a") < 1100
    assert 900 < sum(one == other for one, other in zip(ann, bob, strict=True)) < 1100
    assert 430 < sum(labelling.is_shared(about, name) for name in names) < 570


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_reply_that_was_seen_on_a_side_is_the_one_that_is_kept(runs: Path, side: str) -> None:
    folder = made(runs, 40)
    for name in left_to_do(folder, "ann"):
        given = give(folder, "ann", name, side, 2.0)
        other = "b" if given.left == "a" else "a"
        assert given.choice == (given.left if side == "left" else other)
    for record in pairs(folder):
        given = next(one for one in read_answers(folder).of["ann"] if one.item == record["label_item"])
        assert record["chosen"][0]["content"].startswith("good" if given.choice == "a" else "bad")
        assert record["rejected"][0]["content"].startswith("bad" if given.choice == "a" else "good")


# ---- who gets what -------------------------------------------------------------------------------------------------


def test_shared_items_go_to_all_and_the_others_to_one(runs: Path) -> None:
    folder = made(runs, 60, overlap=0.3)
    about = read_set(folder)
    shared = {name for name in read_items(folder) if labelling.is_shared(about, name)}
    who = ["ann", "bob"]
    while any(left_to_do(folder, one) for one in who):
        for one in who:
            if todo := left_to_do(folder, one):
                towards(folder, one, todo[0], "a")
    said = read_answers(folder).by_item()
    assert {name for name, given in said.items() if len(given) == 2} == shared
    assert set(said) == set(read_items(folder))


def test_two_who_label_at_once_rarely_meet_but_on_shared_items(runs: Path) -> None:
    folder = made(runs, 400, overlap=0.1)
    about = read_set(folder)
    ann, bob = (left_to_do(folder, who)[:60] for who in ("ann", "bob"))
    shared = [[name for name in one if labelling.is_shared(about, name)] for one in (ann, bob)]
    assert shared[0] == shared[1]  # in one order, mixed in from the start
    assert 4 <= len(shared[0]) <= 8
    met = (set(ann) & set(bob)) - set(shared[0])
    assert len(met) < 20


def test_what_one_has_skipped_another_gets(runs: Path) -> None:
    folder = made(runs, 3, overlap=0.0)
    first = left_to_do(folder, "ann")[0]
    give(folder, "ann", first, "skip", 1.0)
    assert first not in left_to_do(folder, "ann")
    assert first in left_to_do(folder, "bob")


# ---- answers -------------------------------------------------------------------------------------------------------


def test_an_answer_says_who_what_stood_left_how_long_and_when(runs: Path) -> None:
    folder = made(runs)
    give(folder, "ann", "item-3", "tie", 4.5)
    (line,) = (folder / "answers.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.keys() == {"item", "annotator", "answer", "choice", "left", "seconds", "at"}
    assert (record["annotator"], record["choice"], record["seconds"]) == ("ann", "tie", 4.5)
    assert record["left"] == labelling.left_of(read_set(folder), "ann", "item-3")


def test_an_answer_counts_once_until_it_is_undone(runs: Path) -> None:
    folder = made(runs)
    towards(folder, "ann", "item-1", "a")
    towards(folder, "ann", "item-2", "b")
    with pytest.raises(ConfigError, match="answered already"):
        towards(folder, "ann", "item-2", "a")
    assert undo(folder, "bob") is None
    assert undo(folder, "ann") == "item-2"
    towards(folder, "ann", "item-2", "a")
    assert undo(folder, "ann") == "item-2"
    assert undo(folder, "ann") == "item-1"
    assert undo(folder, "ann") is None
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 6  # nothing is ever taken out


@pytest.mark.parametrize(("answer", "seconds", "words"), [("up", 1.0, "is no answer"), ("tie", 1.0, "no such item")])
def test_what_is_no_answer_is_refused(runs: Path, answer: str, seconds: float, words: str) -> None:
    folder = made(runs)
    with pytest.raises(ConfigError, match=words):
        give(folder, "ann", "item-1" if answer == "up" else "other", answer, seconds)
    assert not (folder / "answers.jsonl").exists()


@pytest.mark.parametrize("name", ["", "  ", "a" * 41, "a\u202eb", "a\x00b"])
def test_a_name_must_be_one(name: str) -> None:
    with pytest.raises(ConfigError):
        labelling.annotator_of(name)
    assert labelling.annotator_of("  Ann   von  Ω ") == "Ann von Ω"


def test_a_kill_in_the_middle_of_a_line_loses_that_answer_alone(runs: Path) -> None:
    folder = made(runs)
    towards(folder, "ann", "item-1", "a")
    with (folder / "answers.jsonl").open("a") as file:
        file.write(
            '[1]\n{"annotator": 5, "item": "x"}\n{"annotator": "ann", "undo": ["x"]}\n{"item": "item-2", "annotator": "bob", '
        )
        file.write(
            '"answer": "left", "choice": "a", "left": "a", "seconds": "long", "at": 1}\n{"item": "item-2", "annot'
        )
    found = read_answers(folder)
    assert [one.item for one in found.of["ann"]] == ["item-1"]
    assert found.damaged == 5
    towards(folder, "ann", "item-2", "b")
    found = read_answers(folder)
    assert [one.item for one in found.of["ann"]] == ["item-1", "item-2"]
    assert found.damaged == 5


def test_processes_that_write_at_once_lose_nothing(runs: Path) -> None:
    folder = made(runs, 60)
    code = (
        "import sys; from pathlib import Path; from posttrain.board.label_sets import read_items; from posttrain.board.labelling import give\n"
        "folder = Path(sys.argv[1])\n"
        "for name in read_items(folder): give(folder, sys.argv[2], name, 'tie', 1.0)"
    )
    working = [subprocess.Popen([sys.executable, "-c", code, str(folder), who]) for who in ("ann", "bob")]
    assert [one.wait() for one in working] == [0, 0]
    found = read_answers(folder)
    assert found.damaged == 0
    assert {who: len(given) for who, given in found.of.items()} == {"ann": 60, "bob": 60}


# ---- what comes of it ----------------------------------------------------------------------------------------------


def test_the_export_is_read_by_a_data_stage_and_leaves_out_what_is_undecided(runs: Path, tmp_path: Path) -> None:
    folder = made(runs, 8)
    for who, choices in {"ann": "aabtas", "bob": "abbtta", "eve": "aa...."}.items():
        for number, choice in enumerate(choices):
            if choice in "ab":
                towards(folder, who, f"item-{number}", choice)
            elif choice != ".":
                give(folder, who, f"item-{number}", {"t": "tie", "s": "skip"}[choice], 1.0)
    give(folder, "ann", "item-6", "skip", 1.0)
    assert export(folder) == labelling.Exported(pairs=4, ties=1, skipped=1, split=1, unlabelled=1)
    out = StageDir(tmp_path / "prepare")
    source = Source(path=str(folder / "pairs.jsonl"))
    prepare(DataSettings(sources=(source,), held_out=0), out, 0, lambda name: None)
    rows = {row.prompt[0].content: row for row in read_pairs(out.file("rows", "train.parquet"))}
    assert rows.keys() == {f"Question {n}?" for n in (0, 1, 2, 5)}
    assert rows["Question 1?"].chosen[0].content == "good 1"
    assert rows["Question 2?"].chosen[0].content == "bad 2"
    assert (rows["Question 1?"].meta["label_votes"], rows["Question 1?"].meta["label_of"]) == (2, 3)


def test_agreement_is_that_of_the_judges(runs: Path) -> None:
    folder = made(runs, 10)
    for who, choices in {"ann": "aaaaabbbbb", "bob": "aaaabbbbba"}.items():
        for number, choice in enumerate(choices):
            towards(folder, who, f"item-{number}", choice, seconds=3.0)
    outcome, annotators, agreement = results(
        read_items(folder), read_answers(folder), lambda key, **more: key + str(more.get("name", ""))
    )
    assert isinstance(outcome, Facts)
    assert dict(outcome.items)["label.preferredone"] == Number(4, "count")
    assert isinstance(annotators, Table)
    assert [row[1] for row in annotators.lines] == [Number(10, "count")] * 2
    assert annotators.lines[0][5] == Number(3.0, "seconds")
    assert isinstance(agreement, Table)
    (pair, everyone) = agreement.lines
    assert isinstance(pair[2], Number)
    assert isinstance(pair[3], Number)
    assert isinstance(everyone[3], Number)
    assert pair[2].value == pytest.approx(0.8)
    assert pair[3].value == pytest.approx(0.6)  # by hand: (0.8 - 0.5) / 0.5
    assert everyone[3].value == pytest.approx(1 - 19 * 4 / (20 * 20 - 200), abs=1e-12)
    assert pair[3].low is not None
    assert pair[3].low < 0.6
    assert results(read_items(folder), labelling.Answers({}, 0), lambda key, **more: key) == []


def test_raters_who_share_nothing_have_no_agreement(runs: Path) -> None:
    folder = made(runs, 4)
    towards(folder, "ann", "item-0", "a")
    towards(folder, "bob", "item-1", "a")
    agreement = results(read_items(folder), read_answers(folder), lambda key, **more: key)[-1]
    assert isinstance(agreement, Table)
    assert list(agreement.lines[0][2:]) == [None, None]


# ---- where items come from -----------------------------------------------------------------------------------------


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_items_of_a_file_of_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"Q{n}", "chosen": "yes", "rejected": "no"} for n in range(9)]
    written(tmp_path, "a.jsonl", [*rows, {"prompt": "Q", "chosen": "same", "rejected": "same"}])
    file = sets_of_folders([tmp_path])[0]
    found = items_of(file, 100, 0)
    assert len(found.items) == 9
    assert found.left_out == Counter(equal_sides=1)
    assert (found.items[0].name_a, found.items[0].a[0].content) == ("chosen", "yes")
    few = items_of(file, 4, 0)
    assert [one.id for one in few.items] == [one.id for one in items_of(file, 4, 0).items]
    assert few.left_out["not_drawn"] == 5


def test_items_that_nobody_has_compared_yet(tmp_path: Path) -> None:
    rows = [
        {
            "id": str(n),
            "prompt": f"Q{n}",
            "reply_a": "x",
            "reply_b": f"y{n}" if n else "x ",
            "model_a": "m",
            "model_b": "n",
        }
        for n in range(3)
    ]
    written(tmp_path, "a.jsonl", rows)
    found = items_of(sets_of_folders([tmp_path])[0], 100, 0)
    assert [(one.name_a, one.name_b, one.b[0].content) for one in found.items] == [("m", "n", "y1"), ("m", "n", "y2")]
    assert found.left_out == Counter(equal_sides=1)


def test_items_of_the_votes_of_the_chat(tmp_path: Path) -> None:
    def asked(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    one: dict[str, Any] = {
        "id": "1",
        "prompt": "b",
        "reply_a": "x",
        "reply_b": "y",
        "model_a": "m",
        "model_b": "n",
        "winner": "tie",
    }
    rows = [
        one | {"messages_a": asked("a", "so", "b"), "messages_b": asked("a", "so", "b")},
        one | {"id": "2", "messages_a": asked("a", "so", "b"), "messages_b": asked("a", "but", "b")},
    ]
    written(tmp_path, ".votes/votes.jsonl", rows)
    (file,) = votes_of(tmp_path)
    found = items_of(file, 100, 0)
    assert [[turn.content for turn in item.prompt] for item in found.items] == [["a", "so", "b"]]
    assert found.left_out == Counter(several_turns=1)
    assert votes_of(tmp_path / "nowhere") == []


def test_items_of_what_two_models_said(tmp_path: Path) -> None:
    def said(model: str, prompt: str, *replies: str) -> dict[str, Any]:
        turns = ["Q " + prompt] * max(1, len(replies))
        return {"model": model, "prompt_id": prompt, "sample": 0, "turns": turns, "replies": list(replies)}

    rows = [
        said("base", "p1", "a"),
        said("base", "p2", "same"),
        said("base", "p3", "a", "b"),
        said("base", "p4", "a"),
        said("base", "p5", ""),
    ]
    rows += [
        said("sft", "p1", "b"),
        said("sft", "p2", "same "),
        said("sft", "p3", "c", "d"),
        said("dpo", "p1", "c"),
        said("sft", "p5", "x"),
    ]
    written(tmp_path, "evaluate/prompts.rows.jsonl", rows)
    file = find(sets_of_run(tmp_path), "evaluate/prompts.rows.jsonl")
    assert models_of(file) == ["base", "sft", "dpo"]
    found = items_of(file, 100, 0, ("base", "sft"))
    ((one),) = found.items
    assert (one.prompt[0].content, one.a[0].content, one.b[0].content) == ("Q p1", "a", "b")
    assert (one.name_a, one.name_b) == ("base", "sft")
    assert found.left_out == Counter(equal_sides=1, several_turns=1, one_reply=1, no_reply=1)
    with pytest.raises(ConfigError, match="two different models"):
        items_of(file, 100, 0, ("base", "base"))
