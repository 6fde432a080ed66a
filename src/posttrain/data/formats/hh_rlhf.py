"""HH-RLHF: ``chosen`` and ``rejected`` are whole transcripts, and the turns they share are the prompt."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, optional_text
from posttrain.data.formats.prompts import prompt_key_of
from posttrain.data.formats.sides import pair_row, parted
from posttrain.data.formats.transcripts import is_transcript, transcript
from posttrain.types import Origin, PairRow


def detect(record: Foreign) -> bool:
    """Whether both sides are transcripts and nothing else tells the prompt."""
    sides = record.get("chosen"), record.get("rejected")
    return prompt_key_of(record) is None and all(isinstance(side, str) and is_transcript(side) for side in sides)


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    chosen, rejected = (transcript(optional_text(record, key)) for key in ("chosen", "rejected"))
    return pair_row(record, {"chosen", "rejected"}, *parted(chosen, rejected), origin, source)


HH_RLHF = Format(
    "hh_rlhf",
    detect,
    _parse,
    r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}',
    "pairs",
)
