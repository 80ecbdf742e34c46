"""Networks of detectors, and their losses."""
