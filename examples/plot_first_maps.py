"""
What do maps in a notebook say, and how are they kept?

From a scan to maps that show themselves, and from a trained predictor to maps of another patient. The first scan is a
real one, a small block of white matter that dipy carries; the patients further down are synthetic. As a notebook::

    sphinx_gallery_py2jupyter examples/plot_first_maps.py
"""

# %%
# A scan and its protocol
# -----------------------
# b-values and directions stand in text files beside the image; what they can determine decides the model.

from importlib.resources import files

import dmrifit

scan = files("dipy") / "data" / "files" / "small_101D"
protocol = dmrifit.Protocol.read(f"{scan}.bval", bvec=f"{scan}.bvec")
print(dmrifit.suggest_model(protocol))
protocol

# %%
# Maps
# ----
# The result is a mapping of names to NIfTI images. As the last line of a cell it shows a verdict, the values and three
# slices of each parameter.

maps = dmrifit.fit_image(f"{scan}.nii.gz", protocol, "kurtosis", average="geometric")
maps

# %%
# Sentences say which parameters the data do not determine; ``maps["D"]`` is one image, ``save`` writes all of them with a
# description as JSON, and ``view`` goes through them in three planes.

print(*maps.advice(), sep="\n")
print(maps["D"].shape, maps["D"].get_data_dtype())
maps.save("build/examples/first_maps", overwrite=True)
maps.view()

# %%
# ``plot`` draws one map, gray where it is in doubt, and the signals of a voxel with the fitted curve. ``to_dataframe``
# gives a row for each voxel with its place in mm, ``to_xarray`` a Dataset,
# NaN outside the voxels that were fitted.

print(maps.to_dataframe()[["x", "y", "z", *maps.names]].describe().round(2))
maps.plot("K")

# %%
# Patients
# --------
# A cohort is a list of scans, and its voxels are a table for estimators.

cohort = dmrifit.simulate_cohort("cohort1", 4, shape=(32, 32, 4), random_state=0)
cohort

# %%
voxels = cohort.arrays(mask="body", max_voxels=500, random_state=0)
voxels

# %%
# Predicted maps
# --------------
# A predictor learns the whole protocol from its clinical part; with ``set_output`` its columns have names.

predictor = dmrifit.SignalToSignal("LR", source=voxels.source, target=voxels.target)
predictor.set_output(transform="pandas")
predictor.fit(voxels.X, voxels.Y).predict_maps(voxels.X[:2]).round(2)

# %%
# Applied to a patient it has not seen, it returns maps like those of a fit.

patient = dmrifit.simulate_cohort("cohort1", 1, shape=(32, 32, 4), random_state=1).scans[0]
clinical = patient.signal[..., patient.protocol.clinical()]
dmrifit.predict_image(predictor, clinical, affine=patient.affine, mask=patient.mask.astype("uint8"))
