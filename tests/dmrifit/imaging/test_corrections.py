"""Denoising, Gibbs removal and motion correction, against known truth."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform
from scipy.ndimage import shift as shift_voxels
from scipy.spatial.transform import Rotation

from dmrifit.engine.models import MODELS
from dmrifit.engine.protocol import Protocol
from dmrifit.imaging import corrections
from dmrifit.imaging.corrections import correct_motion, remove_gibbs, rotate_directions

pytest.importorskip("dipy")

PROTOCOL = Protocol([0, 50, 100, 400, 900, 1200, 1600, 200, 600, 1000])
SIGMA = 5.0


def denoise(signals, **options):
    out = np.empty(signals.shape, np.float32)
    return out, corrections.denoise(signals, out, **options)


def without_ringing(signals, slice_axis=2, progress=lambda: None):
    clean = signals.astype(np.float32)
    remove_gibbs(clean, slice_axis, progress)
    return clean


@pytest.fixture(scope="module")
def clean():
    """A smooth synthetic object, from 400 down to 100 over the measurements."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (14, 12, 7)), indexing="ij")
    parameters = np.stack([400 + 50 * x + 30 * y * z, 0.9 + 0.2 * y - 0.1 * x], axis=-1)
    return MODELS["adc"].signal(parameters.reshape(-1, 2), PROTOCOL).reshape(14, 12, 7, len(PROTOCOL))


def test_noise_falls_to_a_level_that_is_found_and_what_is_outside_the_mask_or_not_finite_stays(clean):
    rng = np.random.default_rng(0)
    noisy = np.hypot(clean + SIGMA * rng.normal(size=clean.shape), SIGMA * rng.normal(size=clean.shape))
    denoised, sigma = denoise(noisy)
    assert denoised.dtype == sigma.dtype == np.float32
    before, after = (np.sqrt(np.mean((signals - clean) ** 2)) for signals in (noisy, denoised))
    assert after < 0.6 * before
    assert np.median(sigma) == pytest.approx(SIGMA, rel=0.1)
    assert sigma.shape == noisy.shape[:3]
    mask = np.zeros(noisy.shape[:3], bool)
    mask[:7] = True
    broken = noisy.copy()
    broken[3, 3, 3, 2] = np.nan
    denoised, sigma = denoise(broken, mask=mask)
    np.testing.assert_array_equal(denoised[7:], broken[7:].astype(np.float32))
    np.testing.assert_array_equal(denoised[3, 3, 3], broken[3, 3, 3].astype(np.float32))
    changed = (denoised != broken.astype(np.float32)).any(axis=-1)
    changed[3, 3, 3] = False  # NaN differs from itself
    assert changed[:7].mean() > 0.99
    assert not changed[7:].any()
    assert np.isfinite(sigma).all()
    assert (sigma > 0).all()


@pytest.mark.parametrize("shape", [(14, 12, 2, 10), (14, 12, 1, 10), (5, 5, 5, 10), (9, 9, 3, 40)])
def test_thin_images_are_denoised(shape):
    denoised, sigma = denoise(100 + 3 * np.random.default_rng(1).normal(size=shape))
    assert denoised.shape == shape
    assert np.median(sigma) == pytest.approx(3, rel=0.35)


def ringing(n=64):
    """A box measured with a quarter of its frequencies: it rings."""
    box = np.zeros((2 * n, 2 * n))
    box[n // 2 : 3 * n // 2, n // 2 : 3 * n // 2] = 100
    spectrum = np.fft.fftshift(np.fft.fft2(box))[n // 2 : 3 * n // 2, n // 2 : 3 * n // 2]
    return np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum))) / 4


def test_ringing_falls_in_the_slices_of_the_axis_named_and_a_hole_spoils_nothing_else():
    rung = ringing()
    volume = np.stack([rung, 0.5 * rung], axis=-1)[:, None, :, :]
    clean = without_ringing(volume, slice_axis=1)
    inside = (slice(20, 44), 0, slice(20, 44))
    assert clean[inside][..., 0].std() < 0.5 * volume[inside][..., 0].std()
    np.testing.assert_allclose(clean[inside].mean(axis=(0, 1)), [100, 50], rtol=0.01)
    assert (clean >= 0).all()
    rung = ringing()[:, :, None, None] * np.ones(2)
    broken = rung.copy()
    broken[10, 10, 0, 0] = np.nan
    calls = []
    clean = without_ringing(broken, progress=lambda: calls.append(1))
    assert np.argwhere(np.isnan(clean)).tolist() == [[10, 10, 0, 0]]
    np.testing.assert_array_equal(clean[..., 1], without_ringing(rung)[..., 1])
    assert len(calls) == 2
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2, not 3"):
        without_ringing(rung, slice_axis=3)


def moved(volume, affine, angles, shift):
    """Move an image about its center; return it with the map from old to new world coordinates."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    center = (affine @ [*(np.array(volume.shape) - 1) / 2, 1])[:3]
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, center - turn @ center + shift
    back = np.linalg.inv(affine) @ np.linalg.inv(transform) @ affine
    return affine_transform(volume, back[:3, :3], back[:3, 3], order=1), transform


def test_a_real_head_that_was_moved_returns(data_dir):
    loaded = nib.load(data_dir / "dipy_small_dwi" / "aniso_vox.nii.gz")
    head, affine = loaded.get_fdata(), loaded.affine
    turned, truth = moved(head, affine, (2, -1, 3), (3, -2, 2.5))
    # Another contrast, as another b-value has; and a shift by less than half a slice, which loses none.
    shifted = shift_voxels(head, (0, 0, 0.4), order=1, mode="nearest")
    signals = np.stack([head, np.sqrt(np.maximum(turned, 0)) * 20, shifted], axis=-1)
    corrected = signals.astype(np.float32)
    transforms = correct_motion(corrected, affine, 0, None, lambda: None)
    places = np.column_stack([np.argwhere(head > 200), np.ones(np.count_nonzero(head > 200))]) @ affine.T

    def apart(one, other):
        return np.linalg.norm((places @ (one - other).T)[:, :3], axis=1).mean()

    assert apart(truth, np.eye(4)) > 4
    assert apart(truth, transforms[1]) < 0.6
    np.testing.assert_array_equal(corrected[..., 0], head.astype(np.float32))
    np.testing.assert_array_equal(transforms[0], np.eye(4))
    np.testing.assert_allclose(transforms[1][:3, :3] @ transforms[1][:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(corrected[..., 2].mean((0, 1)), head.mean((0, 1)), rtol=0.1)
    outside = np.isnan(corrected[..., 1])
    assert 0 < outside.mean() < 0.2
    target = np.sqrt(head) * 20
    seen = ~outside & (head > 200)
    assert (
        np.corrcoef(corrected[..., 1][seen], target[seen])[0, 1]
        > np.corrcoef(signals[..., 1][seen], target[seen])[0, 1]
    )


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_directions_turn_back_with_the_image(flips):
    """A direction that is fixed to the body is the same after correction, in whatever way the image is stored."""
    rng = np.random.default_rng(0)
    oblique = Rotation.from_euler("xyz", (20, -35, 10), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag(flips) * [2.0, 2.0, 3.0]
    turn = Rotation.from_euler("xyz", (5, 8, -12), degrees=True).as_matrix()
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, (3, 4, 5)
    fixed_to_body = rng.normal(size=(6, 3))
    fixed_to_body /= np.linalg.norm(fixed_to_body, axis=1, keepdims=True)
    # While the body was turned, the scanner's gradient pointed along `turn @ v`, in the world.
    in_world = fixed_to_body @ turn.T
    axes = oblique @ np.diag(flips) @ np.diag([-1 if np.prod(flips) > 0 else 1, 1, 1])
    written, expected = in_world @ axes, fixed_to_body @ axes
    found = rotate_directions(written, np.tile(transform, (6, 1, 1)), affine)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(rotate_directions(np.zeros((1, 3)), transform[None], affine), 0)
