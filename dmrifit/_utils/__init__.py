"""What every room may use: checks, seeds, threads, small text files, the state of torch."""
