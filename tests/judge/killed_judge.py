"""The command line with short waits between attempts. test_judging_faults.py runs it, and kills it on the way.

usage: python killed_judge.py judge pairs FILE -o DIR ...
"""

from __future__ import annotations

import functools

from posttrain.cli import main
from posttrain.generate import openai
from posttrain.generate.openai import Endpoint

if __name__ == "__main__":
    quick = functools.partial(Endpoint, request_timeout=1.5, first_backoff=0.002, longest_backoff=0.02)
    openai.Endpoint = quick  # type: ignore[assignment, misc]
    main()
