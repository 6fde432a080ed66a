"""What is measured on held-out rows: likelihood, preferences, feedback."""
