"""One row at every stage on its way to a loss: messages, rendered text, tokens with weights, place in a micro-batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from posttrain.encode.collate import collate
from posttrain.encode.packing import pack
from posttrain.encode.spans import supervised_renderings
from posttrain.encode.template import ChatTemplate, RejectedError, RowRejected
from posttrain.encode.tokens import OverLength, TokenisedText, fit_length, tokenise_renderings
from posttrain.types import SftRow, Tokens


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token: its id, the text it shows, the weight of predicting it."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands when this row is packed alone: micro-batch, first token, and states that predict."""

    micro_batch: int
    start: int
    predicting: int


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One training example made of the row."""

    tokens: tuple[TokenView, ...]
    rendered: str
    """The whole rendering; longer than what the tokens show where it was cut."""
    truncated: bool
    rejected: RowRejected | None
    """Why this example is not trained on; its tokens are then shown all the same, where there are any."""
    place: Place | None

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(token.weight != 0 for token in self.tokens)


@dataclass(frozen=True, slots=True)
class RowView:
    """A row and what becomes of it."""

    row: SftRow
    examples: tuple[ExampleView, ...]
    notes: tuple[str, ...]
    rejected: RowRejected | None
    """Why the whole row is rejected, or None."""
    number: int | None = None
    """Which row it is of its source, from 0, where it was asked for by number."""

    @property
    def place(self) -> str:
        """Row and line in words: a row is counted from 0 as in ``--row``, a line from 1 as in editors and ledgers."""
        row = "" if self.number is None else f"row {self.number} (from 0), "
        return f"{row}line {self.row.origin.line} of {self.row.origin.file}"


def show_row(
    row: SftRow,
    template: ChatTemplate,
    max_length: int | None = None,
    over_length: OverLength = "drop",
    budget: int = 2048,
    number: int | None = None,
) -> RowView:
    """Take one row through every stage of encoding. Without ``max_length`` nothing is over-length.

    ``number``: which row it is of its source, from 0.
    """
    try:
        renderings, notes = supervised_renderings(row, template)
    except RejectedError as error:
        return RowView(row, (), (), error.rejected, number)
    texts = tokenise_renderings(renderings, template)
    fitted = [
        text
        if isinstance(text, RowRejected)
        else fit_length(Tokens(text.ids_T, text.weights_T, row.id, part), max_length or len(text.ids_T), over_length)
        for part, text in enumerate(texts)
    ]
    kept = [example for example in fitted if isinstance(example, Tokens)]
    places = iter(_places(kept, budget))
    examples = []
    for rendering, text, example in zip(renderings, texts, fitted, strict=True):
        tokens = () if isinstance(text, RowRejected) else _token_views(text)
        if isinstance(example, Tokens):
            cut = len(example) < len(tokens)
            examples.append(ExampleView(tokens[: len(example)], rendering.text, cut, None, next(places)))
        else:
            examples.append(ExampleView(tokens, rendering.text, False, example, None))
    return RowView(row, tuple(examples), tuple(sorted(notes)), None, number)


def _token_views(text: TokenisedText) -> tuple[TokenView, ...]:
    ends = text.ends_T.tolist()
    return tuple(
        TokenView(token_id, text.text[start:end], round(weight, 6))
        for token_id, start, end, weight in zip(
            text.ids_T.tolist(), [0, *ends[:-1]], ends, text.weights_T.tolist(), strict=True
        )
    )


def _places(examples: list[Tokens], budget: int) -> list[Place]:
    places: dict[int, Place] = {}
    for number, members in enumerate(pack([len(example) for example in examples], budget)):
        starts = collate([examples[k] for k in members]).segments.starts
        for k, start in zip(members, starts, strict=True):
            places[k] = Place(number, start, examples[k].supervised)
    return [places[k] for k in range(len(examples))]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(view: RowView) -> dict[str, Any]:
    """Return a JSON value. ``tokens`` are those of all examples in order; uncut, their texts join to ``rendered``."""
    return {
        "row": view.number,
        "origin": {"file": view.row.origin.file, "line": view.row.origin.line},
        "row_id": view.row.id,
        "messages": [asdict(message) for message in view.row.messages],
        "tools": [dict(tool) for tool in view.row.tools],
        "rendered": "".join(example.rendered for example in view.examples),
        "tokens": [
            {"id": token.id, "text": token.text, "weight": token.weight, "example": number}
            for number, example in enumerate(view.examples)
            for token in example.tokens
        ],
        "examples": [_example_json(example) for example in view.examples],
        "notes": list(view.notes),
        "rejected": view.rejected and asdict(view.rejected),
    }


def _example_json(example: ExampleView) -> dict[str, Any]:
    return {
        "rendered": example.rendered,
        "tokens": len(example.tokens),
        "supervised": example.supervised,
        "truncated": example.truncated,
        "rejected": example.rejected and asdict(example.rejected),
        "place": example.place and asdict(example.place),
    }
