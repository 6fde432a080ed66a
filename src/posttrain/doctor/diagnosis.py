"""A whole run looked at: what every rule says of every stage, as values for a page, a terminal and programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.artifacts import plain
from posttrain.doctor.evidence import read_evidence
from posttrain.doctor.findings import Finding, Outcome, Rule, Severity, Unknown
from posttrain.doctor.rules import OF_EVALUATION, OF_JUDGES, OF_ONLINE, OF_TRAINING
from posttrain.doctor.words import ENGLISH, Words
from posttrain.report import values
from posttrain.report.figure import file_name
from posttrain.report.reading import Gap, Stage
from posttrain.report.values import Block, Notice, Section, Text
from posttrain.table import Table

SCHEMA = 1
SEVERITIES: tuple[Severity, ...] = ("alarm", "remark")


@dataclass(frozen=True, slots=True)
class Told:
    """What one rule says of one stage."""

    rule: str
    about: str
    """The stage."""
    spec: Rule[Any]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What all rules say of a run."""

    told: tuple[Told, ...]
    gaps: tuple[Gap, ...] = field(default=())
    """What is absent, damaged or not finished."""

    @property
    def findings(self) -> list[tuple[Told, Finding]]:
        """Alarms first, otherwise in the order of the rules."""
        found = [(one, one.outcome) for one in self.told if isinstance(one.outcome, Finding)]
        return sorted(found, key=lambda pair: SEVERITIES.index(pair[1].severity))

    @property
    def unknown(self) -> list[tuple[Told, Unknown]]:
        """What can't be told."""
        return [(one, one.outcome) for one in self.told if isinstance(one.outcome, Unknown)]

    @property
    def clear(self) -> list[Told]:
        """Where a rule has looked and found nothing."""
        return [one for one in self.told if one.outcome is None]

    @property
    def alarms(self) -> list[tuple[Told, Finding]]:
        """The findings that are alarms."""
        return [pair for pair in self.findings if pair[1].severity == "alarm"]


def diagnose(stages: Sequence[Stage], known: Sequence[Gap] = ()) -> Diagnosis:
    """Ask every rule about everything a run folder holds.

    ``stages``: those of the run, as its manifests tell of them. ``known``: what is already known to be missing. What can't be read becomes
    a gap, and the rules say what they lack.
    """
    gaps = list(known)
    told: list[Told] = []
    evidence = read_evidence(stages, gaps)
    asked: list[tuple[Table[Rule[Any]], Sequence[Any]]] = [
        (OF_TRAINING, evidence.trainings),
        (OF_ONLINE, evidence.online),
        (OF_EVALUATION, evidence.evaluations),
        (OF_JUDGES, evidence.judges),
    ]
    for rules, several in asked:
        for name, rule in rules.items():
            told += [Told(name, seen.name, rule, rule.examine(seen)) for seen in several if rule.applies(seen)]
    return Diagnosis(tuple(told), tuple(gaps))


# ---- as values -----------------------------------------------------------------------------------------------------


def diagnosis_section(found: Diagnosis, words: Words = ENGLISH) -> Section:
    """What was found, what can't be told, and where nothing was found; folded where nothing was."""
    blocks: list[Block] = [_finding(one, finding, words) for one, finding in found.findings]
    if found.gaps:
        blocks.insert(0, Notice("warning", words.page("gaps"), tuple(gap.text for gap in found.gaps)))
    if not found.findings:
        asked = len({one.rule for one in found.clear})
        blocks.append(Text(words.page("nothing", rules=asked) if asked else words.page("nobody")))
    if found.unknown:
        blocks.append(_unknown(found, words))
    elsewhere = {one.rule for one in found.told if one.outcome is not None}
    if found.findings and (clear := dict.fromkeys(one.rule for one in found.clear if one.rule not in elsewhere)):
        blocks.append(Text(words.page("clear", rules=", ".join(clear)), "aside"))
    blocks.append(values.Records("doctor", diagnosis_json(found, words)))
    gist = words.page(
        "gist", alarms=len(found.alarms), remarks=len(found.findings) - len(found.alarms), unknown=len(found.unknown)
    )
    return Section(words.page("title"), "doctor", tuple(blocks), folded=not found.findings, gist=gist)


def alarm_texts(found: Diagnosis, words: Words = ENGLISH) -> tuple[str, ...]:
    """Each alarm in a sentence."""
    return tuple(
        f"{one.about}: {words.symptom(one.rule)} ({words.evidence(one.rule, finding)})."
        for one, finding in found.alarms
    )


def _finding(one: Told, found: Finding, words: Words) -> Section:
    causes = tuple((words.cause(cause.name), " ".join(cause.change)) for cause in found.causes)
    return Section(
        f"{words.page(found.severity)}: {words.symptom(one.rule)} ({one.about})",
        file_name("doctor", one.about, one.rule),
        (
            Text(words.evidence(one.rule, found)),
            values.Table("", (words.page("causes"), words.page("change")), causes).known(),
            Text(words.page("rule", rule=one.rule, source=one.spec.source), "aside"),
        ),
    )


def _unknown(found: Diagnosis, words: Words) -> values.Table:
    rows = tuple((one.about, words.symptom(one.rule), words.lacks(lacking)) for one, lacking in found.unknown)
    return values.Table(words.page("unknown"), (words.page("stage"), words.page("symptom"), words.page("lacks")), rows)


def diagnosis_json(found: Diagnosis, words: Words = ENGLISH) -> dict[str, Any]:
    """The same for programs."""
    return {
        "schema": SCHEMA,
        "status": next(
            (finding.severity for _, finding in found.findings), "nothing found" if found.clear else "unknown"
        ),
        "findings": list(_findings_json(found, words)),
        "unknown": [
            {"rule": one.rule, "about": one.about, "symptom": words.symptom(one.rule), "lacks": words.lacks(lacking)}
            for one, lacking in found.unknown
        ],
        "nothing_found": [{"rule": one.rule, "about": one.about} for one in found.clear],
        "gaps": [gap.text for gap in found.gaps],
    }


def _findings_json(found: Diagnosis, words: Words) -> Iterator[dict[str, Any]]:
    for one, finding in found.findings:
        yield {
            "rule": one.rule,
            "about": one.about,
            "severity": finding.severity,
            "symptom": words.symptom(one.rule),
            "evidence": words.evidence(one.rule, finding),
            "numbers": plain(finding.numbers),
            "causes": [
                {"name": cause.name, "text": words.cause(cause.name), "change": list(cause.change)}
                for cause in finding.causes
            ],
            "threshold": one.spec.threshold,
            "source": one.spec.source,
        }
