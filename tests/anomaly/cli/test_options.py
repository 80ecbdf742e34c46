"""Words on the command line become detectors, parameters and series."""

import nibabel as nib
import numpy as np
import pytest

from anomaly.cli.options import make_detector, parameters_of, series_of
from dmrifit.networks.training import Training


def test_parameters_are_numbers_words_and_truth_values_in_place_of_defaults_and_of_published_sizes():
    assert make_detector("pca", {"n_components": 3}).n_components == 3
    default, published = (make_detector("dae", {"epochs": 7}, published=is_published) for is_published in (False, True))
    assert default.training == Training(epochs=7)
    assert (published.training.epochs, published.training.decay) == (7, 0.95)
    assert published.widths == (64, 128, 256, 512)
    assert default.widths != published.widths
    parameters = parameters_of(["a=1", "b=2.5", "c=true", "d=1e-3", ' e = "x y" ', "f=[2,3]", "g=a=b", "h=null"])
    expected = {"a": 1, "b": 2.5, "c": True, "d": 0.001, "e": "x y", "f": (2, 3), "g": "a=b"}
    assert parameters == expected | {"h": None}
    assert type(parameters["a"]) is int
    assert parameters_of([]) == {}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 3), np.float32), np.eye(4)), path)
    (tmp_path / "scan.bval").write_text("0 1000 1000")
    (tmp_path / "scan.bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    return path


def test_a_series_is_an_image_with_the_files_named(image, tmp_path):
    mask, tissue = tmp_path / "mask.nii", tmp_path / "tissue.nii"
    for path in (mask, tissue):
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), path)
    (plain,) = series_of([image])
    assert plain.image == image
    assert plain.brain is plain.tissue is None
    bval = tmp_path / "other.bval"
    bval.write_text("0 700 700")
    (series,) = series_of([image], bval=bval, bvec=tmp_path / "scan.bvec", mask=mask, tissue=tissue)
    assert (series.bval, series.brain, series.tissue) == (bval, mask, tissue)
    assert series.bvec == tmp_path / "scan.bvec"


def test_series_of_a_table_or_a_folder_are_those_in_it(image, tmp_path):
    assert [scan.image for scan in series_of([tmp_path])] == [image]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder without images"):
        series_of([tmp_path / "empty"])
    table = tmp_path / "cases.tsv"
    table.write_text("patient\timage\np1\tscan.nii.gz\n")
    (series,) = series_of([table])
    assert series.image == image
    with pytest.raises(ValueError, match="names files in its columns; leave out --bval"):
        series_of([table], mask=image)
