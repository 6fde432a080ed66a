"""Benchmarks of every layout, and what is wrong with those that can't be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posttrain.data.decontaminate.benchmarks import (
    KNOWN,
    LAYOUTS,
    Benchmark,
    load,
    size_note,
    wordless,
)
from posttrain.data.places import HubSet
from posttrain.data.sources import content_of
from posttrain.errors import DataError


def none(name: str) -> None:
    return None


def written(folder: Path, *records: Any) -> str:
    path = folder / "bench.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    return str(path)


def turns(path: str, name: str = "own", **keys: Any) -> list[tuple[str, ...]]:
    return [prompt.turns for prompt in load(Benchmark(name=name, path=path, **keys), none)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question_id": 81, "turns": ["One?", "Two?"]}, ("One?", "Two?")),
        ({"uid": "a", "turns": [{"content": "One?"}]}, ("One?",)),
        ({"prompt": "One?"}, ("One?",)),
        ({"prompt": ["One?", "Two?"], "reference": []}, ("One?", "Two?")),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "One?"}]}, ("One?",)),
        ({"instruction": "Do.", "input": "This.", "output": "x"}, ("Do.\nThis.",)),
        ({"instruction": "Do.", "input": "", "prompt": "rendered"}, ("Do.",)),
        ({"instruction": "Do.", "instances": [{"input": "This.", "output": "x"}]}, ("Do.\nThis.",)),
        ({"question": "One?", "answer": "1"}, ("One?",)),
        ({"passage": "A text.", "question": "One?"}, ("A text.\nOne?",)),
        ({"problem": "One?", "solution": "1"}, ("One?",)),
        (
            {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]},
            ("One?",),
        ),
        ({"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]}, ("One?",)),
        ({"input": "One?", "output_1": "a", "label": 1}, ("One?",)),
        ({"text": "One?"}, ("One?",)),
        ({"turns": '["One?", "Two?"]'}, ("One?", "Two?")),
    ],
)
def test_layouts(tmp_path: Path, record: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert turns(written(tmp_path, record)) == [expected]


def test_ids_are_the_records_own_or_their_number(tmp_path: Path) -> None:
    path = written(tmp_path, {"question_id": 81, "prompt": "a"}, {"prompt": "b"}, {"key": 5, "prompt": "c"})
    assert [p.id for p in load(Benchmark(name="own", path=path), none)] == ["81", "#2", "5"]


def test_text_files_have_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffOne?\n\n  二？ \r\nThree", encoding="utf-8")
    assert turns(str(tmp_path / "prompts.txt")) == [("One?",), ("二？",), ("Three",)]
    (tmp_path / "prompts.txt.gz").write_bytes(gzip.compress(b"One?\nTwo?"))
    assert turns(str(tmp_path / "prompts.txt.gz")) == [("One?",), ("Two?",)]


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"from {name}")
    assert turns(str(tmp_path)) == [("from a.txt",), ("from b.txt",)]
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"holds \.txt files and others \(notes\.md\)"):
        turns(str(tmp_path))


def test_csv_parquet_and_json(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,prompt,type\n1,"How, then?",safe\n', encoding="utf-8")
    assert turns(str(tmp_path / "x.csv")) == [("How, then?",)]
    pl.DataFrame({"prompt": [["One?", "Two?"]], "category": ["c"]}).write_parquet(tmp_path / "x.parquet")
    assert turns(str(tmp_path / "x.parquet"), name="mt_bench") == [("One?", "Two?")]
    (tmp_path / "x.json").write_text('[{"instruction": "One?"}]')
    assert turns(str(tmp_path / "x.json"), name="alpaca_eval") == [("One?",)]


def test_named_columns_come_before_every_layout(tmp_path: Path) -> None:
    path = written(tmp_path, {"turns": ["x"], "goal": "One?", "hint": "Two."})
    assert turns(path, columns=("goal",)) == [("One?",)]
    assert turns(path, columns=("goal", "hint")) == [("One?\nTwo.",)]
    with pytest.raises(
        DataError, match=r"bench\.jsonl:1: no prompt can be read here: no column 'gaol'; columns: turns"
    ):
        turns(path, columns=("gaol",))


def test_blank_prompts_and_turns_are_left_out(tmp_path: Path) -> None:
    assert turns(written(tmp_path, {"prompt": " "}, {"turns": ["", "One?"]})) == [("One?",)]
    with pytest.raises(DataError, match="no prompts in it"):
        turns(written(tmp_path, {"prompt": " "}))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "x"}, "not a known layout"),
        ({"prompt": 3}, "expected a list"),
        ({"turns": [3]}, "'turns' holds a number, expected text"),
        ({"instruction": None, "input": 3}, "'input' is a number, expected text"),
    ],
)
def test_a_record_without_a_prompt_is_told(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        turns(written(tmp_path, {"prompt": "fine"}, record))
    assert "bench.jsonl:2" in str(caught.value)
    assert "columns" in str(caught.value)


def test_a_known_benchmark_is_read_by_its_own_layout_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not the layout of mt_bench \(turns, prompt\); keys: question"):
        turns(written(tmp_path, {"question": "One?"}), name="mt_bench")


def test_a_broken_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_text('{"prompt": "One?"}\n{"prompt": ')
    with pytest.raises(
        DataError, match=r"bench\.jsonl:2: a benchmark is read whole, and this is not a record: broken_json"
    ):
        turns(str(path))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt:1: the text is not UTF-8"):
        turns(str(tmp_path / "latin.txt"))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"One?\n" * 1000)[:-9])
    with pytest.raises(DataError, match="the compressed file is cut off"):
        turns(str(tmp_path / "cut.txt.gz"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        turns(str(tmp_path / "none.jsonl"))


def test_a_hub_name_is_read_by_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.data import sources
    from posttrain.data.sources import Record
    from posttrain.types import Origin

    asked = []

    def fake(part: HubSet) -> Any:
        asked.append(part)
        yield Record(Origin(part.label, 1), {"prompt": "One?"})

    monkeypatch.setattr(sources, "read", fake)
    assert turns("org/bench", split="train") == [("One?",)]
    assert asked == [HubSet("org/bench", "train")]


def test_digests_follow_the_content_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = written(tmp_path, {"prompt": "a"}), written(tmp_path / "other", {"prompt": "a"})
    digests = [content_of(Benchmark(name="x", path=path).parts(none)) for path in (first, second)]
    assert digests[0] == digests[1]
    written(tmp_path / "other", {"prompt": "b"})
    assert content_of(Benchmark(name="x", path=second).parts(none)) != digests[0]


def test_the_size_of_a_known_benchmark_is_remarked() -> None:
    assert size_note("mt_bench", 80) is None
    assert size_note("own", 3) is None
    assert size_note("arena_hard", 10) == "10 prompts; the published arena_hard has 500 or 750"


def test_known_benchmarks_name_known_layouts() -> None:
    assert all(layout in LAYOUTS for layouts, _ in KNOWN.values() for layout in layouts)


def test_prompts_without_words_are_counted(tmp_path: Path) -> None:
    prompts = load(Benchmark(name="own", path=written(tmp_path, {"prompt": "🙂🙂"}, {"prompt": "hi"})), none)
    assert wordless(prompts) == 1


FILES = {
    "mt_bench": ("fastchat/fastchat__llm_judge__data__mt_bench__question.jsonl", 80, 160),
    "vicuna": ("fastchat/fastchat__llm_judge__data__vicuna_bench__question.jsonl", 80, 80),
    "alpaca_eval": ("alpaca-eval/results__text_davinci_003__model_outputs.json", 805, 805),
    "arena_hard": ("arena-hard/data__arena-hard-v0.1__question.jsonl", 500, 500),
    "ifeval": ("ifeval/data__input_data.jsonl", 541, 541),
    "gsm8k": ("gsm8k/grade_school_math__data__test.jsonl", 1319, 1319),
    "mt_bench_zh": ("mt-bench-zh-huozi/data__mt-bench-zh__question.jsonl", 80, 160),
    "xstest": ("evaluation/xstest/xstest_prompts.csv", 450, 450),
    "llmbar": ("evaluation/llmbar/dataset_Natural.json", 100, 100),
    "belle": ("belle/eval__eval_set.json", 1000, 1000),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", FILES)
def test_real_benchmarks_are_read_whole(shared_data: Path, name: str) -> None:
    path, prompts, count = FILES[name]
    found = load(Benchmark(name=name, path=str(shared_data / path)), none)
    assert len(found) == prompts
    assert sum(len(prompt.turns) for prompt in found) == count
    assert len({prompt.id for prompt in found}) == prompts
    assert wordless(found) == 0
    assert size_note(name, prompts) is None
