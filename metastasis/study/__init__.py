"""Scores of segmentations: lesions, segments, curves, follow-up, report."""
