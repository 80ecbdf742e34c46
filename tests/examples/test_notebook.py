"""The example of maps in a notebook runs as one, and no cell prints more than a screen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "plot_first_maps.py"
MOST_LINES = 60
MOST_BYTES = 300_000


def run(folder, *words):
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def written(value):
    """The text of a part of an output, which notebooks store whole or in lines."""
    return value if isinstance(value, str) else "".join(value)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook of the example with what its cells have printed."""
    for library in ("nbconvert", "ipykernel", "sphinx_gallery", "dipy", "matplotlib", "jinja2"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("notebook")
    script = folder / SCRIPT.name
    script.write_bytes(SCRIPT.read_bytes())
    run(folder, "-c", "from sphinx_gallery.notebook import python_to_jupyter_cli as make; make()", script.name)
    name = script.with_suffix(".ipynb").name
    run(folder, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", name)
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_no_cell_of_the_notebook_prints_more_than_a_screen(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    for cell in cells:
        assert cell["outputs"], written(cell["source"])
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", written(output["text"])
            for text in [output.get("text", ""), *output.get("data", {}).values()]:
                assert len(written(text).splitlines()) <= MOST_LINES, written(cell["source"])
                assert len(written(text).encode()) <= MOST_BYTES, written(cell["source"])
