"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

from front_door import Chapter

from anomaly.cli import program as cli


class TestAnomaly(Chapter):
    heading, program, app = "Find anomalies in diffusion MRI", "dmrifit-anomaly", cli.app

    def test_columns_that_the_readme_names_are_read(self, section):
        from anomaly.scans.cases import _OPTIONAL, _REQUIRED

        named = self.named_columns(section)
        assert set(_REQUIRED) < named
        assert {*_REQUIRED, *_OPTIONAL} - named == {"synthetic"}

    def test_the_lines_in_python_run(self, section, monkeypatch, capsys):
        import anomaly

        made = anomaly.simulate_dmri
        # Half the persons, and fewer directions: the lines are what is tested.
        less = {"n_directions": 6, "spacing": 6.0, "shape": (28, 32, 22)}
        monkeypatch.setattr(anomaly, "simulate_dmri", lambda n, m, **given: made(n, m // 2, **{**given, **less}))
        self.run_lines(section)
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("z, one-sided", "PCA", "all positive", "1 − mean signal", "opened"))
