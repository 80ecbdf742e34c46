"""Folder of a study: it keeps finished trainings and refuses another study."""

import pytest

from dmrifit.study.study_folder import StudyFolder


def test_a_folder_remembers_its_study_and_its_cells(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    assert folder.settings() == {}
    assert folder.get("key") is None
    folder.claim({"seed": 1, "cohorts": {"A": ["p1"]}})
    folder.put("key", {"scores": [1.5], "signals": []})
    again = StudyFolder(tmp_path / "study")
    again.claim({"seed": 1, "cohorts": {"A": ["p1"]}})
    assert again.get("key") == {"scores": [1.5], "signals": []}
    with pytest.raises(ValueError, match="seed was 1 there and is 2 now"):
        again.claim({"seed": 2, "cohorts": {"A": ["p1"]}})


def test_files_and_studies_of_another_version_are_refused(tmp_path):
    (tmp_path / "study").write_text("text")
    with pytest.raises(ValueError, match="is a file"):
        StudyFolder(tmp_path / "study").settings()
    with pytest.raises(FileNotFoundError, match="dmrifit benchmark"):
        StudyFolder(tmp_path).read_study([])
    (tmp_path / "study.json").write_text('{"settings": {"seed": 1}}')
    with pytest.raises(ValueError, match="was written by another version: train again"):
        StudyFolder(tmp_path).claim({"seed": 1})
