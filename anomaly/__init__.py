"""Find anomalies in diffusion MRI with models trained on healthy tissue."""
