"""Estimators that predict an advanced protocol from a clinical one, and how sure they are."""
