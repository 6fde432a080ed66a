"""Raw records of files, folders, assets and hub data sets."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import json
import lzma
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import zstandard

from posttrain.artifacts import Reject
from posttrain.data.places import DataFile, HubSet, locate
from posttrain.data.sniff import ARROW_STREAM
from posttrain.data.sources import Record, hub_revision, read, read_raw
from posttrain.errors import DataError

ROWS = [{"question": "q1", "answer": "a1"}, {"answer": "a2", "question": "q2"}]


def no_asset(name: str) -> None:
    return None


def gzipped(data: bytes) -> bytes:
    """Without the time of day, which would be part of a test's name: every process must collect the same tests."""
    return gzip.compress(data, mtime=0)


def write(path: Path, data: str | bytes) -> DataFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return DataFile(path.name, path)


def records(file: DataFile) -> list[tuple[int, Any]]:
    """(line, value or reason) of everything in a file."""
    return [(r.origin.line, r.value if isinstance(r, Record) else r.reason) for r in read(file)]


def values(file: DataFile) -> list[Any]:
    found = list(read(file))
    assert all(isinstance(r, Record) for r in found), found
    return [r.value for r in found if isinstance(r, Record)]


def error_of(file: DataFile) -> str:
    with pytest.raises(DataError) as caught:
        list(read(file))
    assert file.label in str(caught.value)
    assert "fix:" in str(caught.value)
    return str(caught.value)


# ---- kinds ---------------------------------------------------------------------------------------------------------

LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", LINES),
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.rstrip()),
        ("a.ndjson", LINES.replace("\n", "\r\n")),
        ("a.jsonl", "\n\r\n" + LINES.replace("\n", "\n  \n")),
        ("a.jsonl", json.dumps(ROWS)),
        ("A.JSONL", "\ufeff" + LINES),
        ("a.json", "\ufeff" + json.dumps(ROWS)),
        ("a.jsonl.gz", gzipped(LINES.encode())),
        ("a.jsonl.bz2", bz2.compress(LINES.encode())),
        ("a.jsonl.xz", lzma.compress(LINES.encode())),
        ("a.jsonl.zst", zstandard.compress(LINES.encode())),
        ("a.json.gz", gzipped(json.dumps(ROWS).encode())),
        ("a.jsonl", gzipped(LINES.encode())),
        ("a.csv", "question,answer\nq1,a1\nq2,a2\n"),
        ("a.csv", "\ufeffquestion,answer\r\nq1,a1\r\n\r\nq2,a2"),
        ("a.csv.gz", gzipped(b"question,answer\nq1,a1\nq2,a2\n")),
        ("a.csv", '"question","answer"\n"q1","a1"\n"q2","a2"\n'),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, data: str | bytes) -> None:
    assert values(write(tmp_path / name, data)) == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "a.json"])
def test_parquet_by_content(tmp_path: Path, name: str) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / name)
    file = DataFile(name, tmp_path / name)
    assert records(file) == [(1, ROWS[0]), (2, ROWS[1])]


def test_parquet_fields_that_are_null_in_a_struct_are_left_out(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": None, "tool_calls": None}, {"role": "tool", "content": "x", "tool_calls": []}]
    schema = {
        "messages": pl.List(pl.Struct({"role": pl.String, "content": pl.String, "tool_calls": pl.List(pl.String)}))
    }
    pl.DataFrame({"messages": [turns, None]}, schema=schema).write_parquet(tmp_path / "a.parquet")
    assert values(DataFile("a.parquet", tmp_path / "a.parquet")) == [
        {"messages": [{"role": "user"}, {"role": "tool", "content": "x", "tool_calls": []}]},
        {"messages": None},
    ]


def test_parquet_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.tabular._TABLE_ROWS", 10)
    pl.DataFrame({"n": range(25)}).write_parquet(tmp_path / "a.parquet")
    ticks: list[tuple[int, int]] = []
    found = list(read(DataFile("a.parquet", tmp_path / "a.parquet"), lambda done, total: ticks.append((done, total))))
    assert [(r.origin.line, r.value["n"]) for r in found if isinstance(r, Record)] == [(n + 1, n) for n in range(25)]
    assert ticks == [(10, 25), (20, 25), (25, 25)]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.json", "values.json", "a.csv"])
def test_what_is_passed_over_is_as_if_it_had_been_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.data.tabular._TABLE_ROWS", 4)
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(25)]
    frame, path = pl.DataFrame(rows), tmp_path / name
    match name:
        case "a.parquet":
            frame.write_parquet(path, row_group_size=9)
        case "a.arrow":
            frame.write_ipc(path)
        case "stream.arrow":
            path.write_bytes(b"".join(_one_stream(frame, "uncompressed")))
        case "a.json":
            path.write_text(json.dumps(rows, indent=1))
        case "values.json":
            path.write_text("\n".join(json.dumps(row, indent=1) for row in rows))
        case _:
            frame.write_csv(path)
    file = DataFile(name, path)
    whole = list(read_raw(file))
    assert len(whole) == 25
    for skip in (0, 1, 9, 10, 11, 24, 25, 99):
        assert list(read_raw(file, skip=skip)) == whole[skip:]


def test_lines_that_are_passed_over_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl.gz", gzipped(("\n" + LINES + "\n" + LINES).encode()))
    whole = list(read_raw(file))
    for skip in range(8):
        assert list(read_raw(file, skip=skip)) == [line for line in whole if isinstance(line, tuple) and line[0] > skip]


# ---- text that is hard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\ufeff", "\U0001f600"]
)
def test_separators_inside_strings_cut_no_row(tmp_path: Path, character: str) -> None:
    row = {"question": f"a{character}b", "answer": character}
    text = json.dumps(row, ensure_ascii=False)
    assert values(write(tmp_path / "a.jsonl", f"{text}\n{text}\n")) == [row, row]
    assert values(write(tmp_path / "a.json", f"[{text},\n{text}]")) == [row, row]
    assert values(write(tmp_path / "a.csv", f"question,answer\na{character}b,{character}\n")) == [row]


def test_lone_surrogates_nan_and_bytes_that_are_not_utf8_are_delivered(tmp_path: Path) -> None:
    data = b'{"a": "\\ud800"}\n{"a": NaN, "b": -Infinity}\n{"a": "caf\xe9"}\n{"a": "ok"}\n'
    found = values(write(tmp_path / "a.jsonl", data))
    assert [found[0]["a"], str(found[1]["a"]), found[2]["a"], found[3]["a"]] == ["\ud800", "nan", "caf\udce9", "ok"]


# ---- broken rows ---------------------------------------------------------------------------------------------------


def test_a_broken_line_costs_only_itself(tmp_path: Path) -> None:
    lines = [
        '{"a": 1}',
        '{"a": ',
        "",
        "[1, 2]",
        '"text"',
        "null",
        "3",
        '{"a": 9' * 3,
        '{"a": 2}',
        '{"a": ' + "[" * 99_999,
    ]
    assert records(write(tmp_path / "a.jsonl", "\n".join(lines))) == [
        (1, {"a": 1}),
        (2, "broken_json"),
        (4, "not_an_object"),
        (5, "not_an_object"),
        (6, "not_an_object"),
        (7, "not_an_object"),
        (8, "broken_json"),
        (9, {"a": 2}),
        (10, "broken_json"),
    ]


def test_the_detail_shows_the_place(tmp_path: Path) -> None:
    (bad,) = read(write(tmp_path / "a.jsonl", '{"question": "x" "answer": "y"}'))
    assert isinstance(bad, Reject)
    assert "delimiter" in bad.detail
    assert '"answer"' in bad.detail


def test_array_rows_are_named_by_line_or_by_number(tmp_path: Path) -> None:
    indented = '[\n  {\n    "a": 1\n  },\n  7,\n  {"a":},\n  {"a": 2}\n]'
    assert records(write(tmp_path / "a.json", indented)) == [
        (2, {"a": 1}),
        (5, "not_an_object"),
        (6, "broken_json"),
        (7, {"a": 2}),
    ]
    compact = '[{"a": 1}, 7, {"a":}, {"a": 2}'
    assert records(write(tmp_path / "b.json", compact)) == [
        (1, {"a": 1}),
        (2, "not_an_object"),
        (3, "broken_json"),
        (4, {"a": 2}),
        (5, "broken_json"),
    ]


def test_csv_rows_that_do_not_fit_cost_only_themselves(tmp_path: Path) -> None:
    text = 'q,a\n1,2\n1\n1,2,3\n"x"y,2\n"two\nlines, one ""cell""",4\n5,6\n"never closed,7\n8,9\n'
    assert records(write(tmp_path / "a.csv", text)) == [
        (1, {"q": "1", "a": "2"}),
        (2, "broken_csv"),
        (3, "broken_csv"),
        (4, "broken_csv"),
        (5, {"q": 'two\nlines, one "cell"', "a": "4"}),
        (6, {"q": "5", "a": "6"}),
        (7, "broken_csv"),
    ]


def test_csv_cells_may_be_long(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.csv", "q,a\n1," + "x" * 300_000)) == [{"q": "1", "a": "x" * 300_000}]


def test_a_cut_compressed_file_keeps_its_whole_lines(tmp_path: Path) -> None:
    lines = b"".join(b'{"n": %d, "x": "%d"}\n' % (n, n**9) for n in range(1000))
    found = list(read(write(tmp_path / "a.jsonl.gz", gzip.compress(lines)[:-200])))
    rows = [r.value["n"] for r in found if isinstance(r, Record)]
    assert rows == list(range(len(rows)))
    assert len(rows) > 100
    assert isinstance(found[-1], Reject)
    assert found[-1].reason == "damaged_file"
    assert len(found) - len(rows) <= 2  # the cut line, and the damage itself


# ---- files that can't be read as a whole ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", "", "empty"),
        ("a.jsonl", " \n\r\n\ufeff"[:3], "empty"),
        ("a.jsonl.gz", gzipped(b""), "empty"),
        ("a.jsonl.gz", gzipped(b"x" * 50)[:11], "cut off"),
        ("a.json", "hello", "not JSON"),
        ("a.train", "hello", "not a data file"),
        ("a.txt", LINES, "rename it to .jsonl"),
        ("a.gz", gzipped(LINES.encode()), "not a data file"),
        ("a.jsonl", b"PK\x03\x04....", "zip"),
        ("a.parquet", "PAR", "not a Parquet file"),
        ("a.parquet", b"PAR1 cut off", "Parquet"),
        ("a.parquet.gz", gzipped(b"PAR1...."), "decompress"),
        ("a.csv", "q,q\n1,2\n", "twice"),
    ],
)
def test_one_clear_error_for_a_file_that_is_no_data(tmp_path: Path, name: str, data: str | bytes, words: str) -> None:
    assert words in error_of(write(tmp_path / name, data))


def test_a_file_without_permission_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", LINES)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl: can't read the file: Permission denied"):
        list(read(file))


# ---- locating ------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/x.json.gz", "a/y.parquet", "README.md", "c.txt", ".hidden.jsonl", ".git/z.json"):
        write(tmp_path / "rows" / name, "{}")
    located = locate(f"{tmp_path}/rows/", no_asset)
    assert [p.label for p in located.parts] == [
        f"{tmp_path}/rows/{n}" for n in ("a/x.json.gz", "a/y.parquet", "b.jsonl")
    ]
    assert located.ignored == ("README.md", "c.txt")


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "notes.txt", "x")
    with pytest.raises(DataError, match=r"no data file \(found notes\.txt\)"):
        locate(str(tmp_path / "rows"), no_asset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file"):
        locate(str(tmp_path / "empty"), no_asset)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"did you mean 'train\.jsonl'"):
        locate(str(tmp_path / "trian.jsonl"), no_asset)
    with pytest.raises(DataError, match="no such file"):
        locate("data/rows.jsonl", no_asset)


def test_a_missing_file_in_a_folder_that_is_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("data/rows", no_asset).parts == (HubSet("data/rows", "train"),)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="data/rows: no such file"):
        locate("data/rows", no_asset)


def test_a_name_is_resolved_as_an_asset_and_keeps_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "deep" / "alpaca.json", json.dumps(ROWS))
    (part,) = locate("alpaca_demo", {"alpaca_demo": file.path}.get).parts
    assert part == DataFile("alpaca_demo", file.path)
    assert [str(r.origin) for r in read(part)] == ["alpaca_demo:1", "alpaca_demo:2"]


def test_a_local_path_wins_over_an_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "demo.json", "[]")
    assert locate("demo.json", lambda name: Path("/elsewhere")).parts == (DataFile("demo.json", Path("demo.json")),)


# ---- the hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for the datasets library and the hub client that note how they are called."""
    calls: list[Any] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> list[Any]:
        calls.append((name, config, options))
        if name != "org/rows":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nmore text")
        return [*ROWS, "not a row"]

    class HfApi:
        def dataset_info(self, name: str) -> Any:
            if name == "org/offline":
                raise ConnectionError("no network")
            return type("Info", (), {"sha": f"commit of {name}"})

    datasets, client = ModuleType("datasets"), ModuleType("huggingface_hub")
    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    client.HfApi = HfApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    return calls


def test_a_hub_name_is_streamed_at_its_revision(hub: list[Any]) -> None:
    (part,) = locate("org/rows", no_asset, "train_sft", config="main").parts
    assert part == HubSet("org/rows", "train_sft", "main")
    found = list(read(part))
    assert [str(r.origin) for r in found] == [f"org/rows/main[train_sft]:{n}" for n in (1, 2, 3)]
    assert [r.value for r in found if isinstance(r, Record)] == ROWS
    assert hub == [("org/rows", "main", {"split": "train_sft", "streaming": True, "revision": "commit of org/rows"})]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "words"), [("org/none", "doesn't exist on the Hub$"), ("org/offline", "no network$")])
def test_a_hub_set_that_can_not_be_read_is_one_error(name: str, words: str) -> None:
    with pytest.raises(DataError, match="(?m)" + words):
        list(read(HubSet(name, "train")))


@pytest.mark.usefixtures("hub")
def test_no_network_for_the_revision_is_one_error() -> None:
    assert hub_revision(HubSet("org/rows", "train")) == "commit of org/rows"
    with pytest.raises(DataError, match="network"):
        hub_revision(HubSet("org/offline", "train"))


def test_without_the_datasets_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'posttrain\[hub\]'"):
        list(read(HubSet("org/rows", "train")))


# ---- what people really have ---------------------------------------------------------------------------------------

CELLS = "question\tanswer\nq1\ta1\nq2\ta2\n"
COLUMNS = {"question": ["q1", "q2"], "answer": ["a1", "a2"]}
NUMBERED = {name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CELLS),
        ("a.tsv", CELLS),
        ("a.tsv.gz", gzipped(CELLS.encode())),
        ("a.csv", CELLS.replace("\t", ";")),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.jsonl", LINES.encode("utf-16-le")),
        ("a.json", json.dumps(ROWS).encode("utf-16-be")),
        ("a.json", json.dumps(ROWS).encode("utf-32")),
        ("a.csv", CELLS.encode("utf-16")),
        ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.json", "".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.json", json.dumps({"version": 2, "data": ROWS})),
        ("a.json", json.dumps({"rows": ROWS, "total": 2}, indent=2)),
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps(NUMBERED, indent=2)),
        ("a.json", f"/* rows [2] */\n// of mine\n{json.dumps(ROWS)}"),
        ("a.json", "[" + ", /* and */ \n// then\n".join(map(json.dumps, ROWS)) + "]"),
        ("a.jsonl", "".join(f"[{json.dumps(row)}]\n" for row in ROWS)),
    ],
)
def test_what_people_really_have_is_read(tmp_path: Path, name: str, data: str | bytes) -> None:
    assert values(write(tmp_path / name, data)) == ROWS


TURNS = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(TURNS, indent=1)),
        ("a.json", json.dumps([TURNS])),
        ("a.jsonl", json.dumps(TURNS) + "\n"),
        ("a.jsonl", json.dumps(TURNS) + "\n" + json.dumps(TURNS) + "\n"),
    ],
)
def test_turns_alone_are_a_conversation(tmp_path: Path, name: str, text: str) -> None:
    found = values(write(tmp_path / name, text))
    assert found == [{"messages": TURNS}] * len(found)
    assert len(found) == text.count('"human"')


def test_turns_beside_something_else_are_no_conversation(tmp_path: Path) -> None:
    assert records(write(tmp_path / "a.json", json.dumps([*TURNS, 3]))) == [
        (1, TURNS[0]),
        (2, TURNS[1]),
        (3, "not_an_object"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<html></html>", "web page"),
        ("question,answer\nq1,a1\n", "rename it to .csv"),
        (b"SQLite format 3\0...", "SQLite"),
        (b"\x80\x04\x95....", "pickle"),
        ('{"question": "春风又绿江南岸", "answer": "好"}\n'.encode("gbk") * 3, "iconv -f GB18030"),
        ("问题,回答\n春风又绿江南岸,好\n".encode("gbk"), "GBK"),
    ],
)
def test_what_is_no_rows_is_told_with_what_to_do(tmp_path: Path, data: str | bytes, words: str) -> None:
    assert words in error_of(write(tmp_path / "a.jsonl", data))


def test_one_row_in_another_encoding_costs_one_row(tmp_path: Path) -> None:
    data = LINES.encode() + '{"question": "春风又绿江南岸", "answer": "好"}\n'.encode("gbk") + LINES.encode()
    assert len(records(write(tmp_path / "a.jsonl", data))) == 5


def test_a_cell_with_quotes_in_a_table_with_tabs(tmp_path: Path) -> None:
    text = 'question\tanswer\n"what?\t6" wide\n"why?\tso, "there"\n'
    assert values(write(tmp_path / "a.tsv", text)) == [
        {"question": '"what?', "answer": '6" wide'},
        {"question": '"why?', "answer": 'so, "there"'},
    ]


def test_commas_in_cells_do_not_decide_the_separator(tmp_path: Path) -> None:
    text = "question;answer\nred, green, or blue?;red, I think\nno;yes\n"
    assert [row["answer"] for row in values(write(tmp_path / "a.csv", text))] == ["red, I think", "yes"]
    assert values(write(tmp_path / "b.csv", "only\na;b\nc\n")) == [{"only": "a;b"}, {"only": "c"}]


@pytest.mark.parametrize("layout", ["stream", "file"])
@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_arrow_is_read_batch_by_batch(tmp_path: Path, layout: str, compression: Any) -> None:
    rows = [{"n": n, "turns": [{"role": "user", "content": None if n % 2 else f"t{n}"}]} for n in range(25)]
    frame = pl.DataFrame(rows).with_columns(kind=pl.Series(["a", "b", None, "a", "b"] * 5, dtype=pl.Categorical()))
    path = tmp_path / "a.arrow"
    if layout == "file":
        frame.write_ipc(path, compression=compression)
    else:
        with path.open("wb") as file:
            file.writelines(_one_stream(frame, compression))
    found = values(DataFile("a.arrow", path))
    assert [row["n"] for row in found] == list(range(25))
    assert [row["kind"] for row in found[:3]] == ["a", "b", None]
    assert found[1]["turns"] == [{"role": "user"}]  # null in a struct: never written
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 300])
    if layout == "file":  # polars writes the columns into the index only
        assert "Arrow" in error_of(DataFile("a.arrow", path))
        return
    *kept, last = read(DataFile("a.arrow", path))
    assert [r.value["n"] for r in kept if isinstance(r, Record)] == list(range(20))
    assert isinstance(last, Reject)
    assert last.reason == "damaged_file"


def _one_stream(frame: pl.DataFrame, compression: Any) -> list[bytes]:
    """The bytes of one Arrow stream with batches of ten rows, the last of five."""
    pieces = []
    for start in range(0, len(frame), 10):
        buffer = io.BytesIO()
        frame[start : start + 10].write_ipc_stream(buffer, compression=compression)
        whole = buffer.getvalue()
        pieces.append([whole[a:b] for a, b in itertools.pairwise(_places(whole))])
    return [pieces[0][0], *(message for piece in pieces for message in piece[1:]), ARROW_STREAM + bytes(4)]


def _places(stream: bytes) -> list[int]:
    """Where the messages of a small Arrow stream begin, and where the last one ends."""
    return [at for at in range(0, len(stream), 8) if stream.startswith(ARROW_STREAM, at)]


@pytest.mark.parametrize(
    "suffix", [".parquet", ".arrow", ".zstd.arrow", ".file.arrow", ".csv", ".tsv", ".json", ".jsonl", ".jsonl.gz"]
)
def test_flipped_and_lost_bytes_are_told_and_nothing_is_raised(tmp_path: Path, suffix: str) -> None:
    """Every third byte of a small file, flipped or with all after it lost: records, bad ones, or one DataError."""
    rows = [{"question": f"问题 {n}", "answer": f'a "{n}"; b,\tc'} for n in range(4)]
    buffer = io.BytesIO()
    if suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(buffer, compression="uncompressed", statistics=False)
    elif suffix == ".file.arrow":
        pl.DataFrame(rows).write_ipc(buffer, compression="zstd")
    elif suffix.endswith(".arrow"):
        pl.DataFrame(rows).write_ipc_stream(buffer, compression="zstd" if "zstd" in suffix else "uncompressed")
    elif suffix in (".csv", ".tsv"):
        pl.DataFrame(rows).write_csv(buffer, separator="\t" if suffix == ".tsv" else ",")
    else:
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
        buffer.write(gzipped(text.encode()) if suffix.endswith(".gz") else text.encode())
    whole = buffer.getvalue()
    for place in range(0, len(whole), 3 + len(whole) // 200):
        flipped = bytes([*whole[:place], whole[place] ^ 0x41, *whole[place + 1 :]])
        for hurt in (flipped, whole[:place]):
            file = write(tmp_path / f"a{suffix}", hurt)
            with contextlib.suppress(DataError):
                assert all(isinstance(r, Record) or r.reason for r in read(file))


def test_a_second_list_beside_the_rows_is_told(tmp_path: Path) -> None:
    found = records(write(tmp_path / "a.json", json.dumps({"data": ROWS, "more": ROWS})))
    assert [value for _, value in found] == [*ROWS, "broken_json"]
