"""Synthetic bodies and heads with known tissue."""
