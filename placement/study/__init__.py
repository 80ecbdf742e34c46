"""Comparison of placements with experts."""
