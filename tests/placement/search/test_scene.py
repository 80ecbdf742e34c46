import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation
from scipy.ndimage import gaussian_filter

from placement import Scene, Voxel, VoxelOptimizer
from placement.box.voxel import nearest_storage, reoriented, rotation_of
from placement.search.tissue_labels import named_labels


def ball(shape=(30, 32, 28), center=(15, 16, 14), radius=8):
    return np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - center, axis=-1) <= radius


def test_a_scene_keeps_the_tumor_where_it_is():
    affine = np.array([[-1.0, 0, 0, 20], [0, 2, 0, -30], [0, 0.5, 3, 5], [0, 0, 0, 1]])
    tumor = ball()
    scene = Scene(tumor, affine, name="case 7")
    np.testing.assert_array_equal(scene.tumor, tumor)
    np.testing.assert_array_equal(Scene(tumor[..., None], affine).tumor, tumor)
    assert scene.occupancy.shape == (17, 17, 17)
    assert scene.origin == (7, 8, 6)
    assert scene.tumor_volume == pytest.approx(tumor.sum() * 6 / 1000)
    np.testing.assert_allclose(scene.centroid, affine[:3, :3] @ (15, 16, 14) + affine[:3, 3])
    np.testing.assert_allclose(scene.spacing, [1, np.hypot(2, 0.5), 3])
    assert "case 7" in repr(scene)
    assert not scene.touches_border


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("value", [1, 255])
def test_two_values_are_a_mask_of_any_type(dtype, value):
    tumor = (ball() * value).astype(np.int32).astype(dtype)
    np.testing.assert_array_equal(Scene(tumor, np.eye(4)).tumor, ball())


def test_probabilities_count_as_parts():
    tumor = ball() * 0.25
    scene = Scene(tumor, np.eye(4))
    assert scene.tumor_volume == pytest.approx(ball().sum() * 0.25 / 1000)
    np.testing.assert_allclose(scene.tumor, tumor)


@pytest.mark.parametrize("scale", [1, 0.9999999])
def test_included_labels_are_tumor_and_excluded_ones_are_forbidden(scale):
    labels = ball().astype(np.float32) * 2
    labels[ball(radius=4)] = 4
    labels[ball(radius=2)] = 1
    labels = labels * np.float32(scale)
    scene = Scene(labels, np.eye(4), include=[4, 2], exclude=1, exclude_margin=2)
    np.testing.assert_array_equal(scene.tumor, ball() & ~ball(radius=2))
    np.testing.assert_array_equal(scene.forbidden["label 1"], ball(radius=2))
    assert scene.margins == {"label 1": 2.0}
    np.testing.assert_array_equal(Scene(labels, np.eye(4), include=1).tumor, ball(radius=2))
    named = Scene(labels, np.eye(4), labels={"necrosis": 1, "edema": 2, "enhancing": 4}, exclude=1, exclude_margin=2)
    np.testing.assert_array_equal(named.forbidden["label 1"], ball(radius=2))
    assert named.margins["label 1"] == 2
    exchanged = Scene(labels, np.eye(4), labels={"necrosis": 4, "edema": 2, "enhancing": 1}, include=1)
    assert exchanged.notes[0].startswith("100 % of enhancing (1) tissue lies inside necrosis (4)")


def test_stray_enhancing_voxels_leave_flair_bright_tissue_the_target():
    values = np.where(ball(radius=12), 2, 0)
    values[ball(radius=6)] = 1
    n_labeled = np.count_nonzero(values)
    values[4:9, 16, 14] = 4
    named = {"necrosis or non-enhancing": 1, "edema": 2, "enhancing": 4}
    options = {"affine": np.diag([1.4, 1.4, 1.4, 1]), "labels": named}
    stray = 5 * 1.4**3 / 1000
    scene = Scene(values, flair_target=True, **options)
    assert scene.tumor_volume == pytest.approx(n_labeled * 1.4**3 / 1000)
    (note,) = scene.notes
    limit = "less than the smallest volume of 6 mL (default of place --min-volume)"
    assert f"solid tumor (enhancing) has {stray:.2g} mL, {limit}" in note
    assert f"{scene.tumor_volume:.1f} mL" in note
    plain = Scene(values, **options)
    assert plain.tumor_volume == pytest.approx(stray)
    assert f"labeled, {limit}: --flair-target takes FLAIR-bright" in plain.notes[0]
    assert Scene(values, flair_target=True, min_volume=0.01, **options).tumor_volume == pytest.approx(stray)


def test_enhancing_tissue_inside_necrosis_is_told_on_real_tumors(data_dir):
    exchanged = {"necrosis": 4, "edema": 2, "non-enhancing": 3, "enhancing": 1}
    n_doubted = 0
    for folder in sorted((data_dir / "brats2013_deepmedic").glob("brats*")):
        file = folder / "OTMultiClass.nii.gz"
        doubt = [Scene.read(file, labels=names).notes for names in (named_labels("brats2013"), exchanged)]
        assert not any("inside necrosis" in note for note in doubt[0])
        n_doubted += any("tissue lies inside necrosis (4)" in note and "--labels" in note for note in doubt[1])
    # The third has more enhancing tissue within its necrosis than around it.
    assert n_doubted == 2
    # One label stands for necrosis and non-enhancing tumor in this scheme, which may surround
    # what enhances; read by the older scheme it would be necrosis.
    file = data_dir / "post_contrast" / "BraTS2021_01478_seg.nii.gz"
    assert not any("inside necrosis" in note for note in Scene.read(file, labels="brats2017").notes)
    assert any("inside necrosis" in note for note in Scene.read(file, labels="brats2013").notes)


def test_masks_to_stay_away_from_have_names_and_margins():
    # Of probabilities, what is above one half is excluded.
    wall = np.zeros(ball().shape)
    wall[:10], wall[10:12] = 0.55, 0.45
    corner = np.zeros(ball().shape, bool)
    corner[20:, 20:, 20:] = True
    regions = {"skull": wall, "vessel": corner}
    scene = Scene(ball(), np.eye(4), exclude=regions, exclude_margin={"skull": 3})
    assert scene.margins == {"skull": 3.0, "vessel": 0.0}
    assert scene.tolerances == {"skull": 0.0, "vessel": 0.0}
    assert Scene(ball(), np.eye(4), exclude=regions, exclude_tolerance=0.1).tolerances == {"skull": 0.1, "vessel": 0.1}
    np.testing.assert_array_equal(scene.forbidden["skull"], wall > 0.5)
    np.testing.assert_array_equal(scene.forbidden["vessel"], corner)
    union = scene.forbidden_in((-2, 5, 5), (30, 30, 30))
    np.testing.assert_array_equal(union[2:, :27, :23], ((wall > 0.5) | corner)[:28, 5:, 5:])
    assert not union[:2].any()
    np.testing.assert_array_equal(scene.forbidden_in((0, 0, 0), ball().shape, names=["skull"]), wall > 0.5)
    assert set(Scene(ball(), np.eye(4), exclude=[wall, corner]).forbidden) == {"region 1", "region 2"}
    assert set(Scene(ball(), np.eye(4), exclude=wall).forbidden) == {"exclude"}


def test_parts_of_a_tumor_are_ordered_by_volume_and_voxels_that_share_a_corner_are_one():
    tumor = ball(radius=3, center=(6, 6, 6)) | ball(radius=6, center=(20, 20, 18))
    scene = Scene(tumor, np.eye(4))
    np.testing.assert_allclose(
        scene.component_volumes, [ball(radius=6).sum() / 1000, ball(radius=3, center=(6, 6, 6)).sum() / 1000]
    )
    assert scene.component(Voxel((20, 20, 18), (5, 5, 5))) == 0
    assert scene.component(Voxel((6, 6, 6), (5, 5, 5))) == 1
    assert scene.component(Voxel((13, 6, 18), (3, 3, 3))) == -1
    tumor = np.zeros((20, 20, 20), bool)
    tumor[4:8, 4:8, 4:8] = tumor[8:11, 8:11, 8:11] = tumor[14:16, 14:16, 14:16] = True
    scene = Scene(tumor, np.eye(4))
    np.testing.assert_allclose(scene.component_volumes, [0.091, 0.008])
    assert scene.component(Voxel((5.5, 5.5, 5.5), (3, 3, 3))) == 0
    assert scene.component(Voxel((9, 9, 9), (3, 3, 3))) == 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [-1, 1])
def test_a_box_beyond_one_face_of_the_image_is_shifted_back_to_it(axis, side):
    # The faces of the image lie half a voxel beyond the middles of the outermost voxels.
    shape, spacing = np.array(ball().shape), np.array([2.0, 1.0, 3.0])
    scene = Scene(ball(), np.diag([*spacing, 1]))
    middle, half = (shape - 1) * spacing / 2, shape * spacing / 2
    step = np.eye(3)[axis] * side
    touching = middle + step * (half - 6)
    assert scene.holds(Voxel(touching, (12, 12, 12)))
    assert not scene.holds(Voxel(touching + 0.05 * step, (12, 12, 12)))
    moved = scene.moved_inside(Voxel(touching + 7.3 * step, (12, 12, 12)))
    np.testing.assert_allclose(moved.center, touching)


def test_a_tumor_at_the_border_and_unlikely_edges_are_told():
    tumor = np.zeros((20, 20, 20), bool)
    tumor[:5, 5:9, 5:9] = True
    with pytest.warns(UserWarning, match="glioma: the tumor reaches the border"):
        scene = Scene(tumor, np.eye(4), name="glioma")
    assert scene.touches_border
    with pytest.warns(UserWarning, match="check the affine"):
        Scene(ball(), np.diag([1.0, 1, 12, 1]))


@pytest.mark.parametrize("affine", [np.eye(4), np.array([[0, 0, 2.0, 3], [-1, 0, 0, 4], [0, 1, 0.5, 5], [0, 0, 0, 1]])])
def test_boxes_beyond_the_image_are_shifted_into_it(affine):
    shape = (40, 50, 60)
    tumor = np.zeros(shape, bool)
    tumor[10:20, 10:20, 10:20] = True
    scene = Scene(tumor, affine)
    for index in ((-3, 25, 30), (45, -9, 61), (20, 25, 30)):
        voxel = Voxel(affine[:3, :3] @ index + affine[:3, 3], (12, 10, 14), (10, 20, 30))
        moved = scene.moved_inside(voxel)
        assert scene.holds(moved)
        assert (moved.size == voxel.size).all()
        assert (moved.angles == voxel.angles).all()
        if scene.holds(voxel):
            assert moved == voxel
    long = Voxel(scene.centroid, (200, 200, 200))
    assert scene.moved_inside(long) == long


def with_corner(tumor, value):
    values = tumor.astype(float)
    values[0, 0, 0] = value
    return values


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_what_is_nan_is_outside_tumor_and_excluded_regions(share):
    wall = np.zeros(ball().shape)
    wall[:3] = share
    plain = Scene(share * ball(), np.eye(4), exclude=wall)
    scene = Scene(with_corner(share * ball(), np.nan), np.eye(4), exclude=with_corner(wall, np.nan))
    np.testing.assert_array_equal(scene.tumor, plain.tumor)
    assert scene.origin == plain.origin
    (region,), (expected,) = scene.forbidden.values(), plain.forbidden.values()
    expected[0, 0, 0] = False
    np.testing.assert_array_equal(region, expected)


def save(values, path, affine=None):
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def test_scenes_are_read_from_files(tmp_path):
    affine = np.diag([1.0, 1, 3, 1])
    tumor = save((ball() * 2 + ball(radius=3)).astype(np.uint8), tmp_path / "tumor.nii.gz", affine)
    csf = np.zeros(ball().shape, np.uint8)
    csf[:9] = 1
    csf = save(csf, tmp_path / "csf.nii.gz", affine)
    image = save(np.random.default_rng(0).random(ball().shape).astype(np.float32), tmp_path / "t1.nii.gz", affine)
    scene = Scene.read(tumor, {"csf": csf, "core": 3}, image, include=2, exclude_margin=1)
    csf, image = (nib.load(path).as_reoriented(turn) for path, turn in ((csf, STORAGES[13]), (image, STORAGES[30])))
    turned = Scene.read(tumor, {"csf": csf, "core": 3}, image, include=2, exclude_margin=1)
    np.testing.assert_array_equal(turned.forbidden["csf"], scene.forbidden["csf"])
    np.testing.assert_array_equal(turned.image, scene.image)
    np.testing.assert_array_equal(scene.tumor, ball() & ~ball(radius=3))
    np.testing.assert_array_equal(scene.forbidden["core"], ball(radius=3))
    assert scene.forbidden["csf"][:9].all()
    assert scene.image.shape == ball().shape
    assert scene.name == str(tumor)
    assert set(scene.sources) == {"Tumor", "Exclude", "Image"}
    assert Scene.read(nib.load(tumor), include=2, name="x").name == "x"


STORAGES = [
    np.column_stack([order, signs])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oblique(spacing, angles, offset):
    affine = np.eye(4)
    affine[:3, :3] = rotation_of(angles) * spacing
    affine[:3, 3] = offset
    return affine


AFFINES = {
    "cubic": np.diag([1.0, 1, 1, 1]),
    "thick": oblique([0.9, 0.9, 5.0], [0, 0, 0], [-31.5, 12, 3]),
    "oblique": oblique([1.0, 1.2, 2.0], [24, -11, 17], [-40, 22, 7]),
    "sheared": oblique([1.0, 1.0, 3.0], [0, 0, 0], [5, 6, 7])
    + np.array([[0, 0, 0, 0]] * 1 + [[0, 0, 0.8, 0]] + [[0] * 4] * 2),
    "diagonal": oblique([1.0, 1.0, 1.0], [0, 0, 45], [0, 0, 0]),
}


def stored(values, affine, storage):
    """Store an image with its axes in another order and direction, in a header of single precision."""
    matrix = reoriented(storage, affine, values.shape)
    return apply_orientation(values, storage), matrix.astype(np.float32).astype(float)


def lump(seed, shape=(48, 44, 40), threshold=0.75):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 5)
    noise[:3] = noise[-3:] = noise[:, :3] = noise[:, -3:] = noise[..., :3] = noise[..., -3:] = -9
    return noise > np.quantile(noise, threshold)


@pytest.mark.parametrize("name", AFFINES)
def test_all_storages_of_an_image_lead_to_the_same_arrays(name):
    affine = AFFINES[name]
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    results = []
    for storage in STORAGES:
        array, matrix = stored(values, affine, storage)
        results.append(stored(array, matrix, nearest_storage(matrix)))
    for array, matrix in results:
        np.testing.assert_array_equal(array, results[0][0])
        np.testing.assert_array_equal(matrix, results[0][1])
    assert (np.diag(results[0][1]) > 0).all()


def test_a_canonical_scene_is_the_same_scene():
    affine = AFFINES["oblique"]
    tumor = lump(0)
    exclude = lump(1, threshold=0.97)
    image = np.random.default_rng(0).normal(size=(*tumor.shape, 2))
    flipped, matrix = stored(tumor, affine, STORAGES[13])
    scene = Scene(
        flipped, matrix, exclude=apply_orientation(exclude, STORAGES[13]), image=apply_orientation(image, STORAGES[13])
    )
    canonical = scene.canonical
    assert canonical.canonical is canonical
    np.testing.assert_array_equal(canonical.tumor, tumor)
    np.testing.assert_array_equal(canonical.forbidden["exclude"], exclude)
    np.testing.assert_array_equal(canonical.image, image)
    # Positions are rounded to .001 mm.
    np.testing.assert_allclose(canonical.affine, affine, atol=1e-3)
    np.testing.assert_allclose(scene.centroid, Scene(tumor, affine).centroid, atol=1e-3)
    np.testing.assert_array_equal(scene.tumor, flipped)


@pytest.mark.parametrize("name", ["thick", "oblique", "diagonal"])
def test_some_storages_of_a_tumor_get_the_same_box(name):
    tumor = lump(2)
    for storage in STORAGES[::9]:
        placement = VoxelOptimizer(random_state=0).placement(Scene(*stored(tumor, AFFINES[name], storage)))
        if storage is STORAGES[0]:
            first = placement
        assert placement.voxel.dice(first.voxel) >= 0.98
        assert abs(placement.objective - first.objective) <= 1e-3


def upsampled(values, affine):
    """Halve the edges of image voxels; the tumor keeps its outline."""
    matrix = affine.copy()
    matrix[:3, :3] /= 2
    matrix[:3, 3] -= affine[:3, :3] @ np.full(3, 0.25)
    for axis in range(3):
        values = np.repeat(values, 2, axis=axis)
    return values, matrix


def cropped(values, affine, margin=12):
    """Cut out the surroundings of a tumor."""
    index = np.argwhere(values)
    low = np.maximum(index.min(axis=0) - margin, 0)
    high = index.max(axis=0) + margin + 1
    matrix = affine.copy()
    matrix[:3, 3] += affine[:3, :3] @ low
    return values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], matrix


def real_tumors(data_dir):
    for patient in ("0003", "0005", "0006"):
        image = nib.load(data_dir / "brats2013_deepmedic" / f"brats_2013_pat{patient}_1" / "OTMultiClass.nii.gz")
        labels = np.rint(image.get_fdata())
        for included in ((1, 2, 3, 4), (1, 3, 4)):
            yield cropped(np.isin(labels, included), image.affine)
    image = nib.load(data_dir / "brain_tumour_thick_slice_1" / "label.nii.gz")
    yield cropped(image.get_fdata() > 0.5, image.affine)


def simulated_tumors():
    shape = (90, 84, 76)
    yield lump(3, shape, 0.96), AFFINES["cubic"]
    yield lump(4, shape, 0.93), AFFINES["oblique"]
    yield lump(5, shape, 0.88), oblique([0.8, 0.9, 1.0], [-12, 30, 5], [0, 0, 0])


# The tie-break ends on a plateau of up to 3 % of the objective. The boxes of a thin lump turn about
# axes in another order than in most: searches without that order found others.
@pytest.mark.parametrize(("max_rotations", "max_aspect"), [(3, None), (2, None), (2, 2.5)])
def test_an_upsampled_tumor_gets_the_same_box(max_rotations, max_aspect):
    tumor = lump(2)
    placements = []
    for values, affine in ((tumor, AFFINES["oblique"]), upsampled(tumor, AFFINES["oblique"])):
        optimizer = VoxelOptimizer(max_rotations=max_rotations, max_aspect=max_aspect, random_state=0)
        placements.append(optimizer.placement(Scene(values, affine)))
    first, second = placements
    assert first.voxel.dice(second.voxel) >= 0.95
    assert abs(first.objective - second.objective) <= 5e-3


@pytest.mark.slow
def test_all_storages_of_ten_tumors_get_the_same_box(data_dir):
    tumors = [*real_tumors(data_dir), *simulated_tumors()]
    assert len(tumors) == 10
    optimizer = VoxelOptimizer(max_rotations=3, max_aspect=None, random_state=0)
    for tumor, affine in tumors:
        placements = []
        for storage in STORAGES:
            placements.append(optimizer.placement(Scene(*stored(tumor, affine, storage))))
        first = placements[0]
        for placement in placements:
            assert placement.voxel.dice(first.voxel) >= 0.98
            assert abs(placement.objective - first.objective) <= 1e-3
        fine = optimizer.placement(Scene(*upsampled(tumor, affine)))
        assert fine.voxel.dice(first.voxel) >= 0.95
