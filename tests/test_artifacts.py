"""Digests, atomic writes, the ledger, metrics and the lock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from posttrain import artifacts
from posttrain.artifacts import Ledger, MetricsLog, RunDir, StageDir, atomic_path, digest, write_json, write_text
from posttrain.errors import RunError
from posttrain.types import Origin

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@dataclass(frozen=True)
class Value:
    a: int
    b: Path


# ---- digests ---------------------------------------------------------------------------------------------------------


def test_a_digest_worked_by_hand() -> None:
    # printf '{"a":1,"b":"x/y"}' | sha256sum
    assert digest(Value(1, Path("x/y"))) == "3263e165c7fa288b8955ad229332b39a55661e8a1d1a47493cdf26f04c517f36"
    assert artifacts.canonical_json(Value(1, Path("x/y"))) == '{"a":1,"b":"x/y"}'
    assert artifacts.canonical_json({"z": np.float32(0.5), "a": "é"}) == '{"a":"é","z":0.5}'


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))
    assert digest(value) == digest(json.loads(json.dumps(value)))


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON: set"):
        digest({"a": {1}})


# ---- atomic writes ---------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    with contextlib.suppress(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"n": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]
    with contextlib.suppress(KeyError), atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        raise KeyError
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "new"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the disk is full"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (OSError(errno.EACCES, "x"), "no permission"),
        (OSError(errno.ENOTDIR, "x"), "a file stands where a folder is needed"),
        (OSError(errno.EIO, "x"), "can't write: Input/output error"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (SafetensorError("something odd"), "can't write: something odd"),
    ],
)
def test_failed_writes_in_words(error: Exception, words: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught, atomic_path(tmp_path / "x"):
        raise error
    assert words in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)
    assert caught.value.fix


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        write_text(tmp_path / "run" / "stage" / "manifest.json", "")
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        MetricsLog(tmp_path / "run" / "metrics.jsonl")


def test_only_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    for name in (".a.json.123.tmp", ".adapter.77.tmp", "mine.tmp", ".hidden.tmp", "a.json"):
        (tmp_path / "stage" / name).touch()
    (tmp_path / ".folder.5.tmp").mkdir()
    (tmp_path / ".folder.5.tmp" / "weights").touch()
    artifacts.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".hidden.tmp", "a.json", "mine.tmp", "stage"]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    code = (
        "import os, signal, sys; from pathlib import Path; from posttrain.artifacts import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert json.loads(path.read_text()) == {"n": 1}
    artifacts.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_damaged_artefact_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json"):
        StageDir(tmp_path).manifest()
    assert StageDir(tmp_path / "never").manifest() is None


# ---- the ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_sums_up() -> None:
    ledger = Ledger()
    read = ledger.step("read", rows_in=3)
    ledger.drop(read, Origin("f", 2), "broken_json", "x" * 900)
    read.rows_out = 2
    expand = ledger.step("encode", rows_in=2)
    expand.added, expand.truncated, expand.rows_out = 3, 1, 5
    whole = ledger.as_dict()
    assert (whole["rows_in"], whole["rows_kept"], whole["added"], whole["truncated"]) == (3, 5, 3, 1)
    assert whole["dropped"] == {"broken_json": 1}
    assert whole["rejects"] == [{"file": "f", "line": 2, "step": "read", "reason": "broken_json", "detail": "x" * 500}]
    expand.rows_out = 4
    with pytest.raises(AssertionError, match="encode"):
        ledger.as_dict()


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_survive_a_kill_and_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    log = MetricsLog(stage.file("metrics.jsonl"))
    for step in range(4):
        log.write(step=step, loss=np.float64(step / 2), text="\u2028")
    log.close()
    with stage.file("metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    assert [r["step"] for r in stage.metrics()] == [0, 1, 2, 3]
    MetricsLog(stage.file("metrics.jsonl"), resume_after=2).close()
    assert [(r["step"], r["loss"]) for r in stage.metrics()] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    MetricsLog(stage.file("metrics.jsonl")).close()
    assert stage.metrics() == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2"):
        StageDir(tmp_path).metrics()


# ---- the run folder --------------------------------------------------------------------------------------------------


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.lock():
        with pytest.raises(RunError, match=f"pid {os.getpid()} since") as caught, run.lock():
            pass
        assert "name=" in str(caught.value)
    with run.lock():  # released at the end of the block
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from posttrain.artifacts import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with RunDir(tmp_path).lock():
        pass


def test_stages_in_the_order_they_started(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name, started in (("b", 2.0), ("a", 3.0), ("c", 1.0)):
        run.stage(name).write_manifest({"started": started})
    assert run.stages() == ["c", "b", "a"]
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == {"schema": artifacts.SCHEMA, "started": 3.0}


def test_provenance_names_versions() -> None:
    found = artifacts.provenance()
    assert {"python", "posttrain", "torch", "transformers", "peft"} <= found["versions"].keys()
    assert found["cpu_count"] == os.cpu_count()
