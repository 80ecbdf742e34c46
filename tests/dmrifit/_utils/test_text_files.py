"""Files of text that a person could have written."""

import pytest

from dmrifit._utils import text_files


@pytest.mark.parametrize("text", ["0 500\n1 2\n", "0,500\r\n1,2", "\ufeff0\t500\n\n1  2"])
def test_numbers_may_be_separated_in_several_ways(tmp_path, text):
    path = tmp_path / "numbers.txt"
    path.write_bytes(text.encode())
    assert text_files.read_numbers(path).tolist() == [[0, 500], [1, 2]]


def test_files_too_large_for_a_person_and_those_that_cannot_be_reached_are_not_read(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(text_files._LARGEST_TEXT + 1)
    with pytest.raises(ValueError, match=f"{text_files._LARGEST_TEXT + 1} bytes, more than any table"):
        text_files.read_text(path)
    with pytest.raises(OSError, match="File name too long"):
        text_files.read_object(tmp_path / f"{'x' * 300}.json")


@pytest.mark.parametrize(
    ("text", "content"), [('{"a": [1]}', {"a": [1]}), ("[1]", None), ('{"a":', None), ("[" * 10**5, None), (None, None)]
)
def test_a_json_file_that_is_no_object_is_as_good_as_none(tmp_path, text, content):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    assert text_files.read_object(path) == content
