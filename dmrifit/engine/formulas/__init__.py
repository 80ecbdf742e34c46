"""Formulas of signal models: parameters, expressions, and functions that become expressions."""
