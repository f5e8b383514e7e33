"""Comparisons with other tools, and the recorded results they produced."""
