"""Boxes as files: tables, prescriptions, overlays."""
