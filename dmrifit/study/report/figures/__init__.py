"""Figures of a study: each function takes a tidy table and returns a matplotlib Figure."""
