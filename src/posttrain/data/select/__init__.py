"""Selection: which of the good rows are worth training on. See docs/data-selection.md."""
