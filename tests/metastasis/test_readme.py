"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

import pytest
from front_door import Chapter

from metastasis.cli import program as cli


class TestMetastasis(Chapter):
    heading, program, app = "Find small metastases", "dmrifit-metastasis", cli.app

    def test_columns_that_the_readme_names_are_read(self, section):
        from metastasis.scans.cases import _OPTIONAL, _REQUIRED

        named = self.named_columns(section)
        assert set(_REQUIRED) < named <= {*_REQUIRED, *_OPTIONAL}

    @pytest.mark.deep
    def test_the_lines_in_python_run(self, section, tmp_path, monkeypatch, capsys):
        pytest.importorskip("torch")
        import metastasis
        from dmrifit import Training

        small, segmenter = metastasis.simulate_metastases, metastasis.DeepMedicSegmenter
        tiny = {"widths": (2, 2), "segments_per_epoch": 4, "training": Training(epochs=1, batch_size=2)}
        monkeypatch.setattr(metastasis, "simulate_metastases", lambda n, **given: small(
            n, shape=(36, 36, 36), spacing=2.5, **given
        ))  # fmt: skip
        monkeypatch.setattr(metastasis, "DeepMedicSegmenter", lambda **given: segmenter(**{**given, **tiny}))
        monkeypatch.chdir(tmp_path)
        self.run_lines(section)
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("sensitive", "both", "all positive", "strict_precision"))
        assert (tmp_path / "compared" / "report.html").is_file()
