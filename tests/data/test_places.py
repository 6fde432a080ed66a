"""Which files a path stands for: layouts of data sets, splits, links, what stands beside rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from posttrain.data.places import DataFile, locate
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
    with pytest.raises(DataError, match="this file is test by its name"):
        locate(str(place / "test.jsonl"), no_asset, "train")


def test_a_dataset_dict_names_its_splits(tmp_path: Path) -> None:
    place = folder(tmp_path, "even/data-00000-of-00001.arrow", "odd/data-00000-of-00001.arrow")
    (place / "dataset_dict.json").write_text('{"splits": ["even", "odd"]}')
    assert chosen(place, "odd") == ["odd/data-00000-of-00001.arrow"]
    with pytest.raises(DataError, match=r"even: .*, odd: "):
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


# ---- configurations ------------------------------------------------------------------------------------------------

CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/a-*
  - {split: test, path: [main/b-0.jsonl]}
- config_name: other
  data_files: "**/o-*.jsonl"
---
# A set
"""
CLONE = ("main/a-0.jsonl", "main/a-1.jsonl", "main/b-0.jsonl", "deep/er/o-0.jsonl", "scratch.jsonl")


def clone(tmp_path: Path, card: str) -> Path:
    place = folder(tmp_path, *CLONE)
    (place / "README.md").write_text(card)
    return place


@pytest.mark.parametrize(
    ("card", "config", "split", "read"),
    [
        (CARD, "main", "train", [0, 1]),
        (CARD, "main", "test", [2]),
        (CARD, "other", None, [3]),
        (CARD.replace("name: other", "name: other\n  default: true"), None, None, [3]),
        (CARD.replace("name: other", "name: default"), None, "train", [3]),
        (CARD.replace("main", "gone"), None, None, [3]),
        ("---\nlicense: mit\n---\n", None, None, [0, 1, 2, 3, 4]),
        ("---\nconfigs: [{data_files: 5}, 5]\n---\n", None, None, [0, 1, 2, 3, 4]),
        ("---\nconfigs: [\n---\n", None, None, [0, 1, 2, 3, 4]),
        ("# no card", "main", None, [0, 1, 2]),
    ],
)
def test_a_card_says_which_files_are_a_configuration(
    tmp_path: Path, card: str, config: str | None, split: str | None, read: list[int]
) -> None:
    place = clone(tmp_path, card)
    found = locate(str(place), no_asset, split, config=config)
    assert sorted(part.label for part in found.parts) == sorted(f"{place}/{CLONE[number]}" for number in read)
    assert len(found.ignored) == len(CLONE) + 1 - len(read)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, r"the folder holds configurations \(main, other\).*\n.*--config main"),
        ("mian", r"no configuration 'mian' here \(did you mean 'main'\?\); configurations: main, other"),
    ],
)
def test_a_configuration_must_be_told(tmp_path: Path, config: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        locate(str(clone(tmp_path, CARD)), no_asset, config=config)
