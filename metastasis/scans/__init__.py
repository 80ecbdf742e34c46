"""Brain scans with priors and lesions, from memory and from files."""
