"""Every error posttrain raises on purpose. The command line prints ``str(error)`` and exits with 2.

::

    PosttrainError
    |- ConfigError      a recipe or override is wrong; names file, line and config path
    |- DataError        a file or data set can't be used as a whole (single bad rows go to the ledger instead)
    |- TemplateError    a chat template is missing, broken, or its assistant turns can't be proven
    |- ModelError       a model folder or adapter can't be loaded
    |- AssetError       a named asset is unknown, can't be fetched, or has the wrong sha256
    |- RunError         the run folder is locked, read-only, full, or holds something unexpected
    |   `- InterruptedRunError   Ctrl-C, SIGTERM or asked to stop; what was finished is kept (exit code 130, not 2)
    |   |   `- EndedEarlyError  a run that a search has seen enough of; only the search sees it
    |   `- LostPeerError         another process of this run was killed
    |- CheckpointError  a checkpoint is damaged or belongs to another configuration
    `- TrainingError    training can't go on (non-finite loss, nothing to train on)

``where`` says the place (file:line, config path), ``fix`` what to do. Both are part of the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class PosttrainError(Exception):
    """Base of the tree: a problem the user can mend, told in one message."""

    exit_code: ClassVar[int] = 2
    """That of a command that ends with it."""

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem, self.where, self.fix = problem, where, fix
        message = (f"{where}: " if where else "") + problem + (f"\n  fix: {fix}" if fix else "")
        super().__init__(message.encode("utf-8", "backslashreplace").decode())  # names of files may be broken text


class ConfigError(PosttrainError):
    """A recipe or an override is wrong."""

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        problems: Sequence[tuple[tuple[str | int, ...], str]] = (),
    ) -> None:
        super().__init__(problem, where=where, fix=fix)
        self.problems = tuple(problems)
        """(config path, what is wrong there) of everything that the message tells, also of what it leaves out for length."""


class DataError(PosttrainError):
    """A file or data set can't be used as a whole."""


class TemplateError(PosttrainError):
    """A chat template is missing, broken, or can't be proven."""


class ModelError(PosttrainError):
    """A model folder or adapter can't be loaded."""


class AssetError(PosttrainError):
    """A named asset is unknown, can't be fetched, or has the wrong content."""


class RunError(PosttrainError):
    """The run folder can't be used."""


class InterruptedRunError(RunError):
    """The user stopped the run; the same command goes on from where it was."""

    exit_code = 130


class EndedEarlyError(InterruptedRunError):
    """A search has seen enough of this run; it could be gone on with."""


class LostPeerError(RunError):
    """Another process that works on this run was ended; whoever started them all says so too."""


class CheckpointError(PosttrainError):
    """A checkpoint is damaged or belongs to another configuration."""


class TrainingError(PosttrainError):
    """Training can't go on."""
