"""The text of a reply while its tokens come: whole characters only, nothing of what ends it, and the thinking kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.generate.decode import NewToken, without_stop
from posttrain.generate.engine import THINK_CLOSE, THINK_OPEN, SplitReply, TokenLogprob, split_think
from posttrain.generate.voice import Piece

_HALF = "\ufffd"
"""What a character decodes to whose bytes are not all there."""


class GrowingText:
    """One reply. Mutable: it grows.

    text_of: ids -> text, special tokens left out. stops: token sequences that end the reply. texts: texts that do. opened: the prompt ended
    inside a think block. What may still turn out to belong to a stop or to a tag is held back until the next tokens decide.
    """

    def __init__(
        self,
        text_of: Callable[[Sequence[int]], str],
        stops: Sequence[tuple[int, ...]],
        texts: Sequence[str] = (),
        opened: bool = False,
    ) -> None:
        self._text_of, self._stops, self._texts, self._opened = text_of, stops, texts, opened
        self._behind = max((len(stop) for stop in stops), default=1) - 1
        self._tokens: list[NewToken] = []
        self._begins: list[int] = []
        """How much text stands before each of the tokens that can't be part of a stop."""
        self._length = 0
        self._told = 0
        self._shown = SplitReply("", None)

    @property
    def tokens(self) -> int:
        """How many there are, those of a stop included."""
        return len(self._tokens)

    def add(self, new: NewToken) -> Piece:
        """What the reply becomes longer by. Its ``finish`` is also set where a text has ended it, and no more tokens are wanted then."""
        assert new.finish != "not_finite", "there is no such token"
        self._tokens.append(new)
        finish = new.finish
        ids = [token.token for token in self._tokens]
        if finish == "stop":
            ids = without_stop(ids, self._stops)
        elif finish is None:
            ids = ids[: max(0, len(ids) - self._behind)]
        text = self._text_of(ids)
        if text.endswith(_HALF):
            text = text.rstrip(_HALF)  # the rest of the character comes yet, or a limit has cut it
            if finish is None:
                text = text[: self._length]
        self._begins += [self._length] * (len(ids) - len(self._begins))
        self._length = len(text)
        found = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        elif finish is None:
            text = _decided(text, self._texts)
        split = self._split(text, finish is not None)
        piece = Piece(
            split.text[len(self._shown.text) :],
            (split.reasoning or "")[len(self._shown.reasoning or "") :],
            self._logprobs(len(text) if found or finish is None else None, len(ids)),
            finish,
        )
        self._shown = split
        return piece

    def _split(self, text: str, ended: bool) -> SplitReply:
        """Text and thinking as far as they are sure."""
        if self._shown.text and self._shown.reasoning is None:
            return SplitReply(text, None)  # it began without a block: a tag further on is a quoted one
        if not ended:
            text = _decided(text, (THINK_OPEN, THINK_CLOSE))
            if not text.strip():
                return self._shown
        return split_think(text, opened=self._opened)

    def _logprobs(self, limit: int | None, sure: int) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that begin before a place of the text (None = of all) and were not told yet."""
        upto = self._told
        while upto < sure and (limit is None or self._begins[upto] < limit):
            upto += 1
        fresh, self._told = self._tokens[self._told : upto], upto
        return tuple(token_logprob(new, self._text_of) for new in fresh if new.likely is not None)


def token_logprob(new: NewToken, text_of: Callable[[Sequence[int]], str]) -> TokenLogprob:
    """The log-probabilities of a token with the texts of all tokens. They must have been asked for."""
    assert new.likely is not None, "log-probabilities were asked for"
    top = tuple((text_of([token]), logprob) for token, logprob in new.likely.top)
    return TokenLogprob(text_of([new.token]), new.likely.logprob, top)


def _decided(text: str, marks: Sequence[str]) -> str:
    """A text without the longest end that may be the beginning of a mark."""
    longest = max(map(len, marks), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return text[:-length]
    return text
