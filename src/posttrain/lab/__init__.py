"""Experiments: recipes, their stages, and what the command line does with them."""
