"""Place magnetic resonance spectroscopy voxels in brain tumors."""
