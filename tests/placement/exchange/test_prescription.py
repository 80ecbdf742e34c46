"""What is written of a voxel says the same everywhere, and what other programs read is the box."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dmrifit._utils.text_files import read_sealed
from dmrifit.imaging.head_steps import HeadSpan
from placement.box.voxel import Voxel, rotation_of
from placement.exchange.prescription import (
    LARGEST_TUMOR_ML,
    advice,
    describe_placement,
    describe_side,
    geometry_image,
    head_share,
    largest_box,
    target_verdict,
    write_prescription,
)
from placement.exchange.vendor_texts import NOTICE
from placement.exchange.voxel_files import read_voxel
from placement.search.objective import PlacementObjective, tumor_fraction
from placement.search.optimizer import VoxelOptimizer
from placement.search.scene import Scene
from placement.search.tissue_labels import OUTSIDE_BRAIN, UNCHECKED_BRAIN

VOXEL = Voxel((12.5, -8, 20), (22, 17, 30), (12, -20, 35))


@pytest.fixture(scope="module")
def scene(sphere_scene):
    make, points = sphere_scene
    return make(exclude={"wall": points[..., 0] > 50}, image=points[..., 0])


@pytest.fixture
def written(scene, tmp_path):
    return tmp_path, write_prescription(VOXEL, scene, tmp_path, ppm_range=(-2, 2), percent_per_ppm=3)


def test_the_single_voxel_image_is_the_box_in_both_forms_of_its_header_near_half_a_turn_too(written):
    image = nib.load(written[0] / "voxel_geometry.nii.gz")
    affine = VOXEL.canonical().affine
    assert image.shape == (1, 1, 1)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    np.testing.assert_allclose(image.header["pixdim"][1:4], VOXEL.canonical().size, atol=1e-5)
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    assert np.linalg.det(image.affine[:3, :3]) > 0
    # Single precision leaves half of the digits of a quaternion there.
    for axis in np.random.default_rng(0).standard_normal((50, 3)):
        turn = Rotation.from_rotvec(np.radians(179.9) * axis / np.linalg.norm(axis)).as_matrix()
        voxel = Voxel.from_rotation((1, 2, 3), (20, 30, 60), turn)
        image = geometry_image(voxel)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        sides = np.array(image.header.get_zooms(), dtype=np.float64)
        read = Voxel.from_rotation(image.affine[:3, 3], sides, image.affine[:3, :3] / sides)
        assert read.dice(voxel) > 1 - 1e-5


def test_masks_lie_on_the_grid_and_hold_the_volume_of_the_box(written, scene):
    mask, partial = (nib.load(written[0] / f"voxel_{name}.nii.gz") for name in ("mask", "partial"))
    np.testing.assert_allclose(mask.affine, scene.affine)
    assert mask.shape == partial.shape == scene.shape
    assert mask.get_data_dtype() == np.uint8
    assert partial.get_fdata().sum() * scene.voxel_volume == pytest.approx(VOXEL.volume, rel=5e-3)
    assert mask.get_fdata().sum() * scene.voxel_volume == pytest.approx(VOXEL.volume, rel=0.03)


def test_all_descriptions_of_the_pose_agree(written):
    content = read_sealed(written[0] / "voxel.json")
    assert content == json.loads(json.dumps(written[1]))
    flip = np.diag([-1, -1, 1])
    for frame, change in (("ras", np.eye(3)), ("lps", flip)):
        pose = content[frame]
        rotation = np.array(pose["rotation"])
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(Rotation.from_euler("XYZ", pose["angles_deg"], degrees=True).as_matrix(), rotation)
        w, *xyz = pose["quaternion_wxyz"]
        np.testing.assert_allclose(Rotation.from_quat([*xyz, w]).as_matrix(), rotation, atol=1e-12)
        box = Voxel.from_rotation(change @ pose["center_mm"], content["size_mm"], change @ rotation @ change)
        assert box.dice(VOXEL) == pytest.approx(1)


def test_files_say_that_they_are_not_for_clinical_use_and_read_back_as_the_box(written):
    folder, content = written
    assert content["notice"] == NOTICE == "Not for clinical use"
    assert NOTICE in (folder / "voxel_philips.txt").read_text()
    assert nib.load(folder / "voxel_geometry.nii.gz").header["descrip"].item().decode() == NOTICE
    for end in (".json", "_philips.txt", "_geometry.nii.gz"):
        voxel = read_voxel(folder / f"voxel{end}")
        assert voxel.dice(VOXEL) > 0.9999
        if end != "_geometry.nii.gz":
            np.testing.assert_allclose(voxel.size, VOXEL.size)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (30, "30.0 mm to the patient's right of the isocenter"),
        (-30, "30.0 mm to the patient's left of the isocenter"),
        (1e-3, "its center lies at x = 0, that of the isocenter"),
        (-4, "crosses x = 0, its center 4.0 mm to the patient's left"),
    ],
)
def test_the_side_of_a_box_is_said_in_words(x, words):
    assert words in describe_side(Voxel((x, 0, 0), (20, 20, 20)))


@pytest.mark.parametrize(("x", "reach"), [(-120, ""), (-10, "(x from 40 to 180 mm)"), (-230, "(x from -180 to -40 mm)")])
@pytest.mark.parametrize("source", ["image", "brain"])
def test_no_side_is_claimed_where_the_middle_of_the_scanner_is_outside_the_head(source, x, reach):
    grid = np.indices((60, 40, 40)) - np.array([30, 20, 20])[:, None, None, None]
    head = (grid**2).sum(axis=0) < 18**2
    tumor = ((grid - np.array([8, 0, 0])[:, None, None, None]) ** 2).sum(axis=0) < 8**2
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    # Empty space beside the head reaches x = 0.
    affine[:3, 3] = (x, -80, -80)
    scene = Scene(tumor, affine, brain_margin=0, **{source: head.astype(float)})
    side = describe_placement(Voxel(scene.centroid, (20, 20, 20)), scene)["side"]
    assert ("x = 0 is not in this head" in side) is bool(reach)
    assert reach in side
    assert HeadSpan.of(np.zeros((3, 3, 3)), affine) == (-np.inf, np.inf)


def test_a_head_is_counted_with_cavities_inside_the_image_and_its_span_on_fine_grids_too():
    values = np.zeros((40, 40, 40))
    values[10:40, 5:35, 5:35] = 1.0
    values[20:25, 15:25, 15:25] = 0.0
    for x, share in ((22, 1.0), (9.5, 0.5), (3, 0.0), (39.5, 0.5)):
        assert head_share(Voxel((x, 20, 20), (10, 10, 10)), values, np.eye(4)) == pytest.approx(share, abs=0.01)
    values = np.zeros((300, 20, 20))
    values[50:240] = 1.0
    np.testing.assert_allclose(HeadSpan.of(values, np.diag([-1.0, 1.0, 1.0, 1.0])), (-239.5, -49.5))


def test_all_files_say_as_long_as_what_they_are_valid(scene, tmp_path):
    scene.sources = {"Tumor": {"Name": "t1_tumor.nii.gz", "SHA256": "0"}}
    content = write_prescription(VOXEL, scene, tmp_path, figure=False)
    scene.sources = {}
    assert "lies as in t1_tumor.nii.gz (frame of reference unknown, date unknown)" in content["valid"]
    for vendor in ("philips", "siemens"):
        assert content["valid"] in (tmp_path / f"voxel_{vendor}.txt").read_text()


def test_scores_and_flags_are_those_of_the_given_constraints(scene):
    objective = PlacementObjective(mean_volume=10)
    found = describe_placement(VOXEL, scene, optimizer=VoxelOptimizer(objective, max_rotations=1, min_volume=20))
    assert found["scores"]["objective"] == pytest.approx(objective(VOXEL, scene))
    assert found["scores"]["tumor_fraction"] == pytest.approx(tumor_fraction(VOXEL, scene))
    assert found["objective"]["mean_volume"] == 10
    assert (found["flags"], found["feasible"]) == (["box below the smallest volume", "too many rotations"], False)
    assert "side at its limit" not in describe_placement(Voxel(VOXEL.center, (10, 25, 25)), scene)["flags"]
    flags = [f"reaches {OUTSIDE_BRAIN}", UNCHECKED_BRAIN, f"tumor above {LARGEST_TUMOR_ML:g} mL"]
    assert all(f"{flag}: " in text for flag, text in zip(flags, advice(flags), strict=True))


def test_digests_tell_scenes_apart(scene):
    one = describe_placement(VOXEL, scene)["tumor"]["sha256"]
    assert one == describe_placement(Voxel((0, 0, 0), (10, 10, 10)), scene)["tumor"]["sha256"]
    other = Scene(scene.tumor, scene.affine)
    assert one != describe_placement(VOXEL, other)["tumor"]["sha256"]
    region = scene.forbidden
    strict, lenient = (Scene(scene.tumor, scene.affine, exclude=region, exclude_tolerance=part) for part in (0, 0.1))
    told = [describe_placement(VOXEL, tolerating) for tolerating in (strict, lenient)]
    assert told[0]["tumor"]["sha256"] == one != told[1]["tumor"]["sha256"]
    assert [found["regions"]["wall"]["tolerance"] for found in told] == [0, 0.1]


def test_nothing_is_replaced_unasked(written, scene):
    with pytest.raises(FileExistsError, match="overwrite"):
        write_prescription(VOXEL, scene, written[0])
    write_prescription(VOXEL, scene, written[0], overwrite=True, figure=False)
    assert not (written[0] / "voxel_overlay.png").exists()


def ball(radius, shape=(60, 60, 60)):
    index = np.moveaxis(np.indices(shape), 0, -1)
    return np.linalg.norm(index - np.array(shape) / 2, axis=-1) < radius


@pytest.fixture(scope="module")
def small():
    """Make a tumor of 1.8 mL."""
    return Scene(ball(7.5), np.eye(4), name="small")


def test_a_small_tumor_gets_no_numbers_but_the_largest_box_of_enough_target(small):
    optimizer = VoxelOptimizer(size_range=(14, 60), random_state=0)
    placement = optimizer.placement(small)
    assert placement.tumor_fraction < 0.35
    reason = target_verdict(placement, optimizer)
    assert reason.startswith("no box of ≥ 6 mL reaches 50 % target: ask a spectroscopist")
    # The command that is named leads to the box.
    numbers = re.search(r" --out BOX_largest --center=(.*) --size=(.*) --angles=(.*)\), flagged: (.*)$", reason).groups()
    assert {"box below the smallest volume", "side out of range"} <= set(numbers[3].split(", "))
    largest = Voxel(*(tuple(map(float, text.split(","))) for text in numbers[:3]))
    assert 0.75 <= tumor_fraction(largest, small) < 0.765
    # The ball's inscribed cube has 0.65 mL, and holds nothing but tumor.
    assert 0.65 < largest.volume < 1.8 / 0.75
    assert f"{largest.volume:.1f} mL" in reason


def test_verdicts_deny_no_better_box_and_name_none_where_none_holds_enough():
    optimizer = VoxelOptimizer(random_state=0)
    placement = optimizer.placement(Scene(ball(18), np.eye(4)))
    assert target_verdict(placement, optimizer) == ""
    scene = Scene(ball(18), np.eye(4))
    poor = optimizer.placement(scene).voxel
    away = type(poor)(poor.center + np.array([22, 0, 0]), poor.size, poor.angles)
    reason = target_verdict(optimizer.assess(away, scene), optimizer)
    assert "one of ≥ 6 mL with 100 % was found, and breaks no other constraint: take that one (dmrifit-placement prescribe TUMOR OPTIONS --out BOX --center=" in reason
    # What is printed keeps the limits, too.
    numbers = re.search(" --center=(.*?) --size=(.*?) --angles=(.*?)\\)", reason).groups()
    named = Voxel(*(tuple(map(float, text.split(","))) for text in numbers))
    assert VoxelOptimizer().assess(named, scene).feasible
    threads = np.zeros((40, 40, 40), bool)
    threads[18:22, 5:35, 20] = True
    assert largest_box(Scene(threads, np.eye(4))) is None


def test_a_better_box_that_is_not_placed_says_what_it_breaks():
    index = np.moveaxis(np.indices((70, 70, 70)), 0, -1) - 35.0
    slab = Scene((np.abs(index @ rotation_of((30, 30, 30))) <= (20, 20, 3)).all(axis=-1), np.eye(4))
    optimizer = VoxelOptimizer(max_rotations=0, random_state=0)
    placement = optimizer.placement(slab)
    reason = target_verdict(placement, optimizer)
    assert placement.tumor_fraction < 0.5
    assert f"{100 * placement.tumor_fraction:.0f} % of the box is target; one of ≥ 6 mL with " in reason
    assert "but breaks what this box keeps (" in reason
    assert "side out of range: change the side, or let place allow it (--sides)" in reason
    assert "too many rotations: turn it by fewer angles, name its sides in another order, or let" in reason
    # Taken at its word: with these constraints loosened, most of the box is target.
    loose = VoxelOptimizer(size_range=(5, 60), max_rotations=3, max_aspect=None, random_state=0)
    assert loose.placement(slab).tumor_fraction > 0.5
