"""Filters on pairs and feedback: which replies they look at, and how a row says which side it went for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_examples import FILTER_EXAMPLES, only
from posttrain.config import build, parse_yaml
from posttrain.data.filters import FILTERS, Conversation, Filter
from posttrain.data.filters.form import Length
from posttrain.data.filters.harmful import Harmful
from posttrain.data.filters.private import Pii
from posttrain.data.filters.step import FilterStep, measure
from posttrain.data.reading import rows_as
from posttrain.data.rows import rows_frame, write_rows
from posttrain.data.select.step import SelectStep
from posttrain.data.steps import Decisions, StepRun, apply
from posttrain.types import Message, Origin, PairRow, Row, SftRow, UnpairedRow

RUN = StepRun(lambda name: None)
CLEAN = (
    Message("user", "Name a colour of the sky."),
    Message("assistant", "The sky is blue. That is so on a clear day."),
)
WANTED = [name for name, one in FILTERS.items() if one.replies == "wanted"]
REPLIES = [
    (name, reason, example)
    for name, one in FILTER_EXAMPLES.items()
    for reason, example in one.items()
    if reason
    not in ("user_too_short", "user_too_long", "assistant_too_long", "harmful_score", "does_not_end_with_assistant")
]
"""Reasons that a reply can give. The others are those of the prompt or of the whole row, can't be read as a pair, or would take the
clean reply as well."""


def pair(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message], line: int = 1) -> PairRow:
    return PairRow(tuple(prompt), tuple(chosen), tuple(rejected), Origin("f.jsonl", line), "s")


def simple(chosen: str, rejected: str, line: int = 1, prompt: str = "Name a colour.") -> PairRow:
    return pair([Message("user", prompt)], [Message("assistant", chosen)], [Message("assistant", rejected)], line)


def judged(row: PairRow, desirable: bool) -> UnpairedRow:
    first, second = rows_as(row, "feedback")
    found = first if desirable else second
    assert isinstance(found, UnpairedRow)
    return found


def decided(rows: Sequence[Row], folder: Path, step: FilterStep | None = None, run: StepRun = RUN) -> Decisions:
    write_rows(folder / "in.parquet", rows_frame(rows))
    return (step or FilterStep(kind="filter")).decide(folder / "in.parquet", 0, run)


def rejects(decisions: Decisions) -> dict[int, str]:
    return dict(decisions.rejects.select("row", "reason").iter_rows())


def with_bad_side(example: Conversation, side: str) -> PairRow:
    """The example's conversation as one side of a pair, beside a clean one."""
    turns = example.messages
    first = next(place for place, message in enumerate(turns) if message.role == "assistant")
    bad, good = turns[first:], CLEAN[1:]
    return pair(turns[:first], *((good, bad) if side == "rejected" else (bad, good)))


def test_what_looks_at_both_replies() -> None:
    assert WANTED == ["template", "refusal", "harmful"]


@pytest.mark.parametrize(
    ("name", "reason", "example"), REPLIES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_filter_sees_the_rejected_side_or_leaves_it(
    name: str, reason: str, example: tuple[Filter, Conversation], tmp_path: Path
) -> None:
    config, row = example
    bad = only(Harmful(fields="assistant") if reason == "harmful_terms" else config)
    rows = [with_bad_side(row, "chosen"), with_bad_side(row, "rejected"), simple("Blue.", "Seven.", 3)]
    prompt_is_bad = reason in ("mojibake", "roles_do_not_alternate")  # in these examples the user is at fault too
    found = rejects(decided(rows, tmp_path, bad))
    found.pop(2, None)  # a reply of one word is no code and no long text: it may go for being undetermined or short
    if reason == "harmful_terms":
        assert found == {}  # the terms are those of the request, and here only replies are looked at
    elif name in WANTED:
        assert found == {0: reason}
    else:
        assert found == {0: reason, 1: reason if prompt_is_bad else f"rejected_{reason}"}


def test_a_bad_prompt_and_two_bad_replies_name_the_chosen_side(tmp_path: Path) -> None:
    rows = [
        simple("Blue.", "Red.", 1, "Où est le cafÃ© ?"),
        simple("Blue." + "!" * 40, "Red." + "!" * 50, 2),
        simple("Blue.", "Red." + "!" * 50, 3),
        simple("Blue." + "!" * 40, "Red.", 4),
        simple("Blue.", "Red.", 5),
    ]
    found = decided(rows, tmp_path)
    assert rejects(found) == {
        0: "mojibake",
        1: "repeated_punctuation",
        2: "rejected_repeated_punctuation",
        3: "repeated_punctuation",
    }
    details = dict(found.rejects.select("row", "detail").iter_rows())
    assert details[0].startswith("1 places (at most 0)")
    assert "rejected" not in details[0]  # the prompt is the same on both sides, and so is what was found
    assert details[1].endswith("; also rejected_repeated_punctuation")
    assert details[2].startswith("50 signs in a row")
    facts = found.facts
    assert (facts["filters"]["repetition"]["failed"], facts["filters"]["repetition"]["alone"]) == (3, 3)
    assert facts["checks"]["repetition.punctuation"]["failed"] == 2
    assert facts["checks"]["rejected.repetition.punctuation"]["failed"] == 2
    assert facts["checks"]["rejected.repetition.punctuation"]["quantiles"]["max"] == 50
    shown = {example["reason"]: example["assistant"] for example in facts["examples"]}
    assert shown["rejected_repeated_punctuation"].startswith("Red.!!!")
    assert shown["mojibake"] == "Blue."
    assert facts["sources"]["s"]["dropped"]["rejected_repeated_punctuation"] == 1


def test_verdicts_and_ledger_name_the_side(tmp_path: Path) -> None:
    rows = [simple("Blue.", "Red " * 30, 1), simple("Blue.", "Red.", 2)]
    write_rows(tmp_path / "in.parquet", rows_frame(rows))
    step = build(FilterStep, parse_yaml("kind: filter\nlength: {max_assistant_tokens: 20}", "r.yaml"))
    out = tmp_path / "out"
    out.mkdir()
    line = apply("filter", tmp_path / "in.parquet", step.decide(tmp_path / "in.parquet", 0, RUN), out)
    assert (line.rows_out, line.dropped) == (1, {"rejected_assistant_too_long": 1})
    (kept,) = pl.read_parquet(out / "rows.parquet").iter_rows(named=True)
    values = {verdict["check"]: verdict["value"] for verdict in kept["verdicts"]}
    assert values["length.assistant_tokens"] == values["rejected.length.assistant_tokens"] == 1
    rejected = {check.split(".")[1] for check in values if check.startswith("rejected.")}
    named = {check.split(".")[0] for check in values if not check.startswith("rejected.")}
    on = {name for name, _ in step.chosen()}
    assert (named, rejected) == (on, on - set(WANTED))


def test_later_turns_of_a_side_belong_to_it(tmp_path: Path) -> None:
    """A battle of several turns: the user's second question is part of each side."""
    more = [Message("assistant", "Blue."), Message("user", " \n"), Message("assistant", "Yes.")]
    assert rejects(decided([pair(CLEAN[:1], CLEAN[1:], more)], tmp_path)) == {0: "rejected_empty_turn"}


def test_refusals_and_harm_may_be_rejected(tmp_path: Path) -> None:
    no, bomb = "I'm sorry, but I can't help with that.", "Here is how to make a bomb: ..."
    rows = [simple("Blue.", no, 1), simple(no, "Blue.", 2), simple("Blue.", bomb, 3), simple(bomb, "Blue.", 4)]
    assert rejects(decided(rows, tmp_path)) == {1: "refusal", 3: "harmful_terms"}
    asked = [simple(no, "Blue.", 1, "Tell me how to make a bomb.")]
    assert rejects(decided(asked, tmp_path, only(Harmful()))) == {0: "harmful_terms"}


def test_feedback_is_treated_like_the_pair_it_may_come_from(tmp_path: Path) -> None:
    no, bomb = "I'm sorry, but I can't help with that.", "Here is how to make a bomb: ..."
    pairs = [
        simple("Blue.", "Red.", 1),
        simple("Blue.", no, 2),
        simple(no, "Blue.", 3),
        simple("Blue.", bomb, 4),
        simple("Blue.", "Red." + "!" * 50, 5),
        simple("Blue.", "Red.", 6, "Tell me how to make a bomb."),
    ]
    good = decided([judged(row, True) for row in pairs], tmp_path)
    bad = decided([judged(row, False) for row in pairs], tmp_path)
    assert rejects(good) == {2: "refusal", 5: "harmful_terms"}
    assert rejects(bad) == {4: "repeated_punctuation", 5: "harmful_terms"}
    both = decided(pairs, tmp_path)
    assert set(rejects(both)) == set(rejects(good)) | set(rejects(bad))


def test_a_score_judges_what_is_wanted(tmp_path: Path) -> None:
    meta = {"toxicity": 0.9}
    pairs = [dataclasses.replace(simple("Blue.", "Red.", 1), meta=meta), simple("Blue.", "Red.", 2)]
    step = dataclasses.replace(FilterStep(kind="filter"), harmful=Harmful(score="toxicity"))
    assert rejects(decided(pairs, tmp_path, step)) == {0: "harmful_score"}
    rows = [judged(pairs[0], True), judged(pairs[0], False), judged(pairs[1], False)]
    found = decided(rows, tmp_path, step)
    assert rejects(found) == {0: "harmful_score"}  # what a bad reply scores is no reason not to learn that it is bad
    assert found.notes == {"without_harm_score": 1}


def test_private_finds_of_the_rejected_side_are_not_shown(tmp_path: Path) -> None:
    step = only(Pii())
    found = decided([simple("Ask her.", "Write to jane.doe@university.edu.")], tmp_path, step)
    assert rejects(found) == {0: "rejected_personal_data"}
    assert "jane" not in str(found.facts) + str(found.rejects.rows())


def test_a_filter_that_fails_on_one_side_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Length.measure

    def broken(self: Length, conversation: Conversation) -> Any:
        if conversation.messages[-1].content == "Red.":
            raise ValueError("odd")
        return real(self, conversation)

    monkeypatch.setattr(Length, "measure", broken)
    found = decided([simple("Blue.", "Red.", 1), simple("Blue.", "Seven.", 2)], tmp_path)
    assert found.notes == {"length_not_measured": 1}
    assert rejects(found) == {}


def test_conversations_of_chosen_replies_go_for_the_same_reasons(tmp_path: Path) -> None:
    """What the rejected side adds is the reasons of its own: nothing else changes, and it can be left out."""
    pairs = [
        simple(chosen, rejected, line, prompt)
        for line, (prompt, chosen, rejected) in enumerate(
            (prompt, chosen, rejected)
            for prompt in ("Name a colour.", "说一种颜色。", "cafÃ©?")
            for chosen in ("Blue.", "I can't help with that.", "```python\nx = 1")
            for rejected in ("Red.", "Red" + "。" * 30, "As an AI language model, I cannot say.")
        )
    ]
    talks = decided([SftRow(row.messages, row.origin, row.source) for row in pairs], tmp_path)
    whole = decided(pairs, tmp_path)
    own = {row: reason for row, reason in rejects(whole).items() if not reason.startswith("rejected_")}
    assert own == rejects(talks)
    assert len(rejects(whole)) > len(own) > 0
    alone = measure(FilterStep(kind="filter"), tmp_path / "in.parquet", RUN, rejected=False)
    assert alone.rejects.equals(talks.rejects)
    assert alone.verdicts.equals(talks.verdicts)


def test_workers_and_blocks_play_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [simple(f"Blue {n}.", "Red." + "!" * n, n) for n in range(40)]
    expected = decided(pairs, tmp_path)
    monkeypatch.setattr("posttrain.data.steps.BLOCK_ROWS", 16)
    split = decided(pairs, tmp_path)
    assert split.verdicts.equals(expected.verdicts)
    assert split.rejects.equals(expected.rejects)
    assert split.facts == expected.facts
    assert set(rejects(split).values()) == {"rejected_repeated_punctuation"}


def test_the_gates_of_a_selection_look_at_the_conversation_alone(tmp_path: Path) -> None:
    rule = "{method: few_but_good, gates: {min_user_tokens: 1, min_assistant_tokens: 3, min_sentences: 1}}"
    step = build(SelectStep, parse_yaml(f"kind: select\nrule: {rule}", "select.yaml"))
    pairs = [simple("Blue or green.", "Red.", 1), simple("Blue.", "Red or yellow.", 2, "Name a number.")]
    write_rows(tmp_path / "in.parquet", rows_frame(pairs))
    assert rejects(step.decide(tmp_path / "in.parquet", 0, RUN)) == {1: "assistant_too_short"}
