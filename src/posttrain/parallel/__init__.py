"""Several processes that work on one run: who they are to each other (`peers`), how they are joined (`joined`) and started (`launch`,
`ray_launch`).

The first process, rank 0, runs the recipe as a single one would and is the only one that writes. The others wait for the parts of it
that are shared out, and do theirs.
"""
