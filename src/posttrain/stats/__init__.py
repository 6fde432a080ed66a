"""Statistics: intervals, paired comparisons, ratings. Arithmetic on values only."""
