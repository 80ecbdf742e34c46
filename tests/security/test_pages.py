"""Pages show every string that comes from files as text: nothing of it becomes an element, an attribute or a script."""

import copy
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from dmrifit.report import page as pages
from metastasis.study import lesion_sizes

#: Ends whatever it may stand in: text, attributes of both quotes, styles, scripts, comments, templates, formulas.
PLANT = (
    "</style></script></title></textarea>--><script>planted()</script><img src=x onerror=planted()>"
    '"\' onmouseover=planted() href=javascript:planted() style="x:url(//planted)" {{7*7}}{% raw %}${7*7} '
    "$\\planted{$ &lt;"
)
#: One that fits into the name of a file with every sign of it quoted.
SHORT = '</p><img src=x onerror=planted()>"$\\p{$'
#: The same as the name of a file, which has no slash.
FILE = PLANT.replace("/", "_")
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, their attributes and the text of a page, as a browser finds them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text, self.scripts = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)
        else:
            self.text += data

    def handle_comment(self, data):
        pytest.fail(f"a comment: {data[:80]}")


def assert_harmless(text, *, names=(PLANT,), views=()):
    """Check what a page is made of, and that the planted words stand in it as text."""
    page = Page(text)
    assert not page.open
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "link", "video", "audio"), tag
        for key, value in attributes.items():
            value = value or ""
            assert not key.startswith("on"), (tag, key)
            assert "planted" not in key
            if key in ("src", "href", "action", "srcset", "data", "poster"):
                inside = value.startswith(("#", "data:image/png;base64,")) or value in views
                assert inside or re.fullmatch(r"\./[^:]*", value), (tag, key, value[:80])
            if key in ("style", "class", "id", "type"):
                assert "planted" not in value, (tag, key, value[:80])
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    for script in page.scripts:
        # Data of a viewer may say it; nothing that runs or styles does.
        assert "planted" not in script or isinstance(json.loads(script), dict)
        assert "@import" not in script
        assert "url(" not in script.replace("url(data:", "") or "planted" in script
    shown = " ".join(page.text.split()) + " ".join(
        " ".join((value or "").split()) for _, attributes in page.elements for value in attributes.values()
    )
    for name in names:
        assert " ".join(name.split()) in shown, name[:40]
    return page


# What neither HTML nor its parser keeps apart is left out: ends of lines, and signs that no text has.
letters = st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Zs", "Cs"))
ends = st.sampled_from([PLANT, "</style>", "]]>", "<!--", "{{", "&amp;", "'"])
words = st.one_of(st.text(letters, max_size=20), ends)


@settings(max_examples=15)
@given(title=words, heading=words, lead=words, cells=st.lists(words, min_size=1, max_size=4), badge=words)
def test_whatever_is_written_on_a_page_is_read_from_it(title, heading, lead, cells, badge):
    png = bytes(16) + (200).to_bytes(4, "big")
    record = {"control": True, "cell": cells[0], "of": badge}
    light = dict.fromkeys(("layer", "name", "value", "interval", "words", "why", "remedy"), badge) | {"kind": "fixed", "sign": "x"}
    sections = [
        pages.Section(
            heading,
            badge,
            pages.Table([cells], cells, numbers=[0]),
            pages.Table([record], "cell {cell:} | of {of} and {cell:w}"),
            pages.Grid(pages.Picture(png, badge, title)),
            pages.Note(title),
            pages.Lead(title, badge),
            pages.Lights(badge, badge, light),
            pages.Heading(badge),
            pages.Columns(pages.Block(*cells), pages.Block(lead)),
            pages.Fold(title, badge),
            pages.Code(title),
            pages.Link(title, badge),
        ),
        pages.Section("", lead),
    ]
    text = pages.Page(title, sections, lead, contents=True).html()
    plain = Page(pages.Page("t", [pages.Section("h", "x")], "l", contents=True).html())
    page = assert_harmless(text, names=[one for one in (title, lead, badge, *cells) if one.strip()])
    assert plain.scripts == page.scripts  # the style, and nothing else


def planted(value):
    """Plant the words in all strings of plain values, but for what names files and codes."""
    if isinstance(value, dict):
        kept = ("File", "StandardErrorFile", "Codes", "Version")
        return {key: item if key in kept else planted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item) for item in value]
    return PLANT if isinstance(value, str) else value


@pytest.mark.slow
def test_the_page_of_a_fit_shows_names_of_files_and_settings_as_text(tmp_path):
    from dmrifit import MODELS, Protocol, fit_image
    from dmrifit.report.quicklook import ShownMaps, write_quicklook

    protocol = Protocol([0, 200, 500, 1000], te=80, name=PLANT)
    signals = MODELS["adc"].signal(np.random.default_rng(0).uniform([100, 0.3], [900, 2], (24, 2)), protocol)
    nib.save(nib.Nifti1Image(signals.reshape(4, 3, 2, 4), np.diag([2.0, 2, 4, 1])), tmp_path / f"{FILE}.nii")
    out = tmp_path / "out"
    maps = fit_image(tmp_path / f"{FILE}.nii", protocol, "adc", out=out, quicklook=True)
    (page,) = out.glob("*quicklook.html")
    assert_harmless(page.read_text(encoding="utf-8"), names=[f"{FILE}.nii"])
    (sidecar,) = out.glob("*dwimap.json")
    described = json.loads(sidecar.read_text(encoding="utf-8"))
    values = {name: np.asarray(image.dataobj) for name, image in maps.items()}
    files = {"png": tmp_path / "x.png", "html": tmp_path / "x.html"}
    write_quicklook(ShownMaps(values, np.diag([2.0, 2, 4, 1]), planted(described)), title=PLANT, **files)
    assert_harmless((tmp_path / "x.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pages_of_placed_voxels_show_names_of_cases_as_text(tmp_path):
    from placement import Scene, Voxel, write_prescription
    from placement.cli.placement_commands import RUN

    tumor = np.zeros((12, 12, 12), bool)
    tumor[3:9, 3:9, 3:9] = True
    scene = Scene(tumor, np.diag([4.0, 4, 4, 1]), name=PLANT)
    contents = {}
    voxel = Voxel((22, 22, 22), (18, 18, 18), (0, 0, 0))
    for name in (FILE, PLANT):
        content = write_prescription(voxel, scene, tmp_path / FILE, overwrite=True)
        contents[name] = content | {"flags": [PLANT]}
    RUN.write(tmp_path, contents, figure=True)
    assert_harmless((tmp_path / "index.html").read_text(encoding="utf-8"), names=[PLANT, FILE])
    for view in (tmp_path / FILE).glob("*.html"):
        assert_harmless(view.read_text(encoding="utf-8"), names=())


@pytest.mark.parametrize("package", ["anomaly", "metastasis"])
def test_pages_of_runs_show_names_of_scans_as_text(package, tmp_path):
    (tmp_path / FILE).mkdir()
    (tmp_path / FILE / "panels.png").write_bytes(bytes(24))
    run = import_module(f"{package}.cli.case_runs").RUN
    columns = ["number", "diameter_mm", *lesion_sizes.FIGURES, "x", "y", "z", "probability", "mean_probability"]
    content = {
        "name": PLANT, "patient": PLANT, "folder": FILE, "synthetic": True, "threshold": 3.0, "n_lesions": 1,
        "volume_mL": 1.0, "opening": 3, "share_above": 0.1, "lesions": [dict.fromkeys(columns, 1.0)], "lesion_columns": columns,
        "differs": True, "min_voxels": 1, "n_marked_by_both": None, "volume_with_core_mL": 1.0, "statement": PLANT,
        "notes": [f": {PLANT}"], "healthy": {"anomalies_per_scan": 0.5, "n_scans": 2, "origin": "training"}, "flags": [PLANT], "model": PLANT,
    }  # fmt: skip
    run.write(tmp_path, {FILE: content}, figure=True)
    assert_harmless((tmp_path / "index.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_report_of_a_comparison_shows_names_of_cohorts_patients_and_algorithms_as_text(tmp_path):
    from dmrifit import Cohort, SignalToSignal, compare, simulate_cohort, write_report

    cohort = simulate_cohort("cohort1", 3, shape=(16, 16, 3), random_state=0)
    scans = [copy.copy(scan) for scan in cohort.scans]
    for i, scan in enumerate(scans):
        scan.patient, scan.cohort = f"{i}{SHORT}", SHORT
    source, target = cohort.scans[0].protocol.clinical(), cohort.scans[0].protocol
    estimator = SignalToSignal("LR", source=target.take(source), target=target, random_state=0)
    cohorts = {SHORT: Cohort(scans, SHORT)}
    evaluation = compare({PLANT: estimator}, cohorts, max_voxels=60, keep_predictions=True, random_state=0)
    write_report(evaluation, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    # The example is the median patient, here the last one.
    assert_harmless(page, names=[PLANT, SHORT, f"2{SHORT}"])


@pytest.mark.slow
def test_the_report_of_detectors_shows_names_of_scans_methods_and_commands_as_text(tmp_path):
    from anomaly import simulate_dmri
    from anomaly.study.report import write_evaluation

    healthy, cases = simulate_dmri(3, 2, n_directions=3, shape=(16, 20, 14), spacing=9.0, random_state=3)
    named = [replace(case, name=f"{i}{PLANT}", patient=f"{i}{PLANT}", kind=PLANT) for i, case in enumerate(healthy + cases)]
    maps = [case.signal.mean(axis=-1).astype(np.float32) * case.brain for case in named]
    of_healthy = {"healthy": named[:3], "healthy_maps": {PLANT: maps[:3]}}
    write_evaluation(named[3:], {PLANT: maps[3:]}, tmp_path, **of_healthy, figures=1, command=PLANT)
    assert_harmless((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_report_of_segmentations_shows_names_of_scans_methods_and_commands_as_text(tmp_path):
    from metastasis import simulate_metastases, write_evaluation

    cases = simulate_metastases(2, shape=(36, 36, 36), spacing=2.5, metastases=(2, 3), random_state=3)
    named = [replace(case, name=f"{i}{PLANT}", patient=f"{i}{PLANT}") for i, case in enumerate(cases)]
    masks = {PLANT: [np.asarray(case.label) for case in named]}
    write_evaluation(named, masks, tmp_path, figures=1, n_bootstrap=0, command=PLANT)
    assert_harmless((tmp_path / "report.html").read_text(encoding="utf-8"))
