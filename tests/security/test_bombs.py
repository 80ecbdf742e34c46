"""Files that say or hold far more than they can be are refused in little memory, and the message names them."""

import gzip
import io

import nibabel as nib
import numpy as np
import pytest

from dmrifit import Protocol, fit_image
from dmrifit.io.nifti import load_image, read_grid, read_volume
from dmrifit.io.series import Series
from dmrifit.io.tables import read_rows
from placement.exchange.tables import read_boxes, read_cases

LITTLE = 2**26  # bytes
PROTOCOL = Protocol([0, 200, 500, 1000], te=80)


def header(shape, dtype=np.int16, *, version=1, offset=None):
    """Give the first bytes of a NIfTI file."""
    one = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    one.set_data_dtype(dtype)
    one.set_data_shape(shape)
    one.set_sform(np.diag([2.0, 2, 2, 1]), code=1)
    one["magic"] = b"n+1" if version == 1 else b"n+2"
    one["vox_offset"] = (352 if version == 1 else 544) if offset is None else offset
    return one.binaryblock + bytes(4)


def large(folder, suffix, shape, **options):
    """Write a file of 1,000 bytes of values, whatever its header says."""
    path = folder / f"large{suffix}"
    content = header(shape, **options) + bytes(1000)
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    return path


def zeros(path, start, n):
    """Write a gzip file with so many zeros behind its start, without holding them."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        chunk = bytes(2**20)
        for _ in range(n // len(chunk)):
            file.write(chunk)
    return path


@pytest.mark.parametrize(
    ("shape", "version"),
    [((30000, 30000, 30000), 1), ((2000, 2000, 2000, 100), 1), ((10**5, 10**5, 10**5), 2), ((2**31, 2**31, 8), 2)],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_header_that_tells_of_more_voxels_than_its_file_can_hold_is_refused(shape, version, suffix, tmp_path, peak):
    path = large(tmp_path, suffix, shape, version=version)
    assert read_grid(path)[0] == shape
    with peak(LITTLE), pytest.raises(ValueError, match=r"large\.nii.*(packed ones cannot be|cut off).*copy it again"):
        read_volume(path)


def test_a_file_may_not_claim_more_than_it_has_or_deflate_can_pack_into_it(tmp_path):
    path = tmp_path / "large.nii.gz"
    path.write_bytes(gzip.compress(header((2000, 1500, 1)) + np.random.default_rng(0).bytes(1000)))
    size, claimed = path.stat().st_size, 352 + 2 * 2000 * 1500
    # Within a factor of three of what a file of this size can hold.
    assert 1032 * size + 2**20 < claimed < 3 * (1032 * size + 2**20)
    claim = rf"large\.nii\.gz says that it holds {claimed} bytes, which its {size} packed ones cannot be"
    with pytest.raises(ValueError, match=claim):
        read_volume(path)
    path = tmp_path / "short.nii"
    path.write_bytes(header((30, 20, 1)) + bytes(1198))
    with pytest.raises(ValueError, match=r"short\.nii is cut off: it should hold 1552 bytes and holds 1550"):
        read_volume(path)
    path.write_bytes(header((30, 20, 1)) + bytes(1200))
    assert read_volume(path).shape == (30, 20, 1)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_scan_that_tells_of_more_than_its_file_holds_is_refused_before_the_fit(suffix, tmp_path, peak):
    path = large(tmp_path, suffix, (2000, 2000, 2000, 4))
    told = r"large\.nii.* is cut off: it should hold 64000000352 bytes"
    # Libraries that the first fit imports count, too.
    with peak(4 * LITTLE), pytest.raises(ValueError, match=told):
        fit_image(path, PROTOCOL, "adc", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scan_that_unpacks_to_more_than_its_header_tells_does_not_fill_the_disk(tmp_path, peak, monkeypatch):
    path = zeros(tmp_path / "bomb.nii.gz", header((4, 3, 2, 4)), 2**26)
    assert path.stat().st_size < 2**19
    written = []
    monkeypatch.setattr("dmrifit.io.series.tempfile.TemporaryFile", lambda: Counted(written))
    with peak(LITTLE), pytest.raises(ValueError, match=r"bomb\.nii\.gz unpacks to more than the 544 bytes"):
        fit_image(path, PROTOCOL, "adc", out=tmp_path / "out")
    assert sum(written) <= 2**21 + 2**20
    assert not (tmp_path / "out").exists()


class Counted(io.BytesIO):
    def __init__(self, written):
        super().__init__()
        self.written = written

    def write(self, chunk):
        self.written.append(len(chunk))
        return super().write(chunk)


def test_a_few_bytes_behind_the_last_value_are_left_alone(tmp_path):
    values = np.arange(96, dtype=np.int16).tobytes()
    path = tmp_path / "padded.nii.gz"
    path.write_bytes(gzip.compress(header((4, 3, 2, 4)) + values + bytes(512)))
    with Series.open(path).unpacked() as series:
        assert series.read(slice(0, 2)).sum() == np.arange(96).sum()


@pytest.mark.parametrize("behind", [2**21, 2**26])
def test_a_mask_that_unpacks_to_more_than_its_header_tells_is_refused_in_little_memory(behind, tmp_path, peak):
    path = zeros(tmp_path / "mask.nii.gz", header((4, 3, 2), np.uint8), behind)
    with peak(LITTLE), pytest.raises(ValueError, match=r"mask\.nii\.gz unpacks to more than the 376 bytes"):
        read_volume(path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("offset", [2**26 + 16, 2**30, 2**40, 1e18])
def test_a_header_that_is_longer_than_any_is_not_read(version, offset, tmp_path, peak):
    path = zeros(tmp_path / "long.nii.gz", header((4, 3, 2), version=version, offset=offset), 2**26)
    with peak(LITTLE), pytest.raises(ValueError, match=r"long\.nii\.gz says that its values begin at byte"):
        load_image(path)


@pytest.mark.filterwarnings("ignore:Unknown Nifti1 ext")
def test_an_extension_that_is_longer_than_any_is_not_read(tmp_path, peak):
    extension = np.array([1], np.uint8).tobytes() + bytes(3) + np.array([2**30, 6], np.int32).tobytes()
    start = header((4, 3, 2), offset=2**30 + 352)[:-4] + extension
    path = zeros(tmp_path / "extended.nii.gz", start, 2**26)
    with peak(LITTLE), pytest.raises(ValueError, match=r"extended\.nii\.gz says"):
        load_image(path)


def test_values_that_fit_into_no_memory_are_told(tmp_path, monkeypatch):
    path = tmp_path / "honest.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20)), np.eye(4)), path)
    monkeypatch.setattr("dmrifit.io.nifti.memory_left", lambda: 100)
    with pytest.raises(ValueError, match=r"honest\.nii\.gz holds 20 × 20 × 20 values.*no memory here; crop it"):
        read_volume(path)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: Protocol.read(path),
        lambda path: Protocol.read(good(path), te=path),
        lambda path: Protocol.read(good(path), te=path.rename(path.with_suffix(".json"))),
        lambda path: Protocol.read(good(path), bvec=path),
        lambda path: read_rows(path, required=["patient"]),
        read_cases,
        lambda path: read_boxes(path, ["a"]),
    ],
    ids=["bval", "te", "sidecar", "bvec", "table", "cases", "boxes"],
)
def test_text_of_gigabytes_is_not_read(read, tmp_path, peak):
    # A file that takes no room on disk.
    path = tmp_path / "huge.tsv"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)
    with peak(LITTLE), pytest.raises(ValueError, match=r"huge\.\w+ holds 4294967296 bytes, more than any table"):
        read(path)


def good(path):
    beside = path.with_name("good.bval")
    beside.write_text("0 200 500 1000\n")
    return beside
