"""Patients: scans, the table that lists them, and arrays of voxels from them."""
