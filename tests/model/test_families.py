"""Every family of the table is a model that can be built, saved and loaded again, and whose switches are real."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import FAMILIES, micro_folder, micro_model


@pytest.mark.filterwarnings("ignore")  # these models' own
@pytest.mark.parametrize("family", FAMILIES)
def test_a_micro_model_is_small_and_survives_its_folder(family: str, tmp_path: Path) -> None:
    model = micro_model(family)
    assert sum(p.numel() for p in model.parameters()) < 100_000
    again = AutoModelForCausalLM.from_pretrained(micro_folder(family, tmp_path))
    ids = torch.arange(max(FAMILIES[family].lengths))[None] % 199
    with torch.no_grad():
        own, read = (m(input_ids=ids, use_cache=False).logits for m in (model, again))
    assert bool(own.isfinite().all())
    assert torch.equal(own, read)
