"""Comparison of detectors: scores, curves, follow-up, report."""
