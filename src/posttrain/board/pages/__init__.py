"""The pages of the board, each one file with its addresses; one line here."""

from __future__ import annotations

from starlette.routing import BaseRoute


def first_routes() -> list[BaseRoute]:
    """The addresses of the page that opens first: little to load."""
    from posttrain.board.pages import runs

    return [*runs.ROUTES]


def other_routes() -> list[BaseRoute]:
    """All others. They know every kind of stage, which takes a second to load."""
    from posttrain.board.pages import chat, compare, control, label, new, rows, run

    return [
        *run.ROUTES,
        *control.ROUTES,
        *new.ROUTES,
        *compare.ROUTES,
        *rows.ROUTES,
        *label.ROUTES,
        *chat.ROUTES,
    ]
