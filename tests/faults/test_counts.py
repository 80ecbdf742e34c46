"""The counts of faults that the documentation shows."""

import json

from counts import COLUMNS, kind_of_complaint, store


def test_complaints_belong_to_columns():
    assert kind_of_complaint("a traceback: …") == "traceback"
    assert kind_of_complaint("was accepted: …") == "silent"
    assert kind_of_complaint("left behind: ['x']") == "half_written"
    assert kind_of_complaint("nothing of 'a' in: b") == "misleading"


def test_parts_are_stored_beside_each_other_with_their_commit(tmp_path):
    path = tmp_path / "faults.json"
    store("corpus", {"files": {"tried": 3, "silent": 1}}, path)
    store("kills", {"kills": {"tried": 2}}, path)
    store("corpus", {"files": {"tried": 4}}, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"corpus", "kills"}
    assert content["corpus"]["kinds"]["files"] == dict.fromkeys(COLUMNS, 0) | {"tried": 4}
    assert "commit" in content["corpus"]
