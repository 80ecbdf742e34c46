"""Sections of the report of a study: each makes text, tables and figures from a board."""
