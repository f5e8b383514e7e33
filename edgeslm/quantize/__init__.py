"""Which tensor sits on which grid (plan), training on it (masters), and turning it into integers once (freeze)."""
