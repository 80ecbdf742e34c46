"""The claims of four published studies, as boards that evaluations of synthetic data decide."""
