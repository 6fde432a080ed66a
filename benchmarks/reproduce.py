"""Every published number about evaluation that this toolkit computes again, beside ours.

    python benchmarks/reproduce.py [FOLDER]        or: make reproduce

FOLDER is the shared data folder (default: ../shared/data beside the project). The last line says how many numbers are reproduced.
Exits with 1 where one is off, with 2 where the data are not there. A few seconds to a minute.
"""

from __future__ import annotations

import sys

import published
import reproduce_ifeval
import reproduce_ratings
import reproduce_votes

SECTIONS: dict[str, published.Rows] = {
    "Judges, votes, agreement and refusals": reproduce_votes.rows,
    "AlpacaEval, Bradley-Terry, Elo and arena ratings": reproduce_ratings.rows,
    "IFEval": reproduce_ifeval.rows,
}

if __name__ == "__main__":
    sys.exit(published.run_script(SECTIONS))
