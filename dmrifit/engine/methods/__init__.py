"""Methods of fits beside nonlinear least squares: logarithms, refinement, likelihoods, priors."""
