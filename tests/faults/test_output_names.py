"""Outputs that cannot be written, and inputs whose names no text can hold, are refused before the work begins."""

import run_machine


def test_outputs_and_inputs_of_impossible_names_are_refused_by_every_command():
    trials = dict(run_machine.names())
    assert {name: found for name, found in trials.items() if found} == {}
    writing = {name.removesuffix(" full disk") for name in trials if name.endswith(" full disk")}
    assert len(writing) >= 20
    assert sum(name.endswith(" input") for name in trials) >= 20
    assert {name for _, name, _ in run_machine.commands()} - writing == {"info", "cite", "table"}
