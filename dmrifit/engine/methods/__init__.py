"""Methods of fits beside nonlinear least squares: logarithms, two steps, likelihoods, priors."""
