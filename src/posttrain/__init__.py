"""posttrain: from raw rows to an aligned, measured language model, with proof of every step."""

__version__ = "0.1.0"
