"""Near-duplicates: proposed by hashing or embedding, decided by exact similarity against the kept row."""
