"""Files and arrays: images, masks, tables, grids, and writing that is whole or not at all."""
