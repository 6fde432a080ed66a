"""Judges: prompts and parsers, judging in both orders, how biased a judge is, and whether it is good enough."""
