"""Stage kinds: one file each."""
