"""The form of every instruction type: a function from an instruction's arguments to a verifier.

The annotations of the arguments are what a prompt file may write there; reading one checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, MinLen

Verifier = Callable[[str], bool]
"""Reply -> whether it follows the instruction. Built once per instruction, then asked about every variant of the reply."""

Count = Annotated[int, Ge(0)]
Number = Annotated[int, Ge(1)]
Text = Annotated[str, MinLen(1)]
