"""Signal models of a protocol and their voxelwise fit, on arrays."""
