"""Evaluation: likelihood, replies, checks and their uncertainty."""
