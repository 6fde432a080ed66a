"""Rows that hold evaluation prompts: found by n-grams, and proposed by meaning. See docs/data-decontamination.md."""
