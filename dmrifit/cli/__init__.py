"""The command line, and what all four programs share."""
