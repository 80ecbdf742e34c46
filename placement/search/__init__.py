"""The scene around a tumor, the objective, and the search for the best box."""
