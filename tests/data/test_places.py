"""Which files a path stands for: layouts of data sets, splits, links, what stands beside rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from posttrain.data.places import locate
from posttrain.data.sources import DataFile
from posttrain.errors import DataError

ROW = '{"prompt": "a", "completion": "b"}\n'


def no_asset(name: str) -> None:
    return None


def folder(tmp_path: Path, *names: str, text: str = ROW) -> Path:
    for name in names:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "set"


def chosen(place: Path, split: str | None = None) -> list[str]:
    """The files below the folder that are read."""
    parts = locate(str(place), no_asset, split).parts
    return [part.path.relative_to(place).as_posix() for part in parts if isinstance(part, DataFile)]


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "train", [0]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "test.jsonl"], "train", [0, 1]),
        (["train.jsonl", "test.jsonl", "dev.jsonl"], "validation", [2]),
        (["train.jsonl", "test.jsonl", "dev.jsonl"], "dev", [2]),
        (["training.csv", "evaluation.csv"], "train", [0]),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], "train", [0, 1]),
        (["train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"], "test", [1]),
        (["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet", "x/train.jsonl"], "train", [0, 2]),
        (["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"], "train_sft", [0]),
        (["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"], "train", [0]),
        (["gsm8k_train.jsonl.gz", "gsm8k_test.jsonl.gz"], "test", [1]),
        (["en.train.json", "en.test.json"], "train", [0]),
        (["rows/train.parquet", "rows/held_out.parquet"], "train", [0]),
        (["a.jsonl", "b.jsonl"], "train", [0, 1]),
        (["train.jsonl", "more.jsonl"], "train", [0]),
    ],
)
def test_a_split_is_its_own_files(tmp_path: Path, names: list[str], split: str, read: list[int]) -> None:
    assert sorted(chosen(folder(tmp_path, *names), split)) == sorted(names[n] for n in read)


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "test.jsonl"],
        ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
        ["train/a.jsonl", "test/a.jsonl"],
        ["rows.jsonl", "test.jsonl"],
        ["data/math-00000-of-00001.parquet", "data/code-00000-of-00001.parquet"],
    ],
)
def test_splits_are_never_merged(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"splits(.|\n)*--split"):
        chosen(folder(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train.jsonl", "more.jsonl"],
        ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"],
        ["a/latest.jsonl", "b/contest.jsonl", "trainer.jsonl"],
    ],
)
def test_a_folder_of_one_split_needs_no_name(tmp_path: Path, names: list[str]) -> None:
    assert sorted(chosen(folder(tmp_path, *names))) == sorted(names)


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    place = folder(tmp_path, "train.jsonl", "test.jsonl")
    with pytest.raises(DataError, match="splits: train, test"):
        chosen(place, "validation")
    with pytest.raises(DataError, match="splits: none"):
        chosen(folder(tmp_path / "other", "a.jsonl"), "test")
    with pytest.raises(DataError, match="by its name this file is test"):
        locate(str(place / "test.jsonl"), no_asset, "train")


def test_a_dataset_dict_names_its_splits(tmp_path: Path) -> None:
    place = folder(tmp_path, "even/data-00000-of-00001.arrow", "odd/data-00000-of-00001.arrow")
    (place / "dataset_dict.json").write_text('{"splits": ["even", "odd"]}')
    assert chosen(place, "odd") == ["odd/data-00000-of-00001.arrow"]
    with pytest.raises(DataError, match="even, odd"):
        chosen(place)


def test_what_stands_beside_rows_is_told_and_left_out(tmp_path: Path) -> None:
    place = folder(tmp_path, "rows.json", "one.json")
    beside = ["dataset_info.json", "state.json", "command.json", "README.md", "about.json", "name.json"]
    for name in beside:
        (place / name).write_text(json.dumps({"licence": "x"} if name != "name.json" else "x", indent=1))
    (place / ".gitattributes").write_text("x")
    located = locate(str(place), no_asset)
    assert chosen(place) == ["one.json", "rows.json"]
    assert sorted(name.split(" ")[0] for name in located.ignored) == sorted(beside)


def test_objects_in_files_of_their_own_are_rows_where_nothing_else_is(tmp_path: Path) -> None:
    assert chosen(folder(tmp_path, "a.json", "b.json", text='{\n "question_text": "a"\n}')) == ["a.json", "b.json"]


def test_of_a_folder_that_a_step_wrote_the_rows_are_read(tmp_path: Path) -> None:
    place = folder(tmp_path, "rows.parquet", "rejects.parquet", "clusters.parquet", "ledger.json", "facts.json")
    assert chosen(place) == ["rows.parquet"]
    folder(tmp_path, "train.parquet", "validation.parquet")
    assert chosen(place, "validation") == ["validation.parquet"]
    with pytest.raises(DataError, match="splits"):
        chosen(place)


def test_links_are_followed_once_and_told(tmp_path: Path) -> None:
    place = folder(tmp_path, "a.jsonl")
    folder(tmp_path / "elsewhere", "b.jsonl")
    (place / "c.jsonl").symlink_to(tmp_path / "elsewhere" / "set" / "b.jsonl")
    (place / "more").symlink_to(tmp_path / "elsewhere" / "set")
    (place / "loop").symlink_to(place)
    assert chosen(place) == ["a.jsonl", "c.jsonl", "more/b.jsonl"]
    assert locate(str(place), no_asset).ignored == ("loop (a link to a folder that is read already)",)
    (place / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: a symbolic link to .*nowhere"):
        chosen(place)
    with pytest.raises(DataError, match="a symbolic link"):
        locate(str(place / "gone.jsonl"), no_asset)


def test_names_that_are_not_utf8_can_be_told(tmp_path: Path) -> None:
    place = folder(tmp_path, "a.jsonl")
    os.rename(place / "a.jsonl", os.fsencode(place) + b"/r\xffws.jsonl")
    (part,) = locate(str(place), no_asset).parts
    assert part.label.encode() == f"{place}/r\\udcffws.jsonl".encode()
    (part,) = locate(os.fsdecode(os.fsencode(place) + b"/r\xffws.jsonl"), no_asset).parts
    assert part.label.encode().endswith(b"r\\udcffws.jsonl")
