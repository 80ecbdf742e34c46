"""Model files: estimators saved and loaded without running code from a file."""
