"""Objectives: one small file each, the equation beside the code."""
