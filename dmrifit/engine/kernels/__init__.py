"""
Compiled code of fits: bounded Levenberg–Marquardt, generated for each signal model.

`compiler.load` writes a Python module for a model and imports it: `template` with the model's
formula and derivatives written out by `formula`. What no model changes is in `shared`, compiled
once for all of them; it calls a model's code by its address. A fit works on 16 voxels side by
side: `lanes` turns straight lines of arithmetic into vector instructions, and each lane is a fit
of its own that takes the next voxel when it is done. What makes this quick is that J is never
stored, that all work lies in one small array, and that the exponential is a polynomial on vectors.

The module's name holds a hash of these files, the model, the versions and the processor, so
numba's cache on disk (which looks at one file only) is never stale.
"""
