"""A process that has imported what a synthesis needs and forks one command per line of its standard input; see tests/forking.py.

Endpoints wait shortly between attempts, and not long for an answer.
"""

from __future__ import annotations

import functools

import posttrain.stages.synth
import posttrain.synth.loop  # noqa: F401 (what a stage would load when it runs)
from forking import serve_commands
from posttrain.generate import openai
from posttrain.generate.openai import Endpoint

openai.Endpoint = functools.partial(Endpoint, request_timeout=3.0, first_backoff=0.002, longest_backoff=0.02)  # type: ignore[assignment, misc]
serve_commands()
