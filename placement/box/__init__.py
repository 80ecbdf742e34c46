"""The spectroscopy voxel as a box in space, and how much of a volume lies inside."""
