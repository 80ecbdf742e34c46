"""
How is this done in dipy, lmfit, MONAI, bodymritools or DeepMedic?

The same task in the other program and here. What runs without a GPU was run when this page was built, on synthetic
data.
"""

# %%
# dipy: IVIM
# ----------
# In dipy a model is made for a table of gradients and fitted to an array of any shape, b in s/mm² and D in mm²/s. The
# order of its parameters is S0, f, D*, D.

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.reconst.ivim import IvimModel

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels

np.set_printoptions(suppress=True)
b = np.array([0, 10, 20, 40, 60, 80, 100, 150, 200, 400, 600, 800, 1000.0])
truth = np.array(
    [[1000, 0.15, 30, 1.1], [800, 0.1, 20, 0.9], [1200, 0.25, 50, 1.4]]
)  # S0, f, Dv, Dt
signals = MODELS["ivim"].signal(truth, Protocol(b))

gradients = gradient_table(b, bvecs=np.tile([1.0, 0, 0], (len(b), 1)), b0_threshold=0)
box = [0, 0, 0.004, 0.0002], [np.inf, 1, 0.1, 0.003]
theirs = IvimModel(gradients, fit_method="trr", bounds=box).fit(signals).model_params
print((theirs * [1, 1, 1000, 1000]).round(2))

# %%
# Here an array has a row for each voxel, b is in s/mm² and D in µm²/ms: 1 µm²/ms is 0.001 mm²/s.

ours = fit_voxels(signals, Protocol(b), "ivim", method="nlls")
print(ours.parameters.round(2))

# %%
# On files: ``dmrifit fit dwi.nii.gz --model ivim --out maps``. Tensors, tractography and registration are dipy's; this
# project uses dipy for denoising, Gibbs removal and motion.
#
# How long both take in the benchmark of this project, on one thread, and how often they find the best fit:

# Read from benchmarks/results/fitting.json.
# sphinx_gallery_start_ignore
from pages import result

rows = {row["what"]: row for row in result("fitting")["rows"]}


def show(what):
    row = rows[what]
    print(f"{what}, per voxel:")
    found = {
        "theirs": (row["theirs"], row["their_accuracy"]),
        "here": (row["ours"]["default"], row.get("accuracy")),
    }
    for name, (time, accuracy) in found.items():
        reached = (
            accuracy
            and f"; {100 * accuracy['within_1e-3']:.1f} % of the voxels within 1e-3 of the best known fit"
        )
        print(
            f"  {name}: {time['best_us']:,.{0 if time['best_us'] > 100 else 2}f} µs{reached or ''}"
        )


show("ivim against dipy trr, biexponential signals")
# sphinx_gallery_end_ignore

# %%
# lmfit: a formula of one's own
# -----------------------------
# lmfit takes a Python function, and fits one curve at a time; its parameters carry bounds and become numbers with
# uncertainties and correlations, which are worth having for a single curve.

import lmfit

one = 900 * np.exp(-((b / 1000 * 1.2) ** 0.8))
curve = lmfit.Model(lambda b, S0, DDC, alpha: S0 * np.exp(-((b / 1000 * DDC) ** alpha)))
hints = {"S0": {"value": 1000, "min": 0}, "DDC": {"value": 1, "min": 0.05, "max": 5},
         "alpha": {"value": 0.7, "min": 0.2, "max": 1}}  # fmt: skip
fit = curve.fit(one, curve.make_params(**hints), b=b)
print({name: round(value, 3) for name, value in fit.best_values.items()})

# %%
# Here a formula is compiled, and fits a whole image; starting points are found, not given.

stretched = SignalModel.from_expression(
    "S0*exp(-(b*DDC)**alpha)",
    [
        Parameter("S0", "signal", 0, np.inf),
        Parameter("DDC", "µm²/ms", 0.05, 5),
        Parameter("alpha", "", 0.2, 1),
    ],
    name="stretched",
)
fitted = fit_voxels(one[None], Protocol(b), stretched)
print({name: round(float(fitted[name][0]), 3) for name in fitted.names})
# sphinx_gallery_start_ignore
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(b, one, "ko", markersize=4, label="signal, synthetic")
axis.plot(b, fit.best_fit, "C1", linewidth=4, alpha=0.6, label="lmfit")
axis.plot(b, stretched.signal(fitted.parameters, Protocol(b))[0], "C0--", label="dmrifit")
axis.set(xlabel="b (s/mm²)", ylabel="signal", ylim=(0, None))
axis.legend(frameon=False)
# sphinx_gallery_end_ignore

# sphinx_gallery_start_ignore
show("lmfit Model.fit, least_squares")
# sphinx_gallery_end_ignore

# %%
# MONAI: scores of a segmentation
# -------------------------------
# MONAI's metrics take tensors of batch, channel and space. Dice over a whole scan says little about small lesions:

import torch
from monai.metrics import DiceMetric

reference, prediction = np.zeros((2, 20, 20, 20), bool)
reference[2:8, 2:8, 2:8] = reference[14:16, 14:16, 14:16] = True
prediction[3:9, 2:8, 2:8] = prediction[2:4, 15:17, 2:4] = True
tensors = [torch.tensor(mask[None, None].astype(np.float32)) for mask in (prediction, reference)]
print(f"Dice {float(DiceMetric()(*tensors)):.3f}")

# %%
# Here masks are arrays, and there is a row for each lesion: the small one was missed, and one finding is false.

from dmrifit import lesion_table

lesion_table(reference, prediction, np.eye(4))[
    ["kind", "found", "n_voxels", "dice", "x", "y", "z"]
].round(2)

# %%
# A network is an estimator with ``fit`` and ``predict`` on lists of arrays instead of transforms, loaders and a loop of
# your own: ``DeepMedicSegmenter("jvss", 0.995).fit(images, labels)``; epochs, batch size and learning rate are a
# `dmrifit.Training`, such as ``training=Training(epochs=40)``. For everything else (architectures, transforms,
# GPUs) MONAI is the place; `dmrifit.VolumeEstimator` is the base of estimators around a torch module.
#
# bodymritools: T2-IVIM-Kurtosis
# ------------------------------
# The scripts of `bodymritools <https://github.com/fragrussu/bodymritools>`__ (manual: ``manuals/getT2ivimkurtReg.md``)
# read a text file with b-values in its first row and echo times in its second. Its license, CC BY-NC-SA, does not allow
# commercial use. It was not run for this page.
#
# .. code-block:: sh
#
#    python getT2ivimkurtReg.py dwi.nii scheme.txt out --mask mask.nii --sigma sigma.nii
#    dmrifit fit dwi.nii --bval dwi.bval --te dwi.te --mask mask.nii --sigma sigma.nii --out maps
#
# .. list-table::
#    :header-rows: 1
#
#    * - there
#      - here
#    * - ``*_s0 *_fv *_dv *_t2v *_dt *_kt *_t2t.nii``
#      - ``S0 f Dv T2v Dt K T2t``, same units
#    * - ``--pmin``, ``--pmax``
#      - ``--bounds``; ``--bounds published`` is its default box
#    * - ``--wtk`` (Tikhonov)
#      - ``--regularization``
#    * - ``*_exit.nii``
#      - maps ``status``, ``atbound`` and ``doubt``
#
# Measured by this project's benchmark, on synthetic voxels:

# Read from benchmarks/results/fitting.json.
# sphinx_gallery_start_ignore
show("published script of the model, signals about 500")
# sphinx_gallery_end_ignore

# %%
# DeepMedic: segmentation of lesions
# ----------------------------------
# `DeepMedic <https://github.com/deepmedic/deepmedic>`__ is configured by files: one for the network, one for
# training, which name lists of channels and labels. It was not run for this page.
#
# .. code-block:: sh
#
#    ./deepMedicRun -model modelConfig.cfg -train trainConfig.cfg -dev cuda
#    ./deepMedicRun -model modelConfig.cfg -test testConfig.cfg -load model.ckpt -dev cuda
#
#    dmrifit-metastasis train cases.tsv --published --out model.dmrifit
#    dmrifit-metastasis segment model.dmrifit new.tsv --out segmented
#
# The network is written anew here, in torch. Differences: the earlier scan has a path of its own, losses weigh
# sensitivity against specificity, thresholds and options stand in the model file, and DeepMedic's weights cannot be
# read.
