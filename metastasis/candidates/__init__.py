"""Second stage of segmentation: candidates of a network judged by their features."""
