"""The counts of faults that the documentation shows."""

import json

from counts import COLUMNS, RESULTS, kind_of_complaint, store


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


def test_so_many_faults_of_all_kinds_were_tried_and_went_right():
    parts = json.loads(RESULTS.read_text(encoding="utf-8"))
    wanted = {"corpus", "extras", "interrupts", "kills", "model files", "names", "scale", "streams"}
    assert set(parts) == wanted
    kinds = {kind: row for part in parts.values() for kind, row in part["kinds"].items()}
    assert sum(row["tried"] for row in kinds.values()) >= 5000
    assert kinds["killed commands"]["tried"] >= 27 * 50
    assert {kind: sum(row.values()) - row["tried"] for kind, row in kinds.items()} == dict.fromkeys(kinds, 0)
