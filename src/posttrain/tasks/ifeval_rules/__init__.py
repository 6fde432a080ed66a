"""IFEval: instructions that a program can check (Zhou et al. 2023, arXiv:2311.07911).

:data:`INSTRUCTIONS` is the table of types; a new one is one function (arguments -> verifier) and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from posttrain.table import Table
from posttrain.tasks.ifeval_rules import content, form, lengths, letters
from posttrain.tasks.ifeval_rules.verifier import Verifier

__all__ = ["INSTRUCTIONS", "Verifier"]

INSTRUCTIONS: Table[Callable[..., Verifier]] = Table(
    "IFEval instruction",
    {
        "keywords:existence": content.existence,
        "keywords:frequency": content.frequency,
        "keywords:forbidden_words": content.forbidden_words,
        "keywords:letter_frequency": content.letter_frequency,
        "language:response_language": letters.response_language,
        "length_constraints:number_sentences": lengths.number_sentences,
        "length_constraints:number_paragraphs": lengths.number_paragraphs,
        "length_constraints:number_words": lengths.number_words,
        "length_constraints:nth_paragraph_first_word": lengths.nth_paragraph_first_word,
        "detectable_content:number_placeholders": content.number_placeholders,
        "detectable_content:postscript": content.postscript,
        "detectable_format:number_bullet_lists": lengths.number_bullet_lists,
        "detectable_format:constrained_response": content.constrained_response,
        "detectable_format:number_highlighted_sections": form.number_highlighted_sections,
        "detectable_format:multiple_sections": lengths.multiple_sections,
        "detectable_format:json_format": form.json_format,
        "detectable_format:title": form.title,
        "combination:two_responses": lengths.two_responses,
        "combination:repeat_prompt": content.repeat_prompt,
        "startend:end_checker": content.end_checker,
        "startend:quotation": form.quotation,
        "change_case:capital_word_frequency": letters.capital_word_frequency,
        "change_case:english_capital": letters.english_capital,
        "change_case:english_lowercase": letters.english_lowercase,
        "punctuation:no_comma": content.no_comma,
    },
)
"""Type -> a function from its arguments (keywords only) to a verifier."""
