"""Placers that learn from experts: a ranker of candidates and a 3-D network."""
