"""Whole images in, whole images out: fits, predictions, preprocessing, regions."""
