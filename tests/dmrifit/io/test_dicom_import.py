"""DICOM folders converted to BIDS: synthetic series of three vendors, and real files that are no diffusion series."""

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cohort.bids_folder import find_scans
from dmrifit.io.dicom_import import import_dicom

pydicom = pytest.importorskip("pydicom")

SIEMENS, PHILIPS, GE = "SIEMENS", "Philips Medical Systems", "GE MEDICAL SYSTEMS"
DIRECTIONS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], float)


def write_series(folder, vendor, b_values, *, te=70, number=1, patient="P1", study="1.2.3", kind="ORIGINAL", uid=None):
    """Write a synthetic series of 8 × 8 × 3 voxels as the scanners of a vendor tag it."""
    folder.mkdir(parents=True)
    uid = uid or pydicom.uid.generate_uid()
    for volume, b in enumerate(b_values):
        direction = DIRECTIONS[volume % 3] if b else np.zeros(3)
        for z in range(3):
            data = header(vendor, uid, patient, study, kind)
            data.SeriesNumber, data.EchoTime, data.InstanceNumber = number, te, 3 * volume + z + 1
            data.SeriesDescription = data.ProtocolName = f"series {number}"
            data.AcquisitionNumber, data.AcquisitionTime = volume + 1, f"1010{volume:02d}"
            data.ImagePositionPatient, data.SliceLocation = [-8, -8, 3 * z], 3 * z
            tag_weighting(data, vendor, b, direction, volume)
            signal = np.full((8, 8), 1000 * np.exp(-b / 1000)) + 10 * z
            data.PixelData = signal.astype(np.uint16).tobytes()
            data.save_as(folder / f"{data.InstanceNumber:03d}.dcm", enforce_file_format=True)


def header(vendor, uid, patient, study, kind):
    """Make the header of one slice."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.MRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientID, data.PatientName, data.StudyInstanceUID = patient, "Doe^Jane", study
    data.SeriesInstanceUID, data.FrameOfReferenceUID = uid, study
    data.StudyDate, data.StudyTime, data.Modality, data.Manufacturer = "20200102", "101010", "MR", vendor
    data.ImageType = [kind, "PRIMARY", "ADC" if kind == "DERIVED" else "M", "ND"]
    data.RepetitionTime, data.MagneticFieldStrength, data.ScanningSequence = 4000, 3, "EP"
    data.MRAcquisitionType, data.FlipAngle, data.EchoNumbers = "2D", 90, 1
    data.Rows = data.Columns = 8
    data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [2, 2], 3, 3
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    return data


def tag_weighting(data, vendor, b, direction, volume):
    """Write b-value and direction into the elements that a vendor uses."""
    if vendor == SIEMENS:
        block = data.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", str(b))
        block.add_new(0x0D, "CS", "DIRECTIONAL" if b else "NONE")
        if b:
            block.add_new(0x0E, "FD", direction.tolist())
    elif vendor == PHILIPS:
        data.DiffusionBValue, data.DiffusionGradientOrientation = float(b), direction.tolist()
        data.TemporalPositionIdentifier = volume + 1
        data.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", float(b))
    else:
        # GE adds 10⁹ to the b-value of each volume.
        block = data.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x39, "IS", [str(b + 10**9), "8", "0", "0"])
        block = data.private_block(0x0019, "GEMS_ACQU_01", create=True)
        for axis in range(3):
            block.add_new(0xBB + axis, "DS", str(direction[axis]))


@pytest.fixture(autouse=True)
def needs_dcm2niix(request):
    """Skip what converts images where the converter is not installed."""
    if "spectra" not in request.node.name and "is_refused" not in request.node.name:
        pytest.importorskip("dcm2niix")


@pytest.mark.parametrize("vendor", [SIEMENS, PHILIPS, GE])
def test_the_series_of_each_vendor_keeps_b_values_echo_time_and_signal(tmp_path, vendor):
    write_series(tmp_path / "dicom", vendor, [0, 500, 1000, 1000])
    table = import_dicom(tmp_path / "dicom", tmp_path / "bids")
    assert table["result"].tolist() == ["sub-01_dwi.nii.gz"]
    (scan,) = find_scans(tmp_path / "bids")
    manifest = scan.read()
    assert manifest.protocol.b.tolist() == [0, 500, 1000, 1000]
    assert manifest.protocol.te.tolist() == [70] * 4
    assert manifest.protocol.directions is not None
    medians = np.median(np.asarray(nib.load(manifest.images[0]).dataobj), axis=(0, 1, 2))
    np.testing.assert_allclose(medians, 10 + 1000 * np.exp(-manifest.protocol.b / 1000), atol=1)


def test_patients_are_numbered_studies_are_sessions_and_echo_times_one_scan(tmp_path):
    dicom, out = tmp_path / "dicom", tmp_path / "bids"
    for number, te in enumerate((60, 90), start=1):
        write_series(dicom / f"A{te}", SIEMENS, [0, 500, 1000], te=te, number=number, patient="Ann", uid=f"1.2.3.{te}")
    write_series(dicom / "adc", SIEMENS, [0, 0], number=3, patient="Ann", kind="DERIVED")
    write_series(dicom / "b1", SIEMENS, [0, 800], patient="Bea", study="1.2.4")
    write_series(dicom / "b2", SIEMENS, [0, 800], patient="Bea", study="1.2.5")
    (dicom / "notes.txt").write_text("no DICOM")
    write_series(dicom / "incomplete", SIEMENS, [0, 500, 1000], number=4, patient="Ann")
    (dicom / "incomplete" / "005.dcm").unlink()
    # A further image of the first series lacks a slice.
    write_series(dicom / "more", SIEMENS, [0, 500, 1000], te=120, patient="Ann", uid="1.2.3.60")
    (dicom / "more" / "005.dcm").unlink()
    table = import_dicom(dicom, out)
    scans = find_scans(out)
    assert [scan.name for scan in scans] == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    assert [path.name for path in scans[0].images] == ["sub-01_acq-TE60_dwi.nii.gz", "sub-01_acq-TE90_dwi.nii.gz"]
    assert sorted(set(scans[0].read().protocol.te)) == [60, 90]
    irregular = "no regular grid of slices (a file may be missing)"
    assert table["result"][0] == f"sub-01_acq-TE60_dwi.nii.gz; left out: {irregular}"
    assert table.set_index("series")["result"][4] == irregular
    assert "computed (ADC)" in table.set_index("series")["result"][3] or "no b-values" in table["result"][2]
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".tsv", "")  and path.is_file()]
    assert texts
    assert not any(word in text for text in texts for word in ("Doe", "Ann", "Bea"))
    with pytest.raises(FileExistsError):
        import_dicom(dicom, out)
    for path in (dicom / "b1").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"dcm2niix: .*not large enough"), pytest.raises(ValueError, match="not conv"):
        import_dicom(dicom / "b1", out)
    with pytest.raises(ValueError, match="2 patients"):
        import_dicom(dicom, tmp_path / "other", subject="x")


def test_echo_times_that_differ_by_less_than_a_millisecond_are_images_of_one_scan(tmp_path):
    for number, te in enumerate((60.1, 60.4, 90), start=1):
        write_series(tmp_path / "dicom" / str(number), SIEMENS, [0, 500], te=te, number=number)
    import_dicom(tmp_path / "dicom", tmp_path / "bids")
    (scan,) = find_scans(tmp_path / "bids")
    names = [f"sub-01_acq-TE{te}_dwi.nii.gz" for te in ("60p1", "60p4", "90")]
    assert [path.name for path in scan.images] == names
    np.testing.assert_allclose(np.unique(scan.read().protocol.te), [60.1, 60.4, 90])


def test_repeats_are_runs(tmp_path):
    for number in (1, 2):
        write_series(tmp_path / "dicom" / str(number), SIEMENS, [0, 500], number=number)
    import_dicom(tmp_path / "dicom", tmp_path / "bids", subject="X7")
    assert [scan.name for scan in find_scans(tmp_path / "bids")] == ["sub-X7_run-1", "sub-X7_run-2"]


def test_folders_without_a_diffusion_series_or_dicom_files_are_refused_and_nothing_is_written(tmp_path):
    write_series(tmp_path / "dicom", SIEMENS, [0, 0])
    with pytest.raises(ValueError, match=r"no diffusion series \(series 1 'series 1': no "):
        import_dicom(tmp_path / "dicom", tmp_path / "bids")
    assert not (tmp_path / "bids").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "link").symlink_to(tmp_path / "dicom")
    with pytest.raises(ValueError, match=r"holds no DICOM file \(linked folders are not searched\)"):
        import_dicom(tmp_path / "empty", tmp_path / "bids")
    with pytest.raises(NotADirectoryError):
        import_dicom(tmp_path / "none", tmp_path / "bids")
    with pytest.raises(ValueError, match="letters and digits only, without umlauts and accents"):
        import_dicom(tmp_path / "empty", tmp_path / "bids", subject="Müller")
    assert not (tmp_path / "bids").exists()


@pytest.mark.data
def test_real_spectra_are_no_diffusion_series(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no diffusion series .*no images \(spectra or raw data\)"):
        import_dicom(data_dir / "mrs_boxes", tmp_path / "bids")
    assert not (tmp_path / "bids").exists()
