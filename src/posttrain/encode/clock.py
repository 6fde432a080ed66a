"""The time that chat templates are told which ask for it ("Today Date: ..."): one for a whole run.

Rows that are rendered before and after midnight, and a run that is resumed, would else be trained on different texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime

_started = datetime.now()
_stopped: list[datetime] = []


def clock() -> datetime:
    """The local time to tell a template: that of the run, or the start of this process where there is none."""
    return _stopped[-1] if _stopped else _started


@contextlib.contextmanager
def stopped_at(now: datetime) -> Iterator[None]:
    """Let every template that is loaded meanwhile be told this time."""
    _stopped.append(now)
    try:
        yield
    finally:
        _stopped.pop()
