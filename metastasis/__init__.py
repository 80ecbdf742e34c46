"""Segment brain metastases with losses that weigh sensitivity against specificity."""
