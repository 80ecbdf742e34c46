"""Images several times larger than the memory that a process may use are fitted and predicted slab by slab."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from run_scale import write_sparse

import dmrifit
from dmrifit import MODELS, Protocol

MB = 2**20
GRID = (96, 96, 96)
MORE = 160  # MB of address space beside what the libraries take once they are imported
BLOCK = (slice(20, 24), slice(30, 33), slice(40, 42))

# The limit is set when the libraries are there, and a small image went the same way: what code there is, and the
# threads, take address space too, but not more for a larger image.
CHILD = """
import resource, sys, numpy as np, nibabel as nib
from dmrifit import MODELS, Protocol, SignalToSignal, fit_image, predict_image
folder, task, more = sys.argv[1], sys.argv[2], int(sys.argv[3])
b = np.loadtxt(folder + "/b.txt")
protocol = Protocol(b)
source = protocol.take(range(0, len(b), 40))
def run(name, out):
    image, mask = f"{folder}/{name}.nii", f"{folder}/{name}_mask.nii"
    if task == "fit":
        return fit_image(image, protocol, "adc", mask=mask, out=out, n_threads=2)
    return predict_image(estimator, image, protocol=protocol, mask=mask, out=out)
if task == "predict":
    Y = MODELS["adc"].signal(np.random.default_rng(0).uniform((50, 0.5), (90, 2), (200, 2)), protocol)
    Y = Y * np.random.default_rng(1).uniform(0.95, 1.05, Y.shape)
    estimator = SignalToSignal("LR", source=source, target=protocol, model="adc").fit(Y[:, ::40], Y)
if task != "whole":
    run("small", folder + "/small-out-" + task)
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
limit = status("VmSize") + more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = status("VmRSS")
if task == "whole":
    nib.load(folder + "/large.nii").get_fdata()
maps = run("large", folder + "/out-" + task)
np.savez(f"{folder}/{task}.npz", **{name: np.asarray(one.dataobj)[20:24, 30:33, 40:42] for name, one in maps.items()})
print(more, status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image of 1 GB, a mask of a few voxels, and a small image of the same measurements."""
    folder = tmp_path_factory.mktemp("large")
    n = 600
    b = np.arange(0.0, 6.0 * n, 6.0)
    np.savetxt(folder / "b.txt", b)
    rng = np.random.default_rng(3)
    truth = rng.uniform((5000, 0.5), (9000, 2.0), (24, 2))
    noise = rng.normal(scale=50, size=(24, n))
    signals = np.maximum(np.rint(MODELS["adc"].signal(truth, Protocol(b)) + noise), 1)
    values = signals.reshape(4, 3, 2, n).astype(np.int16)
    for name, grid, block in (("large", GRID, BLOCK), ("small", (4, 3, 2), (slice(None),) * 3)):
        write_sparse(folder / f"{name}.nii", block, values, grid)
        mask = np.zeros(grid, np.uint8)
        mask[block] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / f"{name}_mask.nii")
    yield folder
    (folder / "large.nii").unlink()


def child(folder, task, more):
    words = [sys.executable, "-c", CHILD, str(folder), task, str(more)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    root = Path(dmrifit.__file__).parents[1]
    return subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, check=False)


NEEDS_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what memory is used")


@pytest.mark.slow
@NEEDS_LINUX
@pytest.mark.parametrize("task", ["fit", "predict"])
def test_an_image_six_times_larger_than_the_memory_goes_through(folder, task):
    size = (folder / "large.nii").stat().st_size
    assert size > 6 * MORE * MB
    done = child(folder, task, MORE * MB)
    assert done.returncode == 0, done.stderr
    allowed, used = map(int, done.stdout.split())
    assert used < allowed
    found = np.load(folder / f"{task}.npz")
    small = nib.load(next((folder / f"small-out-{task}").glob("*ADC*dwimap.nii.gz")))
    assert found["ADC"].shape == (4, 3, 2)
    np.testing.assert_array_equal(found["ADC"], np.asarray(small.dataobj))
    assert (found["ADC"] > 0.3).all()


@pytest.mark.slow
@NEEDS_LINUX
def test_the_limit_is_one_that_the_image_would_break(folder):
    done = child(folder, "whole", MORE * MB)
    assert done.returncode != 0
    assert "MemoryError" in done.stderr or "Cannot allocate memory" in done.stderr
