"""What a page says of a synthesis, from its files."""

from __future__ import annotations

from posttrain.artifacts import StageDir, read_json
from posttrain.report.values import Facts, Number, Section
from posttrain.synth.job import FACTS


def synth_section(out: StageDir) -> Section:
    """What was made, by whom, at what cost, and what became of every answer."""
    facts = read_json(out.file(FACTS))
    items = (
        ("Pipeline", str(facts["pipeline"])),
        ("Rows kept", Number(facts["kept"], "count")),
        ("Requests", Number(facts["requests"], "count")),
    )
    return Section(f"Synthesis: {out.path.name}", out.path.name, (Facts(items),))
