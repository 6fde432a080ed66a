"""Rows in: sources, formats, exact deduplication, the split, and the ledger that accounts for every row. No torch."""
