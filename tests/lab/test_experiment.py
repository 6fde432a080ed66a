"""The identity of what a stage reads."""

from __future__ import annotations

from pathlib import Path

from posttrain.lab.models import model_digest


def test_model_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"2")
    second = model_digest(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    third = model_digest(tmp_path)
    assert len({first, second, third}) == 3
    (tmp_path / "README.md").write_text("not part of the model")
    assert model_digest(tmp_path) == third
