"""Values on the command line: numbers, files, pairs, bounds, scans with the files beside them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dmrifit.cli.options import (
    ProtocolFiles,
    beside,
    bounds_of,
    named_images,
    number_or_path,
    numbers,
    pairs,
    say,
    scan_of,
    words,
)
from dmrifit.engine.protocol import Protocol


@pytest.fixture
def image(tmp_path):
    """An image of three measurements with its b-values beside it."""
    path = tmp_path / "sub-1_dwi.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.uint8), np.eye(4)), path)
    (tmp_path / "sub-1_dwi.bval").write_text("0 500 1000\n")
    return path


def test_words_are_parted_at_commas_and_pairs_at_the_first_equals_sign():
    assert words(" LR, RFR,,CNN ,") == ["LR", "RFR", "CNN"]
    assert words(" , ") == []
    assert pairs("--bounds", ["ADC=0,3", "name=a=b"]) == {"ADC": "0,3", "name": "a=b"}


def test_messages_go_to_standard_error_under_the_name_of_the_program(capsys):
    say("using a file")
    assert capsys.readouterr() == ("", "dmrifit: using a file\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [(None, None), ("2.5", 2.5), ("1e3", 1000.0), ("noise.nii", Path("noise.nii"))],
)
def test_a_word_is_a_number_or_else_a_file(text, value):
    assert number_or_path(text) == value
    assert type(number_or_path(text)) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("text", "n", "kind", "values"),
    [("1, 2.5,-3", 3, float, (1.0, 2.5, -3.0)), ("3,1,2", None, int, (3, 1, 2)), ("4,5,6", 3, int, (4, 5, 6))],
)
def test_numbers_are_read_between_commas(text, n, kind, values):
    assert numbers("--box", text, n, kind=kind) == values


@pytest.mark.parametrize(
    ("texts", "bounds"),
    [
        ([], None), (["published"], "published"), (["ADC=0.5,3", "S0=0,9"], {"ADC": (0.5, 3.0), "S0": (0.0, 9.0)}),
        (["K=0,monotonic"], {"K": (0.0, "monotonic")}),
    ],
)
def test_bounds_are_read_as_the_fit_takes_them(texts, bounds):
    assert bounds_of(texts) == bounds


def test_a_file_beside_an_image_is_used_and_said_unless_an_option_names_another(image, capsys, tmp_path):
    expected = image.with_name("sub-1_dwi.bval")
    assert beside(image, "bval") == expected
    assert capsys.readouterr().err == f"dmrifit: using {expected}\n"
    assert beside(image, "bvec") is None
    assert capsys.readouterr().err == ""
    bval = tmp_path / "chosen.bval"
    bval.write_text("0 700 800\n")
    _, protocol = scan_of(image, ProtocolFiles(bval, te=["80"]), needs_te=True)
    assert protocol == Protocol([0, 700, 800], te=80)


def test_files_beside_the_image_are_read_and_faulty_echo_times_refused_only_where_they_are_needed(image):
    te = image.with_name("sub-1_dwi.te")
    te.write_text("70 80\n")
    with pytest.warns(UserWarning, match="2 echo times for the 3 b-values.*the model does not need it"):
        images, protocol = scan_of(image, ProtocolFiles(), needs_te=False)
    assert images == [image]
    assert protocol == Protocol([0, 500, 1000])
    with pytest.raises(ValueError, match="2 echo times for the 3 b-values"):
        scan_of(image, ProtocolFiles(), needs_te=True)
    te.write_text("70 80 90\n")
    assert scan_of(image, ProtocolFiles(), needs_te=False)[1].te.tolist() == [70, 80, 90]
    image.with_name("sub-1_dwi.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    protocol = scan_of(image, ProtocolFiles(), needs_te=True)[1]
    assert protocol.te.tolist() == [70, 80, 90]
    assert protocol.directions.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_a_sidecar_gives_the_echo_time_if_it_has_one(image):
    sidecar = image.with_name("sub-1_dwi.json")
    sidecar.write_text(json.dumps({"RepetitionTime": 4}))
    assert scan_of(image, ProtocolFiles(), needs_te=True)[1].te is None
    sidecar.write_text(json.dumps({"EchoTime": 0.08}))
    protocol = scan_of(image, ProtocolFiles(), needs_te=True)[1]
    assert protocol == Protocol([0, 500, 1000], te=80)


def test_a_table_of_images_is_one_scan_and_contradicts_no_option(tmp_path):
    for name in ("a", "b"):
        empty = nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.uint8), np.eye(4))
        nib.save(empty, tmp_path / f"{name}.nii")
        (tmp_path / f"{name}.bval").write_text("0 500\n")
    table = tmp_path / "scan.tsv"
    table.write_text("image\tte\na.nii\t70\nb.nii\t90\n")
    images, protocol = scan_of(table, ProtocolFiles(), needs_te=True)
    assert [path.name for path in images] == ["a.nii", "b.nii"]
    assert protocol == Protocol([0, 500, 0, 500], te=[70, 70, 90, 90])
    with pytest.raises(ValueError, match="named in the columns of their table; leave out --te"):
        scan_of(table, ProtocolFiles(te=["80"]), needs_te=True)


def test_images_made_of_the_scans_of_a_folder_are_no_further_scans_but_may_have_one_of_their_own(tmp_path):
    for name in ("a_desc-preproc_dwi", "a_dwi"):
        (tmp_path / f"{name}.nii").touch()
        (tmp_path / f"{name}.bval").touch()
        assert [image.stem for image in named_images([tmp_path])] == [name]


def test_a_scan_that_is_not_there_or_has_no_b_values_is_named(image, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        scan_of(tmp_path / "no.nii", ProtocolFiles(), needs_te=False)
    with pytest.raises(FileNotFoundError, match="is a folder; name an image in it, or a table"):
        scan_of(tmp_path, ProtocolFiles(), needs_te=False)
    image.with_name("sub-1_dwi.bval").unlink()
    with pytest.raises(ValueError, match=r"no b-value file sub-1_dwi.bval beside it.*--bval"):
        scan_of(image, ProtocolFiles(), needs_te=False)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), image)
    with pytest.raises(ValueError, match=r"is 3-D \(2 × 2 × 2\); a 4-D image .* name them in a table \(.tsv\)"):
        scan_of(image, ProtocolFiles(), needs_te=False)
