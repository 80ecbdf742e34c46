"""Diffusion scans: cases, directions, tissue, preparation of users' series."""
