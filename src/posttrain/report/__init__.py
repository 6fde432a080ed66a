"""The report of a run: facts read from its artefacts, figures, one HTML page, Markdown and a summary."""
