"""Synthetic anomalies put into healthy scans, on plain arrays."""
