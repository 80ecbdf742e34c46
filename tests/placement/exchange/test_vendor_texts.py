"""Console numbers read back as the box, by readers made of other rules than the writers."""

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from placement import Voxel, read_voxel
from placement.exchange.vendor_texts import (
    NOTICE,
    UNVERIFIED_PLANES,
    console_angles,
    philips_text,
    siemens_orientation,
    siemens_text,
)

LPS = np.diag([-1.0, -1.0, 1.0])
AXES = {"S": 0, "C": 1, "T": 2}
#: Direction of phase encoding of an unturned plane, as a vector product with the normal: of the
#: transverse and the coronal plane with the patient's x and z, of the sagittal plane with z.
UNTURNED = {
    "T": lambda n: np.cross(n, [1.0, 0, 0]),
    "C": lambda n: np.cross(n, [0, 0, 1.0]),
    "S": lambda n: np.cross([0, 0, 1.0], n),
}


def random_boxes(n, seed):
    rng = np.random.default_rng(seed)
    for rotation in Rotation.random(n, random_state=rng).as_matrix():
        sides = rng.permutation([15.0, 22.0, 31.0]) + rng.uniform(-2, 2, 3)
        yield Voxel.from_rotation(rng.uniform(-60, 60, 3), sides, rotation)


def farthest_corner(voxel, other):
    return np.linalg.norm(voxel.corners[:, None] - other.corners[None], axis=2).min(axis=1).max()


def read_siemens(text):
    """Build the box by tilting the main plane: rotations, where the writer uses sines."""
    fields = dict(line.split(" : ") for line in text.splitlines() if not line.startswith("!"))
    signs = {"L": 1, "R": -1, "P": 1, "A": -1, "H": 1, "F": -1}
    parts = fields["position"].split()
    center = [signs[letter] * float(number) for letter, number in zip(parts[::2], parts[1::2], strict=True)]
    main, *tilts = fields["orientation"].split(" > ")
    normal = np.eye(3)[AXES[main]]
    directions = {letter: np.eye(3)[axis] for letter, axis in AXES.items()}
    for tilt in reversed(tilts):
        letter, degrees = tilt.split()
        # A tilt toward a plane turns the main normal away from that plane's axis.
        axis = np.cross(directions[letter], directions[main])
        normal = Rotation.from_rotvec(np.radians(float(degrees)) * axis).apply(normal)
    if main == "S":
        normal = -normal
    unturned = UNTURNED[main](normal)
    unturned /= np.linalg.norm(unturned)
    phase = Rotation.from_rotvec(-np.radians(float(fields["rotation"])) * normal).apply(unturned)
    rotation = LPS @ np.column_stack([np.cross(normal, phase), phase, -normal])
    size = [float(fields[name]) for name in ("readout_fov", "phase_fov", "thickness")]
    return Voxel.from_rotation(LPS @ center, size, rotation)


@pytest.mark.parametrize(("decimals", "limit"), [(3, 0.005), (1, 0.15)])
def test_numbers_of_siemens_and_philips_read_back_as_the_box(decimals, limit, tmp_path):
    farthest = [
        farthest_corner(voxel, read_siemens(siemens_text(voxel, decimals=decimals)))
        for voxel in random_boxes(1000, seed=31)
    ]
    assert max(farthest) <= limit
    path = tmp_path / "voxel_philips.txt"
    for voxel in random_boxes(1000, seed=32):
        path.write_text(philips_text(voxel, decimals=decimals))
        again = read_voxel(path)
        assert farthest_corner(voxel, again) <= limit
        np.testing.assert_allclose(again.size, voxel.size, atol=10.0**-decimals)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        # Printed by a scanner: mvpa.blogspot.com/2016/09/multiband-acquisition-sequence-testing.html
        ("T > C -23.9 > S 4.5", (-0.07818081918, 0.4036100151, 0.9115847274)),
        ("T > S 6.3 > C -3.8", (-0.1087323357, 0.06708937544, 0.9918045649)),
        ("T", (0, 0, 1)),
        ("C", (0, -1, 0)),
        ("S", (1, 0, 0)),
        ("T > C 10.0", (0, -np.sin(np.radians(10)), np.cos(np.radians(10)))),
        # Ties go to the transverse, then to the coronal plane.
        ("T > C -45.0", (0, 0.5**0.5, 0.5**0.5)),
        ("C > S -45.0", (0.5**0.5, 0.5**0.5, 0)),
    ],
)
def test_orientations_are_named_as_scanners_name_them(text, normal):
    assert siemens_orientation(np.array(normal, dtype=float)) == text
    assert siemens_orientation(-np.array(normal, dtype=float)) == text


def test_numbers_of_a_scan_come_back_as_they_were(data_dir):
    boxes = data_dir / "mrs_boxes"
    name = "UnEdited_with_MM_data__sub-01_ses-01_press__sub-01_ses-01_PRESS_raw-act_noID.SPAR"
    written = philips_text(read_voxel(boxes / "spar" / name))
    for line in (boxes / "spar" / name).read_text().splitlines():
        key, _, number = line.partition(" : ")
        if key.endswith(("_size", "_off_center", "_angulation")):
            assert f"{key} : {float(number):.3f}" in written
    text = siemens_text(read_voxel(boxes / "siemens_svs_30.rda"))
    assert "position : L 41.603 P 21.569 F 4.959" in text
    # The header's turn in the plane is -165.768 degrees: half a turn more is the same box.
    assert "rotation : 14.232" in text


def test_each_text_counts_the_angles_of_half_a_degree_or_more_in_it():
    boxes = list(random_boxes(300, seed=33))
    boxes += [Voxel((1, 2, 3), (20, 21, 22), angles) for angles in ((0.4, 0, 0), (12, 0, 0), (0, -20, 7), (10, 20, 0))]
    for voxel in boxes:
        n_angles = console_angles(voxel)
        philips, siemens = philips_text(voxel), siemens_text(voxel)
        numbers = re.findall(r"_angulation : (.*)", philips)
        assert len(numbers) == 3
        assert n_angles["philips"] == sum(abs(float(number)) >= 0.5 for number in numbers)
        tilts = re.findall(r"> [SCT] (\S+)", siemens)
        turn = re.search(r"rotation : (.*)", siemens)[1]
        assert n_angles["siemens"] == sum(abs(float(number)) >= 0.5 for number in [*tilts, turn])
        for text, count in ((philips, n_angles["philips"]), (siemens, n_angles["siemens"])):
            assert f"! angles to set: {count} of 3" in text
    assert [list(console_angles(voxel).values()) for voxel in boxes[-4:]] == [[n, n] for n in (0, 1, 2, 2)]


def test_the_order_of_sides_is_kept_and_planes_never_seen_on_a_scanner_say_so():
    voxel = Voxel((1, 2, 3), (20, 30, 15), (0, 0, 80))
    assert "lr_size : 20.000" in philips_text(voxel)
    assert "readout_fov : 20.000" in siemens_text(voxel)
    assert np.allclose(voxel.canonical().size, (30, 20, 15))
    assert UNVERIFIED_PLANES not in siemens_text(Voxel((0, 0, 0), (20, 20, 20)))
    assert UNVERIFIED_PLANES in siemens_text(Voxel((0, 0, 0), (20, 20, 20), (80, 0, 0)))


@pytest.mark.parametrize("write", [philips_text, siemens_text])
def test_texts_say_how_long_they_are_valid(write):
    text = write(Voxel((0, 0, 0), (20, 20, 20)), valid="valid only while the patient lies as in T1")
    assert NOTICE in text
    assert "! valid only while the patient lies as in T1" in text
    assert "-0.0" not in text
