"""A comparison of estimators over cohorts: train/test splits, trainings, scores."""
