"""The doctor: names what went wrong in a run, from the files of its folder alone, and what to change.

A rule is a small function of the evidence with a source and a threshold (``rules.py`` has all of them in one table). It says that something
was found, that nothing was, or that it can't be told and what would tell; the last is never shown as healthy. No torch here.
"""
