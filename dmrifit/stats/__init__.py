"""Scores, agreement, lesion matching, and tests between methods."""
