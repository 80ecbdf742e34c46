"""How Sphinx builds the pages; see build.py, which puts their sources together."""

import os
import re
from pathlib import Path

from pages import GALLERIES

import dmrifit

project = "dmrifit"
author = "The dmrifit developers"
project_copyright = author
version = release = dmrifit.__version__

extensions = ["sphinx.ext.autosummary", "sphinx.ext.autodoc", "sphinx.ext.autosectionlabel", "numpydoc",
              "sphinx_gallery.gen_gallery"]  # fmt: skip
#: Sections are named with their page, and only the first two levels: programs repeat the others.
autosectionlabel_prefix_document = True
autosectionlabel_maxdepth = 2
exclude_patterns = ["scripts", "static", "templates", "**/sg_execution_times.rst", "sg_execution_times.rst"]
templates_path = ["templates"]
default_role = "py:obj"
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_use_plots = False

html_theme = "furo"
html_title = f"dmrifit {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]

#: The script that reads scans which are not part of the project.
NEEDS_DATA = "plot_real_voxels.py"
DATA = os.environ.get("DMRIFIT_DATA", "")


class PageOrder:
    """Sort the scripts of a gallery as pages.py lists them."""

    def __init__(self, folder):
        self.folder = folder

    def __repr__(self):
        return "PageOrder"

    def __call__(self, filename):
        names = [f"plot_{name}.py" for scripts in GALLERIES.values() for name in scripts]
        return names.index(filename)


def picture_of(script, gallery_conf):
    """Name the picture that a script of the examples writes, which is called like the script."""
    folder = Path(gallery_conf["src_dir"], gallery_conf["examples_dirs"][0], "build", "examples")
    return folder / f"{Path(script).stem.removeprefix('plot_')}.png"


def saved_picture(block, block_vars, gallery_conf):
    """Show the picture that a script has written, or else the figures it has left open."""
    import matplotlib.pyplot as plt
    from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

    written = picture_of(block_vars["src_file"], gallery_conf)
    if not written.exists():
        return matplotlib_scraper(block, block_vars, gallery_conf)
    plt.close("all")
    # Moved, so that the next block does not show it again.
    shown = written.replace(next(block_vars["image_path_iterator"]))
    return figure_rst([str(shown)], gallery_conf["src_dir"])


def begin_script(gallery_conf, fname):
    """Remove the picture of an earlier run of a script, and show whole texts."""
    import pandas as pd

    picture_of(fname, gallery_conf).unlink(missing_ok=True)
    pd.set_option("display.max_colwidth", None)


def arguments(gallery_conf, script_vars):
    """Give scripts the arguments they are called with."""
    name = Path(script_vars["src_file"]).name
    if name == NEEDS_DATA:
        return [str(Path(DATA).resolve() / "isbi2015_wm_genu" / "genu_table.csv")]
    return []


sphinx_gallery_conf = {
    "examples_dirs": ["scripts/examples", "scripts/guides"],
    "gallery_dirs": ["examples", "guides"],
    "filename_pattern": "plot_",
    "ignore_pattern": "__init__|" + ("no script is left out" if DATA else re.escape(NEEDS_DATA)),
    "image_scrapers": (saved_picture,),
    "reset_modules": ("matplotlib", begin_script),
    "reset_argv": arguments,
    "within_subsection_order": PageOrder,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 10**6,
    "plot_gallery": True,
    "matplotlib_animations": False,
    "parallel": 2,
}
suppress_warnings = ["config.cache"]


def skip_generated(app, what, name, obj, skip, options):
    """Leave out the methods that scikit-learn makes for the routing of metadata."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else skip


#: What is said of names that are neither classes nor functions, which have no text of their own.
DATA_TEXTS = {
    "dmrifit.MODELS": "The built-in signal models by name; :doc:`/guides/plot_models` has formulas and bounds.",
    "anomaly.GENERATORS": "Generators of synthetic anomalies in scans of healthy persons, by name: {values}. Each is called "
    "with a scan and its mask, and gives the changed scan and the mask of the anomaly.",
    "dmrifit.ALGORITHMS": "Names of the study's seven algorithms, for `make_regressor`: {values}.",
}


def describe_data(app, what, name, obj, options, lines):
    """Write the text of a name that is neither a class nor a function."""
    if what == "data" and name in DATA_TEXTS:
        lines[:] = [DATA_TEXTS[name].format(values=", ".join(f"``{one}``" for one in obj))]


def add_math(app):
    """Write formulas as MathML, which browsers draw without a script from elsewhere."""
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml

    def inline(self, node):
        self.body.append(tex2mathml(node.astext(), as_block=False))
        raise nodes.SkipNode

    def block(self, node):
        self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))


html_math_renderer = "mathml"


def setup(app):
    """Connect the functions above."""
    app.connect("autodoc-skip-member", skip_generated)
    app.connect("autodoc-process-docstring", describe_data)
    add_math(app)
