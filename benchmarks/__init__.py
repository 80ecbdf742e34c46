"""Measurements of the toolkit, by room; run as `python -m benchmarks.ROOM.NAME` from the project's root."""
