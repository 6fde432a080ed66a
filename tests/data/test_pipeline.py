"""The data stage from files to rows, ledger and result."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.artifacts import StageDir, read_json
from posttrain.data.config import DataSettings, Source
from posttrain.data.mix import MixStep
from posttrain.data.pipeline import prepare, row_at
from posttrain.data.rows import read_rows
from posttrain.data.sources import content_of
from posttrain.data.split import prompt_key
from posttrain.errors import ConfigError, DataError, RunError
from posttrain.types import SftRow


def no_asset(name: str) -> None:
    return None


def stage(*sources: Source | str | Path, held_out: float = 0.0) -> DataSettings:
    found = tuple(source if isinstance(source, Source) else Source(path=str(source)) for source in sources)
    return DataSettings(sources=found, held_out=held_out)


def pairs(numbers: Any) -> list[dict[str, str]]:
    return [{"question": f"question {n}", "answer": f"answer {n}"} for n in numbers]


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(
    config: DataSettings, folder: Path, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any], list[SftRow], list[SftRow]]:
    """(result, ledger, train rows, held-out rows)"""
    out = StageDir(folder)
    result = prepare(config, out, seed, no_asset)
    train, held_out = (read_rows(out.file("rows", f"{side}.parquet")) for side in ("train", "held_out"))
    return result, read_json(out.file("ledger.json")), train, held_out


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [*pairs(range(20)), "{broken", [1], {"question": "x", "answer": ""}, *pairs([3, 4]), {"text": "x"}]
    write(tmp_path / "a.jsonl", rows)
    result, ledger, train, held_out = run(stage(tmp_path / "a.jsonl", held_out=0.25), tmp_path / "out")

    assert result == {"train_rows": 15, "held_out_rows": 5, "sources": {"a": 20}}
    assert (len(train), len(held_out)) == (15, 5)
    assert [step["name"] for step in ledger["steps"]] == ["read", "format", "deduplicate", "split"]
    assert [(step["rows_in"], step["rows_out"]) for step in ledger["steps"]] == [(26, 24), (24, 22), (22, 20), (20, 20)]
    assert ledger["steps"][3]["notes"] == {"train": 15, "held_out": 5}
    assert (ledger["rows_in"], ledger["rows_kept"]) == (26, 20)
    assert ledger["dropped"] == {
        "broken_json": 1,
        "not_an_object": 1,
        "empty_assistant_turn": 1,
        "wrong_shape": 1,
        "exact_duplicate": 2,
    }
    file = str(tmp_path / "a.jsonl")
    assert [(r["line"], r["step"], r["reason"]) for r in ledger["rejects"] if r["file"] == file] == [
        (21, "read", "broken_json"),
        (22, "read", "not_an_object"),
        (23, "format", "empty_assistant_turn"),
        (24, "deduplicate", "exact_duplicate"),
        (25, "deduplicate", "exact_duplicate"),
        (26, "format", "wrong_shape"),
    ]
    assert ledger["rejects"][3]["detail"] == f"same as {file}:4"
    assert sorted(row.origin.line for row in train + held_out) == list(range(1, 21))
    assert all(row.source == "a" for row in train + held_out)


def test_rows_keep_the_order_they_were_read_in(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(range(50)))
    _, _, train, held_out = run(stage(tmp_path / "a.jsonl", held_out=20), tmp_path / "out")
    assert [row.origin.line for row in train] == sorted(row.origin.line for row in train)
    assert [row.origin.line for row in held_out] == sorted(row.origin.line for row in held_out)


@pytest.mark.slow
@settings(max_examples=8)
@given(prompts=st.lists(st.integers(0, 9), min_size=6, max_size=25), seed=st.integers(0, 3), order=st.randoms())
def test_the_split_depends_on_content_and_seed_only(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[int], seed: int, order: random.Random
) -> None:
    rows = [{"prompt": f"p{n}", "completion": f"c{i}"} for i, n in enumerate([*prompts, 10, 11])]
    folder = tmp_path_factory.mktemp("split")
    *_, train, held_out = run(stage(write(folder / "a.jsonl", rows), held_out=0.3), folder / "one", seed)
    order.shuffle(rows)
    *_, train_again, held_out_again = run(stage(write(folder / "b.jsonl", rows), held_out=0.3), folder / "two", seed)
    assert {row.id for row in held_out} == {row.id for row in held_out_again}
    assert {row.id for row in train} == {row.id for row in train_again}
    assert len(train) + len(held_out) == len(rows)
    assert {prompt_key(row.messages) for row in train}.isdisjoint(prompt_key(row.messages) for row in held_out)
    assert held_out


def test_the_same_conversation_in_two_formats_is_one_row(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs([1]))
    write(
        tmp_path / "b.jsonl",
        [{"messages": [{"role": "user", "content": "question 1"}, {"role": "assistant", "content": "answer 1"}]}],
    )
    result, ledger, train, _ = run(stage(tmp_path / "a.jsonl", tmp_path / "b.jsonl"), tmp_path / "out")
    assert result["sources"] == {"a": 1, "b": 0}
    assert ledger["dropped"] == {"exact_duplicate": 1}
    assert [row.source for row in train] == ["a"]


def test_a_file_read_twice_is_a_file_of_duplicates(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", pairs(range(3))))
    result, ledger, *_ = run(stage(path, Source(path=path, name="again")), tmp_path / "out")
    assert result["sources"] == {"a": 3, "again": 0}
    assert ledger["dropped"] == {"exact_duplicate": 3}


def test_sources_names_formats_and_limits(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*pairs(range(3)), "{", *pairs(range(3, 9))])
    kto = {"prompt": "x", "completion": "y", "label": False}
    write(tmp_path / "b.jsonl", [kto])
    config = stage(
        Source(path=str(tmp_path / "a.jsonl"), name="maths", max_rows=5),
        Source(path=str(tmp_path / "b.jsonl"), format="prompt_completion"),
    )
    result, ledger, train, _ = run(config, tmp_path / "out")
    assert result["sources"] == {"maths": 5, "b": 1}
    assert ledger["rows_in"] == 7  # what lies behind the limit is not read
    assert train[-1].meta == {"label": False}


def test_a_folder_with_a_format_for_each_file(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "b.jsonl", pairs([1, 2]))
    write(tmp_path / "rows" / "a.json", [{"instruction": "x", "output": "y"}])
    write(tmp_path / "rows" / "c.jsonl", pairs([7, 8]))
    write(tmp_path / "rows" / "README.md", ["about"])
    config = stage(Source(path=str(tmp_path / "rows"), max_rows=3))
    result, ledger, train, _ = run(config, tmp_path / "out")
    assert result["sources"] == {"rows": 3}
    assert [Path(row.origin.file).name for row in train] == ["a.json", "b.jsonl", "b.jsonl"]
    assert ledger["steps"][0]["notes"] == {
        f"ignored file {tmp_path}/rows/README.md": 1,
        f"not read (max_rows) {tmp_path}/rows/c.jsonl": 1,
    }


def test_a_file_that_no_format_fits_costs_its_own_rows(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "a.jsonl", [{"foo": 1}, {"foo": 2}])
    write(tmp_path / "rows" / "b.jsonl", pairs(range(5)))
    result, ledger, _, _ = run(stage(Source(path=str(tmp_path / "rows"))), tmp_path / "out")
    assert result["sources"] == {"rows": 5}
    assert ledger["steps"][1]["dropped"] == {"no_format": 2}
    assert {Path(reject["file"]).name for reject in ledger["rejects"]} == {"a.jsonl"}
    assert "keys found: foo" in ledger["rejects"][0]["detail"]
    with pytest.raises(DataError, match="no row format fits"):
        run(stage(Source(path=str(tmp_path / "rows" / "a.jsonl"))), tmp_path / "other")


def test_an_asset_is_resolved_and_named_in_the_origin(tmp_path: Path) -> None:
    path = write(tmp_path / "cache" / "file.json", pairs([1, 2]))
    config = stage(Source(path="maths_demo"))
    prepare(config, StageDir(tmp_path / "out"), 0, {"maths_demo": path}.get)
    (first, _) = read_rows(tmp_path / "out" / "rows" / "train.parquet")
    assert str(first.origin) == "maths_demo:1"
    assert first.source == "maths_demo"


def test_progress_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(range(5)))
    told: list[tuple[str, int, int]] = []
    prepare(stage(path), StageDir(tmp_path / "out"), 0, no_asset, lambda *args: told.append(args))
    assert told[0] == (str(path), path.stat().st_size, path.stat().st_size)


def test_broken_bytes_reach_the_ledger_spelt_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"messages": [{"caf\xe9": 1}]}\n"caf\xe9"\n{"messages": [{"role": "caf\xe9"}]}\n{"messages\xe9\n'
        b'{"messages": [{"role": "user", "content": "caf\xe9"}, {"role": "assistant", "content": "x"}]}\n'
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "caf\xe9": 1}\n'
    )
    _, ledger, train, _ = run(stage(tmp_path / "a.jsonl"), tmp_path / "out")
    assert [(r["line"], r["reason"]) for r in ledger["rejects"]] == [
        (1, "unknown_role"),
        (2, "not_an_object"),
        (3, "unknown_role"),
        (4, "broken_json"),
        (5, "invalid_unicode"),
    ]
    assert "caf\\udce9" in ledger["rejects"][1]["detail"]
    assert [row.origin.line for row in train] == [6]


# ---- errors --------------------------------------------------------------------------------------------------------


def test_when_all_rows_are_dropped_the_reasons_are_shown(tmp_path: Path) -> None:
    rows = ["{", "{", {"question": "", "answer": "x"}, {"question": "x", "answer": ""}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        run(stage(path), tmp_path / "out")
    text = str(caught.value)
    assert "all 4 rows were dropped (broken_json 2, empty_prompt 1, empty_assistant_turn 1)" in text
    assert f"{path}:1: broken_json: " in text
    assert read_json(tmp_path / "out" / "ledger.json")["rows_kept"] == 0
    assert not (tmp_path / "out" / "rows").exists()


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" [ ] ")
    with pytest.raises(DataError, match=r"a\.json: no rows in it"):
        run(stage(tmp_path / "a.json"), tmp_path / "out")
    (tmp_path / "a.csv").write_text("question,answer\n")
    with pytest.raises(DataError, match=r"a\.csv: no rows in it"):
        run(stage(tmp_path / "a.csv"), tmp_path / "out")


def test_a_misspelt_format_is_told_before_a_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        run(stage(tmp_path / "missing.jsonl", Source(path="b", format="sharegtp")), tmp_path / "out")


def test_two_sources_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two sources are called 'train'"):
        run(stage("a/train.jsonl", "b/train.json.gz"), tmp_path / "out")


def test_held_out_larger_than_the_data_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(range(5)))
    with pytest.raises(DataError, match="can't hold out 5 of 5 rows"):
        run(stage(path, held_out=5), tmp_path / "out")


def test_a_place_that_can_not_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="out"):
        run(stage(write(tmp_path / "a.jsonl", pairs([1]))), tmp_path / "out")


# ---- one row -------------------------------------------------------------------------------------------------------


def test_a_row_by_its_number_counts_bad_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["{", *pairs([1]), [2], {"question": "", "answer": "x"}, *pairs([4, 4]), "{"])
    source = Source(path=str(path))
    reasons = {0: "broken_json", 2: "not_an_object", 3: "empty_prompt", 6: "broken_json"}
    for index in range(7):
        if index in reasons:
            with pytest.raises(DataError, match=rf"a\.jsonl:{index + 1}: row {index} can't be used: {reasons[index]}"):
                row_at(source, index, no_asset)
        else:
            assert row_at(source, index, no_asset).origin.line == index + 1
    with pytest.raises(DataError, match="no row 7: there are 7"):
        row_at(source, 7, no_asset)


# ---- identity ------------------------------------------------------------------------------------------------------


def identity(config: DataSettings) -> list[str]:
    return [content_of(source.parts(no_asset)) for source in config.sources]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "rows" / "a.jsonl", pairs([1]))
    config = stage(tmp_path / "rows")
    one = identity(config)
    assert identity(config) == one
    write(tmp_path / "rows" / "README.md", ["no row"])
    assert identity(config) == one
    write(path, pairs([2]))
    two = identity(config)
    assert two != one
    write(tmp_path / "rows" / "b.jsonl", pairs([1]))
    assert identity(config) not in (one, two)


def test_the_digest_of_a_hub_set_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage(Source(path="org/rows"))
    digests = []
    for commit in ("one", "two", "one"):
        monkeypatch.setattr("posttrain.data.sources.hub_revision", lambda part, commit=commit: f"{part.name} {commit}")
        digests.append(identity(config))
    assert digests[0] == digests[2] != digests[1]


def test_the_digest_of_an_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", pairs([1]))

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("posttrain.data.sources.file_digest", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl: can't read the file: Permission denied"):
        identity(stage(path))


def test_the_digest_of_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        identity(stage(tmp_path / "a.jsonl"))


def test_a_mix_is_made_of_the_rows_that_are_not_held_out(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(range(40)))
    write(tmp_path / "b.jsonl", pairs(range(100, 120)))
    plain = stage(tmp_path / "a.jsonl", tmp_path / "b.jsonl", held_out=0.25)
    _, _, every, same = run(plain, tmp_path / "plain")
    mixed = replace(plain, mix=MixStep(kind="mix", counts={"a": 7}))
    result, ledger, train, held_out = run(mixed, tmp_path / "mixed")
    assert [row.id for row in held_out] == [row.id for row in same]
    assert {row.id for row in train} < {row.id for row in every}
    held_b = sum(row.source == "b" for row in held_out)
    assert (result["train_rows"], result["held_out_rows"]) == (27 - held_b, 15)
    assert result["sources"] == {"a": 7 + 15 - held_b, "b": 20}
    assert [(s["name"], s["rows_in"], s["rows_out"]) for s in ledger["steps"]][-2:] == [
        ("split", 60, 60),
        ("mix", 60, 42 - held_b),
    ]
    assert ledger["dropped"] == {"mix_quota": 18 + held_b}
    with pytest.raises(DataError, match="leaves no row to train on"):
        run(replace(plain, mix=MixStep(kind="mix", leave_out=("a", "b"))), tmp_path / "none")
