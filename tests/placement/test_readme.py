"""Worked lines in the README and in --help are understood by the commands, and the lines in Python run."""

from front_door import Chapter

from placement.cli import program as cli


class TestPlacement(Chapter):
    heading, program, app = "Place a spectroscopy voxel", "dmrifit-placement", cli.app

    def test_the_lines_in_python_run(self, section, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        self.run_lines(section)
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("experts", "optimizer", "ranker", "random box"))
        assert (tmp_path / "voxel" / "voxel.json").is_file()
