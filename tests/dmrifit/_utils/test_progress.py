"""How far work is, where there is no terminal."""

from dmrifit._utils import progress


def test_steps_with_a_text_are_lines_and_others_only_after_a_while(capfd, monkeypatch):
    clock = iter([0.0, 4.0, 8.0, 16.0, 17.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.step_bar(4, "model", "compare") as count:
        count("first")
        count()
        count()
        count()
    assert capfd.readouterr().err.splitlines() == [
        "compare 1/4 (about 00:12 left) first",
        "compare 3/4 (about 00:05 left) models",
    ]


def test_the_state_of_a_step_is_told_and_steps_of_an_earlier_run_took_no_time(capfd, monkeypatch):
    clock = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.step_bar(10, "epoch", "epoch", n_before=4) as count:
        count("loss 0.5", state="loss 0.5")
        count(state="loss 0.4")
    assert capfd.readouterr().err.splitlines() == [
        "resumed after epoch 4 of 10",
        "epoch 5/10 (about 00:25 left) loss 0.5",
        "epoch 6/10 (about 00:40 left) loss 0.4",
    ]
