"""Detectors of anomalies, with and without a network, and thresholds."""
