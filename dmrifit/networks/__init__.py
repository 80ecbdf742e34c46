"""The base of estimators of volumes, and how they train."""
