"""Weninger et al., Sci Rep, 2023: anomalies of diffusion."""
