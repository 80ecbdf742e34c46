"""Checkpoints and curves beside a model while it is trained."""

import builtins

import pytest

from dmrifit.cli.training_files import TrainingFiles, plot_training

HISTORY = [{"epoch": 1, "train_loss": 0.9}, {"epoch": 2, "train_loss": 0.7}]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("checkpoint", [None, "states"])
def test_only_the_default_checkpoint_is_removed_and_only_after_success(tmp_path, checkpoint, error, capsys):
    model = tmp_path / "model.dmrifit"
    folder = tmp_path / (checkpoint or ".model.dmrifit.training")
    custom = None if checkpoint is None else folder
    folder.mkdir()
    told = f"dmrifit: finished epochs are kept in {folder}; the same command resumes there\n"
    # In the first epoch, nothing is finished yet.
    for file, message in (("run.json", ""), ("state.safetensors", told)):
        (folder / file).touch()
        with pytest.raises(error), TrainingFiles(model, custom).training():
            raise error
        assert capsys.readouterr().err == (message if error is KeyboardInterrupt else "")
    with TrainingFiles(model, custom).training() as fields:
        assert fields["checkpoint"] == str(folder)
    assert folder.is_dir() == (checkpoint is not None)


def test_the_curve_is_drawn_anew_after_each_epoch_and_appears_whole(tmp_path):
    pytest.importorskip("matplotlib")
    write = TrainingFiles(tmp_path / "v1.5.dmrifit").draw_curve
    sizes = []
    for n in (1, 2):
        write(HISTORY[:n])
        (curve,) = tmp_path.iterdir()
        assert curve.name == "v1.5.curve.png"
        assert curve.read_bytes().endswith(b"IEND\xaeB`\x82")
        sizes.append(curve.read_bytes())
    assert sizes[0] != sizes[1]


def test_without_matplotlib_a_training_goes_on_and_says_so(tmp_path, monkeypatch):
    import_module = builtins.__import__

    def without(name):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name, name="matplotlib")
        return import_module(name)

    monkeypatch.setattr("dmrifit._optional.import_module", without)
    with pytest.warns(UserWarning, match="curve of the training is not drawn: matplotlib") as told:
        TrainingFiles(tmp_path / "model.dmrifit").draw_curve(HISTORY)
    assert len(told) == 1
    assert not [*tmp_path.iterdir()]


def test_losses_and_scores_have_a_panel_each_with_the_value_of_the_kept_epoch_in_its_heading():
    pytest.importorskip("matplotlib")
    losses, scores = [0.9, 0.5, 0.4], [0.1, 0.3, 0.2]
    rows = zip((1, 2, 3), losses, scores, strict=True)
    history = [{"epoch": n, "train_loss": loss, "valid_score": score} for n, loss, score in rows]
    for n, keys, values in ((3, ("train_loss",), [losses]), (2, ("train_loss", "valid_score"), [losses, scores])):
        figure = plot_training([{key: row[key] for key in ("epoch", *keys)} for row in history])
        assert [list(ax.lines[0].get_ydata()) for ax in figure.axes] == values
        for ax, drawn in zip(figure.axes, values, strict=True):
            assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
            assert ax.texts[0].get_text() == f"epoch {n} (kept): {drawn[n - 1]:.4g}"
            assert ax.get_xlabel() == "epoch"
            assert "better" in ax.get_ylabel()
