"""Large input, which `make faults` tries in full size."""

import pytest
from counts import kind_of_complaint
from run_scale import complaints, grows, many_cases


@pytest.mark.slow
def test_scans_of_one_run_are_fitted_and_measured(tmp_path):
    runs = many_cases(tmp_path, 0)
    assert [run["complaints"] for run in runs.values()] == [[], []]
    first, again = runs.values()
    assert first["seconds"] > again["seconds"] > 0
    assert 20 < first["memory_mb"] < 2000


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (0, "", None),
        (2, "x.nii is cut off", "traceback"),
        (-9, "", "traceback"),
        (1, "Traceback", "traceback"),
    ],
)
def test_each_kind_of_defect_planted_in_large_input_is_a_complaint(code, said, kind, tmp_path):
    found = complaints({"code": code, "said": said}, tmp_path)
    assert {kind_of_complaint(complaint) for complaint in found} == {kind} - {None}


def test_memory_that_grows_with_the_image_is_a_complaint():
    eighth = {"memory_mb": 400}
    assert grows({"memory_mb": 720}, eighth) == []
    (complaint,) = grows({"memory_mb": 2000}, eighth)
    assert kind_of_complaint(complaint) == "silent"
    assert "2000 MB, 400 MB" in complaint
