"""Learning from one's own replies: prompts -> replies -> scores -> advantages or pairs -> steps (docs/online.md)."""
