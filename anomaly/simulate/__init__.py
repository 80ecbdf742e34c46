"""Synthetic persons, their diffusion signal and tumors."""
