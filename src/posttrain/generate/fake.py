"""A scripted engine for tests: of judges, of loops over an engine, of your own code. Nothing is loaded and nothing is sent.

::

    FakeEngine(["first", "second", Failure("timeout", "scripted")])          # one after the other
    FakeEngine({r"capital of France": "Paris", r".*": "I don't know."})      # by pattern, the first that is found
    FakeEngine(lambda request: request.prompt[-1].content.upper())           # by function
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from posttrain.errors import ConfigError
from posttrain.generate.engine import Completion, Fingerprint, Outcome, Outcomes, Request, Usage, split_think

Scripted = str | Outcome
"""A reply's text (think blocks are parted from it as for a real engine), or the outcome itself."""
Script = Callable[[Request], Scripted] | Mapping[str, Scripted] | Sequence[Scripted]


class FakeEngine:
    """Answers from a script.

    ``script``: a function; patterns (``re.search`` in the last message, in the order given); or a list, used up in
    the order of the requests over all calls. ``model``: the name in the fingerprint.

    ``requests`` holds everything that was asked. Usage counts words, in the place of tokens.
    """

    def __init__(self, script: Script, *, model: str = "scripted") -> None:
        if isinstance(script, str):
            raise ConfigError(
                "a single text is not a script",
                where="FakeEngine",
                fix='give a list, patterns ({".*": text}) or a function',
            )
        self._script, self._model = script, model
        self.requests: list[Request] = []

    @property
    def fingerprint(self) -> Fingerprint:
        """``fake`` and the name it was given."""
        return Fingerprint(engine="fake", model=self._model)

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """The script's outcomes.

        Raises:
            ConfigError: the list is used up, or no pattern fits; names the request.

        """
        yield from enumerate(map(self._outcome, requests))

    def _outcome(self, request: Request) -> Outcome:
        self.requests.append(request)
        found = self._scripted(request)
        if not isinstance(found, str):
            return found
        text, reasoning = split_think(found)
        words = sum(len(message.content.split()) for message in request.prompt)
        return Completion(text, reasoning=reasoning, usage=Usage(words, len(found.split())))

    def _scripted(self, request: Request) -> Scripted:
        script = self._script
        if callable(script):
            return script(request)
        if isinstance(script, Mapping):
            last = request.prompt[-1].content
            for pattern, reply in script.items():
                if re.search(pattern, last, re.DOTALL):
                    return reply
            raise ConfigError(
                f"no pattern of the script fits {last[:80]!r}",
                where="FakeEngine",
                fix='add a pattern, or ".*" at the end',
            )
        number = len(self.requests)
        if number > len(script):
            raise ConfigError(
                f"request {number} came, but the script has {len(script)} replies",
                where="FakeEngine",
                fix="add replies",
            )
        return script[number - 1]
