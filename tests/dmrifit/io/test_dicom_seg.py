"""Segmentations land on the voxels of the series that the labels were made on, to the eyes of other readers."""

import json
import re

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage, generate_uid
from scipy.spatial.transform import Rotation

from dmrifit import write_dicom_seg
from dmrifit.io.components import label_components

pytest.importorskip("highdicom")

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS+
SHAPE, SPACING, ORIGIN = (8, 16, 5), (1.5, 2.0, 4.0), (-30.0, 12.0, 55.0)  # columns, rows, slices; LPS+
OBLIQUE = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix()
NAME = "Synthetic^Person"


def write_series(folder, rotation=OBLIQUE, *, n_volumes=1, skip=(), order=1, **changes):
    """Write a synthetic series; give its affine to RAS+ from the pose that it was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    shared |= {"FrameOfReferenceUID": generate_uid(), "PatientName": NAME, "PatientID": "synthetic-1"}
    shared |= {"SOPClassUID": MRImageStorage, "Modality": "MR", "SeriesNumber": 3}
    shared |= {"Columns": SHAPE[0], "Rows": SHAPE[1], "PixelSpacing": [SPACING[1], SPACING[0]]}
    shared |= {"SliceThickness": SPACING[2], "ImageOrientationPatient": np.round(rotation[:, :2].T.ravel(), 9).tolist()}
    shared |= {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16}
    shared |= {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0}
    shared |= changes
    number = 0
    for _ in range(n_volumes):
        for k in list(range(SHAPE[2]))[::order]:
            number += 1
            if k in skip:
                continue
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            for key, value in shared.items():
                if value is not None:
                    setattr(image, key, value)
            image.SOPInstanceUID, image.InstanceNumber = generate_uid(), number
            image.ImagePositionPatient = np.round(ORIGIN + k * SPACING[2] * rotation[:, 2], 6).tolist()
            image.PixelData = np.full(SHAPE[0] * SHAPE[1], k, dtype=np.uint16).tobytes()
            image.save_as(folder / f"{number:03}", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * SPACING, ORIGIN
    return RAS @ affine


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom") / "series"
    return folder, write_series(folder)


def random_labels(seed=0, top=2):
    """Labels in a part of the volume, so that some slices are empty."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:6, 3:12, 1:4] = np.random.default_rng(seed).integers(0, top + 1, (5, 9, 3))
    return labels


def world(labels, affine, label):
    """Places of voxels in RAS+ mm, by nibabel, in order."""
    return ordered(nib.affines.apply_affine(affine, np.argwhere(labels == label)))


def ordered(points):
    return points[np.lexsort(np.round(points, 2).T)]


def places_by_hand(path, segment):
    """Places of voxels of a segment in RAS+ mm, from the bytes and formula C.7.6.2.1-1 of the standard alone."""
    held = pydicom.dcmread(path)
    shape = (int(held.NumberOfFrames), held.Rows, held.Columns)
    bits = np.unpackbits(np.frombuffer(held.PixelData, dtype=np.uint8), bitorder="little")
    frames = bits[: np.prod(shape)].reshape(shape)
    shared = held.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    along_row, along_column = np.array(orientation, dtype=float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for frame, group in zip(frames, held.PerFrameFunctionalGroupsSequence, strict=True):
        told = group if "SegmentIdentificationSequence" in group else shared
        if told.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for row, column in np.argwhere(frame):
            found.append(start + along_row * between_columns * column + along_column * between_rows * row)
    return ordered(np.array(found) * [-1, -1, 1])


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "SPR", "AIL"])
def test_each_voxel_is_where_nibabel_has_it_however_the_axes_are_turned(series, tmp_path, codes):
    folder, affine = series
    labels = random_labels()
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
    image = nib.Nifti1Image(labels, affine).as_reoriented(turn)
    turned = np.asarray(image.dataobj)
    segments = write_dicom_seg(turned, image.affine, tmp_path / "seg.dcm", source=folder)
    assert segments == {1: "lesion 1", 2: "lesion 2"}
    for number in segments:
        assert_allclose(places_by_hand(tmp_path / "seg.dcm", number), world(turned, image.affine, number), atol=1e-4)


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE, np.diag([1.0, -1.0, -1.0])])
def test_simpleitk_finds_each_voxel_at_its_place(tmp_path, rotation):
    sitk = pytest.importorskip("SimpleITK")
    affine = write_series(tmp_path / "series", rotation)
    # ITK's own reading of the series is where the labels are made.
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "scan.nii.gz"))
    scan = nib.load(tmp_path / "scan.nii.gz")
    labels = (random_labels() > 0).astype(np.uint8)
    assert labels.shape == scan.shape
    write_dicom_seg(labels, scan.affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))
    found = np.argwhere(sitk.GetArrayFromImage(image))
    points = [image.TransformIndexToPhysicalPoint(place[::-1].tolist()) for place in found]
    assert_allclose(ordered(np.array(points) * [-1, -1, 1]), world(labels, scan.affine, 1), atol=1e-3)
    assert_allclose(world(labels, affine, 1), world(labels, scan.affine, 1), atol=1e-3)


def test_a_part_of_the_volume_is_put_into_its_place(series, tmp_path):
    folder, affine = series
    labels = random_labels()
    image = nib.Nifti1Image(labels, affine).slicer[1:6, 2:13, 1:4]
    write_dicom_seg(np.asarray(image.dataobj), image.affine, tmp_path / "seg.dcm", source=folder)
    assert_allclose(places_by_hand(tmp_path / "seg.dcm", 1), world(labels, affine, 1), atol=1e-4)


def test_frames_name_the_source_image_of_their_plane(tmp_path):
    # Two volumes, acquired from the last slice to the first: the first volume stands for both.
    affine = write_series(tmp_path / "series", n_volumes=2, order=-1)
    labels = random_labels(top=1)
    write_dicom_seg(labels, affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    images = [pydicom.dcmread(path) for path in (tmp_path / "series").iterdir()]
    first = {one.SOPInstanceUID: one for one in images if one.InstanceNumber <= SHAPE[2]}
    held = pydicom.dcmread(tmp_path / "seg.dcm")
    assert held.NumberOfFrames == 3
    for group in held.PerFrameFunctionalGroupsSequence:
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert_allclose(
            np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float),
            np.array(first[uid].ImagePositionPatient, dtype=float),
        )
    indices = [
        list(group.FrameContentSequence[0].DimensionIndexValues) for group in held.PerFrameFunctionalGroupsSequence
    ]
    assert indices == sorted(indices)


def test_identity_is_that_of_the_source_and_codes_are_those_of_the_kind(series, tmp_path):
    folder, affine = series
    source = pydicom.dcmread(folder / "001")
    types = {"lesion": "52988006", "metastasis": "14799000", "tumor": "108369006", "voxel": "130488"}
    for kind, code in types.items():
        path = tmp_path / f"{kind}.dcm"
        write_dicom_seg(
            random_labels(), affine, path, source=folder, kind=kind, names={2: "left"}, manual=kind == "voxel"
        )
        held = pydicom.dcmread(path)
        assert held.SOPClassUID == SegmentationStorage
        assert held.SegmentationType == "BINARY"
        for key in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert held[key].value == source[key].value
        assert held.SeriesInstanceUID != source.SeriesInstanceUID
        assert "not for clinical use" in held.ContentDescription
        one, two = held.SegmentSequence
        assert one.SegmentedPropertyTypeCodeSequence[0].CodeValue == code
        assert (one.SegmentLabel, two.SegmentLabel) == (f"{kind} 1", "left")
        assert one.SegmentAlgorithmType == ("MANUAL" if kind == "voxel" else "AUTOMATIC")


def test_separate_regions_have_the_numbers_of_lesion_tables(series, tmp_path):
    folder, affine = series
    labels = np.zeros(SHAPE, dtype=np.uint8)
    # The last two touch at a corner.
    labels[0:2, 0:2, 0], labels[4:6, 8:11, 2], labels[6, 11, 3] = 1, 2, 1
    parts = label_components(labels, affine=affine)
    assert (parts[0, 0, 0], parts[6, 11, 3]) == (2, 1)
    segments = write_dicom_seg(labels, affine, tmp_path / "seg.dcm", source=folder, separate=True)
    assert list(segments) == [1, 2]
    for number in segments:
        assert_allclose(places_by_hand(tmp_path / "seg.dcm", number), world(parts, affine, number), atol=1e-4)


def test_a_stretched_or_shifted_grid_is_refused_with_a_remedy(series, tmp_path):
    folder, affine = series
    stretched, shifted, away = affine.copy(), affine.copy(), affine.copy()
    stretched[:3, 2] *= 1.1
    shifted[:3, 3] += 0.4 * affine[:3, 0]
    away[:3, 3] += 4 * affine[:3, 0]
    for wrong, message in ((stretched, "voxels lie up to"), (shifted, "up to 0.6 mm apart"), (away, "lie outside")):
        with pytest.raises(ValueError, match=message) as refused:
            write_dicom_seg(random_labels(), wrong, tmp_path / "seg.dcm", source=folder)
        assert str(folder) in str(refused.value)
        assert "name the series that the scan was converted from" in str(refused.value).replace("Name", "name")
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1])
    with pytest.raises(ValueError, match="voxel sizes differ"):
        write_dicom_seg(random_labels(), fine, tmp_path / "seg.dcm", source=folder)
    assert not list(tmp_path.iterdir())


def test_folders_without_one_series_are_refused(series, tmp_path):
    def write(folder, **options):
        return write_dicom_seg(random_labels(), series[1], tmp_path / "seg.dcm", source=folder, **options)

    with pytest.raises(FileNotFoundError, match="no such folder"):
        write(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no DICOM")
    with pytest.raises(ValueError, match="holds no DICOM images"):
        write(empty)
    two = tmp_path / "two"
    write_series(two / "a")
    write_series(two / "b", SeriesNumber=4)
    uid = pydicom.dcmread(two / "b" / "001").SeriesInstanceUID
    with pytest.raises(ValueError, match="2 DICOM series") as refused:
        write(two)
    assert uid in str(refused.value)
    assert NAME not in str(refused.value)
    assert len(write(two, series=uid)) == 2
    with pytest.raises(ValueError, match=r"no DICOM series 1\.2"):
        write(two, series="1.2", overwrite=True)
    with pytest.raises(FileExistsError, match="overwrite"):
        write(two, series=uid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": (2,)}, "not evenly spaced"), ({"FrameOfReferenceUID": None}, "lacks FrameOfReferenceUID"),
        ({"PixelSpacing": [2.0]}, "PixelSpacing"), ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "right angles"),
        ({"SliceThickness": None}, "001 cannot be read .* lacks SliceThickness"),
        ({"SliceThickness": ""}, "001 cannot be read .* lacks SliceThickness"),
        ({"SliceThickness": 0}, "001 cannot be read .* its SliceThickness is 0"),
        ({"PixelSpacing": [0, 0]}, "001 cannot be read .* its PixelSpacing is"),
        ({"PixelSpacing": [1e-300, 1]}, "001 cannot be read .* its PixelSpacing is"),
    ],
)
def test_series_that_are_no_volumes_are_refused(tmp_path, changes, message):
    affine = write_series(tmp_path / "series", **changes)
    with pytest.raises(ValueError, match=message) as refused:
        write_dicom_seg(random_labels(), affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    assert str(tmp_path / "series") in str(refused.value)


@pytest.mark.parametrize(
    ("element", "value", "message"),
    [
        ("PatientID", "synthetic-2", "its PatientID is not that of"),
        ("StudyInstanceUID", "1.2.3", "its StudyInstanceUID is not that of"), ("Rows", 8, "its Rows is not that of"),
        ("SOPInstanceUID", None, "its SOPInstanceUID is that of"),
        ("ImagePositionPatient", [1e300, 0, 0], "its ImagePositionPatient is"),
    ],
)
def test_an_image_that_does_not_belong_to_the_series_is_named(tmp_path, element, value, message):
    affine = write_series(tmp_path / "series")
    image = pydicom.dcmread(tmp_path / "series" / "003")
    if element == "SOPInstanceUID":
        value = pydicom.dcmread(tmp_path / "series" / "002").SOPInstanceUID
        image.file_meta.MediaStorageSOPInstanceUID = value
    setattr(image, element, value)
    image.save_as(tmp_path / "series" / "003")
    with pytest.raises(ValueError, match=rf"003\b.*{message}") as refused:
        write_dicom_seg(random_labels(), affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    assert "synthetic-" not in str(refused.value)
    assert not (tmp_path / "seg.dcm").exists()


def test_damaged_cut_off_and_deflated_files_are_refused_by_name(tmp_path):
    affine = write_series(tmp_path / "series", SeriesNumber=12345678)
    path = tmp_path / "series" / "004"
    content = path.read_bytes()
    assert b"12345678" in content
    path.write_bytes(content.replace(b"12345678", b"unknown "))
    with pytest.raises(ValueError, match="004"):
        write_dicom_seg(random_labels(), affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    affine = write_series(tmp_path / "series")
    cut = tmp_path / "series" / "002"
    whole = cut.read_bytes()
    for n in (200, 400, len(whole) - 420):  # in the head, before and after the name of the image
        cut.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="002 cannot be read"):
            write_dicom_seg(random_labels(), affine, tmp_path / "seg.dcm", source=tmp_path / "series")
    image = pydicom.dcmread(tmp_path / "series" / "001")
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(cut)
    with pytest.raises(ValueError, match=r"002 cannot be read.*deflated"):
        write_dicom_seg(random_labels(), affine, tmp_path / "seg.dcm", source=tmp_path / "series")


def test_the_command_writes_a_file_and_tells_nothing_of_the_patient(series, run, error_of, tmp_path):
    folder, affine = series
    nib.save(nib.Nifti1Image(random_labels(), affine), tmp_path / "labels.nii.gz")
    (tmp_path / "names.tsv").write_text("index\tname\n1\tedge\n2\tcore\n")
    words = ["dicom-seg", tmp_path / "labels.nii.gz", "--source", folder, "--names", tmp_path / "names.tsv"]
    code, out, err = run(*words, "--out", tmp_path / "seg.dcm")
    assert (code, err) == (0, "")
    assert out.startswith("2 segments: ")
    assert NAME not in out
    held = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in held.SegmentSequence] == ["edge", "core"]
    assert_array_equal(places_by_hand(tmp_path / "seg.dcm", 2).shape, world(random_labels(), affine, 2).shape)
    assert "--overwrite" in error_of(*words, "--out", tmp_path / "seg.dcm")
    err = error_of(*words, "--out", tmp_path / "other.dcm", "--kind", "spleen")
    assert "--kind must be one of lesion, metastasis, tumor, voxel" in err


@pytest.mark.parametrize("name", ["seg.nii", "seg.nii.gz", "seg"])
def test_another_ending_is_refused_before_anything_is_read(error_of, tmp_path, name):
    message = f"{tmp_path / name} does not end in .dcm, and a DICOM segmentation is written; name it seg.dcm"
    with pytest.raises(ValueError, match=re.escape(message)):
        write_dicom_seg(random_labels(), np.eye(4), tmp_path / name, source=tmp_path / "none")
    words = ("dicom-seg", tmp_path / "no.nii", "--source", tmp_path, "--out", tmp_path / name)
    assert f"--out {tmp_path / name}: give a name that ends in .dcm" in error_of(*words)


def test_no_image_of_the_series_is_replaced_and_no_label(series, run, tmp_path):
    folder, affine = series[:2]
    labels = random_labels()
    one = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    before = one.read_bytes()
    with pytest.raises(ValueError, match="is an image of a scan and would be overwritten"):
        write_dicom_seg(labels, affine, one, source=folder, overwrite=True)
    assert one.read_bytes() == before
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), path)
    before = path.read_bytes()
    code, _, told = run("dicom-seg", path, "--source", folder, "--out", path, "--overwrite")
    assert (code, path.read_bytes()) == (2, before)
    assert "give a name that ends in .dcm" in told
    own = tmp_path / "own.dcm"
    for _ in range(2):
        write_dicom_seg(labels, affine, own, source=folder, overwrite=True)


def test_names_come_back_in_any_script_and_are_not_dropped(series, tmp_path):
    folder, affine = series[:2]
    labels, names = random_labels(), {1: "Läsion λ", 2: "脳"}
    write_dicom_seg(labels, affine, tmp_path / "a.dcm", source=folder, names=names)
    read = pydicom.dcmread(tmp_path / "a.dcm")
    assert [one.SegmentLabel for one in read.SegmentSequence] == list(names.values())
    assert read.PatientName == NAME
    with pytest.raises(ValueError, match="none of the names is of a label that is there"):
        write_dicom_seg(labels, affine, tmp_path / "b.dcm", source=folder, names={7: "left"})
    with pytest.raises(ValueError, match="connected regions have no names"):
        write_dicom_seg(labels, affine, tmp_path / "b.dcm", source=folder, names=names, separate=True)


def test_a_series_that_is_named_does_not_mind_its_neighbors(tmp_path):
    affine = write_series(tmp_path / "all")
    uid = pydicom.dcmread(next((tmp_path / "all").iterdir())).SeriesInstanceUID
    write_series(tmp_path / "other")
    image = pydicom.dcmread(next((tmp_path / "other").iterdir()))
    del image.ImageOrientationPatient
    image.save_as(tmp_path / "all" / "zzz")
    labels = random_labels()
    with pytest.raises(ValueError, match="ImageOrientationPatient"):
        write_dicom_seg(labels, affine, tmp_path / "a.dcm", source=tmp_path / "all")
    write_dicom_seg(labels, affine, tmp_path / "a.dcm", source=tmp_path / "all", series=uid)


def test_volumes_whose_positions_were_rounded_differently_are_one_place_each(tmp_path):
    folder = tmp_path / "series"
    affine = write_series(folder, n_volumes=2)
    for path in sorted(folder.iterdir())[SHAPE[2] :]:
        image = pydicom.dcmread(path)
        nearby = np.array(image.ImagePositionPatient, dtype=float) + 1e-5 * OBLIQUE[:, 2]
        image.ImagePositionPatient = np.round(nearby, 8).tolist()
        image.save_as(path)
    labels = random_labels()
    write_dicom_seg(labels, affine, tmp_path / "seg.dcm", source=folder)
    assert_allclose(places_by_hand(tmp_path / "seg.dcm", 1), world(labels, affine, 1), atol=1e-4)


def test_as_many_regions_as_a_file_can_number_are_written(series, tmp_path):
    labels = np.zeros(np.prod(SHAPE), dtype=np.int16)
    labels[:255] = np.arange(1, 256)
    segments = write_dicom_seg(labels.reshape(SHAPE), series[1], tmp_path / "seg.dcm", source=series[0])
    assert list(segments) == list(range(1, 256))
    labels[255] = 256
    with pytest.raises(ValueError, match="256 regions are more than 255"):
        write_dicom_seg(labels.reshape(SHAPE), series[1], tmp_path / "more.dcm", source=series[0])


def test_a_scan_without_findings_says_what_that_means(series, error_of, output_of, tmp_path):
    folder, affine = series
    labels = np.zeros(random_labels().shape, np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "label.nii.gz")
    words = ("dicom-seg", tmp_path / "label.nii.gz", "--source", folder, "--kind", "metastasis", "--out")
    assert "no DICOM file is made" in error_of(*words, tmp_path / "refused.dcm")
    assert not (tmp_path / "refused.dcm").exists()
    statement = "nothing marked; this is not 'no metastases': of those of 2.5–6 mm half are found"
    (tmp_path / "segmentation.json").write_text(json.dumps({"statement": statement}), encoding="utf-8")
    out = output_of(*words, tmp_path / "empty.dcm")
    assert statement in out
    written = pydicom.dcmread(tmp_path / "empty.dcm")
    (segment,) = written.SegmentSequence
    assert segment.SegmentDescription == statement
    assert segment.SegmentLabel == "no metastasis marked"
    assert not written.pixel_array.any()
    with pytest.raises(ValueError, match="a note has at most 1024 characters, not 2000"):
        write_dicom_seg(labels, affine, tmp_path / "long.dcm", source=folder, note="x" * 2000)
