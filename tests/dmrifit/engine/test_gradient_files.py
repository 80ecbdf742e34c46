"""Files of b-values, directions and echo times: layouts, units, and mistakes in them."""

import numpy as np
import pytest

from dmrifit import Protocol


@pytest.mark.parametrize("text", ["0 500 1000\n", "0\n500\n1000\n", "0, 500, 1000", "\ufeff0 500 1000"])
def test_b_values_may_stand_in_a_row_or_a_column(tmp_path, text):
    (tmp_path / "dwi.bval").write_text(text, encoding="utf-8")
    protocol = Protocol.read(tmp_path / "dwi.bval", te=80)
    assert protocol == Protocol([0, 500, 1000], te=80)
    assert protocol.name == "dwi"


def test_echo_times_come_from_text_numbers_or_sidecars(tmp_path):
    (tmp_path / "dwi.bval").write_text("0 500")
    (tmp_path / "dwi.te").write_text("80 90")
    (tmp_path / "a.json").write_text('{"EchoTime": 0.08}')
    (tmp_path / "b.json").write_text('{"EchoTime": 0.09}')
    bval = tmp_path / "dwi.bval"
    assert Protocol.read(bval, tmp_path / "dwi.te").te.tolist() == [80, 90]
    assert Protocol.read(bval, "85").te.tolist() == [85, 85]
    assert Protocol.read(bval, tmp_path / "a.json").te.tolist() == [80, 80]
    assert Protocol.read(bval, [tmp_path / "a.json", tmp_path / "b.json"]).te.tolist() == [80, 90]


def test_real_gradient_files_of_both_layouts_are_read_and_b_values_within_a_tolerance(data_dir):
    folder = data_dir / "dipy_small_dwi"
    rows = Protocol.read(folder / "small_64D.bval", 90, folder / "small_64D.bvec")
    columns = Protocol.read(folder / "small_101D.bval", 90, folder / "small_101D.bvec")
    for protocol, n in ((rows, 65), (columns, 102)):
        assert len(protocol) == n
        length = np.linalg.norm(protocol.directions, axis=1)
        np.testing.assert_allclose(length[1:], 1, atol=1e-6)
    assert rows.directions[0].tolist() == [0, 0, 0]  # the file says NaN
    with pytest.raises(ValueError, match="3 × 102 numbers do not make 3 × 65"):
        Protocol.read(folder / "small_64D.bval", None, folder / "small_101D.bvec")
    path = folder / "small_64D.bval"
    with pytest.raises(ValueError, match=r"65 rows of 3 numbers are gradient .* swapped with .*bval: exchange the two"):
        Protocol.read(folder / "small_64D.bvec", None, path)
    assert len(np.unique(Protocol.read(path).b)) > 2
    assert np.unique(Protocol.read(path, b_tolerance=10).b).tolist() == [0, 1000]


def test_three_directions_of_three_values_stand_in_columns(tmp_path):
    (tmp_path / "a.bval").write_text("0 1000 1000\n")
    (tmp_path / "a.bvec").write_text("0 0.6 0\n0 0.8 0\n0 0 1\n")
    protocol = Protocol.read(tmp_path / "a.bval", 80, tmp_path / "a.bvec")
    np.testing.assert_allclose(protocol.directions, [[0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])


def read_plain(folder, b, vectors="0 1 0 0\n0 0 1 0\n0 0 0 1\n"):
    (folder / "a.bval").write_text(b)
    (folder / "a.bvec").write_text(vectors)
    return Protocol.read(folder / "a.bval", 80, folder / "a.bvec")


@pytest.mark.parametrize(
    ("vectors", "span"),
    [
        ("0 2 0 0\n0 0 2 0\n0 0 0 2\n", "length 2, not 1"),
        ("9 1 0 0\n0 0 0.7 0\n0 0 0 0.5\n", "lengths from 0.5 to 1, not 1"),
    ],
)
def test_directions_of_other_lengths_are_reported_and_b_values_kept(tmp_path, vectors, span):
    with pytest.warns(UserWarning, match=rf"a\.bvec: directions have {span}.*multiply the b-"):
        protocol = read_plain(tmp_path, "0 500 500 500\n", vectors)
    assert protocol.b.tolist() == [0, 500, 500, 500]
    np.testing.assert_array_equal(np.linalg.norm(protocol.directions[1:], axis=1), 1)


def test_a_point_between_thousands_is_refused_and_small_b_values_are_not(tmp_path):
    with pytest.raises(ValueError, match=r"1\.600 beside .* write 1600, or, .* 1\.6$"):
        read_plain(tmp_path, "0 50 900 1.600\n")
    assert read_plain(tmp_path, "0 50 900 1.6\n").b[3] == 1.6
    # A program that writes three decimals everywhere.
    assert read_plain(tmp_path, "1.600 50.000 900.000 1000.000\n").b[0] == 1.6
