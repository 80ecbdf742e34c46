"""The viewer of reports: what Python stores, what JavaScript makes of it, and what a browser shows."""

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmrifit
from dmrifit.report.page import Page, Section
from dmrifit.report.style import FOUND, OUTLINES, REFERENCE, UNSURE
from dmrifit.report.viewer import Layer, _coarser, html_viewer

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

SCRIPT = Path(dmrifit.__file__).parent / "report" / "data" / "viewer.js"
SHAPE = (12, 10, 5)
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}  # axes of the world: normal, across, up


def turned(degrees, edges, center=(3.0, -5.0, 20.0)):
    """An affine whose axes are turned about z and then x."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z * edges
    affine[:3, 3] = center
    return affine


STRAIGHT = turned(0, (2, 2, 6))
OBLIQUE = turned(20, (2, 3, 5))


@pytest.fixture
def layers():
    """Numbers that differ in each voxel, some without value, with a score and a mask of two labels."""
    rng = np.random.default_rng(0)
    signal = rng.uniform(50, 900, SHAPE)
    signal[0, 0, 0] = np.nan
    score = rng.uniform(0, 1, SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:6, 3:7, 1:3], mask[8:10, 2:4, 3] = 1, 2
    return [
        Layer("signal", signal, "image", "a.u."),
        Layer("score", score, "score", threshold=0.6),
        Layer("found", mask, "mask", names=("marked by both", "candidate")),
    ]


def data_of(markup):
    """What a viewer stores."""
    text = re.search(r'<script type="application/json">(.*?)</script>', str(markup), re.DOTALL).group(1)
    return json.loads(text)


def codes_of(data, layer):
    raw = np.frombuffer(gzip.decompress(base64.b64decode(layer["data"])), np.uint8)
    if layer["bits"] > 8:
        high, low = raw.reshape(2, -1)
        raw = high.astype(np.uint16) * 256 + low
    return raw.reshape(data["shape"])


def values_of(data, layer):
    """Numbers by the definition in words: 0 is none, the rest go in equal steps from low to high."""
    codes = codes_of(data, layer).astype(float)
    steps = (codes - 1) / (2 ** layer["bits"] - 2)
    return np.where(codes == 0, np.nan, layer["low"] + steps * (layer["high"] - layer["low"]))


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_numbers_come_back_within_half_a_step(layers, affine):
    data = data_of(html_viewer(layers, affine))
    for layer, stored in zip(layers[:2], data["layers"], strict=False):
        back = values_of(data, stored)
        step = (stored["high"] - stored["low"]) / (2 ** stored["bits"] - 2)
        clipped = np.clip(layer.values, stored["low"], stored["high"])
        np.testing.assert_allclose(back, clipped, rtol=0, atol=step / 2 + 1e-9, equal_nan=True)
        assert step < 1.01 * np.ptp(layer.values[np.isfinite(layer.values)]) / (254 if stored["bits"] == 8 else 65534)
    np.testing.assert_array_equal(codes_of(data, data["layers"][2]), layers[2].values)
    np.testing.assert_allclose(data["affine"], affine[:3])


@settings(max_examples=30)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_reaches_the_threshold_is_shown_and_nothing_below_it_by_a_step(threshold, seed):
    values = np.random.default_rng(seed).uniform(0, 1, (4, 4, 4))
    values.flat[0] = threshold
    data = data_of(html_viewer([Layer("score", values, "score", threshold=threshold)], np.eye(4)))
    stored = data["layers"][0]
    step = (stored["high"] - stored["low"]) / 65534
    edge = 1 + np.floor((threshold - stored["low"]) / (stored["high"] - stored["low"]) * 65534 + 0.5)
    shown = codes_of(data, stored) >= edge
    assert shown[values >= threshold].all()
    assert not shown[values < threshold - step].any()


@pytest.mark.parametrize("outlier", [1e2, 1e4, 2e6, 1e9])
def test_an_outlier_adds_no_voxel_to_those_above_the_threshold(outlier):
    values = np.random.default_rng(4).chisquare(4, (20, 20, 20))
    limit = float(np.quantile(values, 0.999))
    values[3, 4, 5] = outlier
    stored = data_of(html_viewer([Layer("map", values, "score", threshold=limit)], np.eye(4)))["layers"][0]
    codes = codes_of({"shape": values.shape}, stored)
    np.testing.assert_array_equal(codes >= stored["edge"], values >= limit)


def test_what_is_empty_is_cut_away_but_outlines_and_boxes_stay_inside():
    mask, region = np.zeros((2, 30, 30, 30), dtype=np.uint8)
    mask[2:5, 2:5, 2:5], region[15:25, 15:25, 15:25] = 1, 1
    layers = [Layer("scan", np.ones((30, 30, 30)) * np.arange(30)), Layer("reference", mask, "mask")]
    data = data_of(html_viewer(layers, np.eye(4), region=region > 0))
    assert (codes_of(data, data["layers"][1]) > 0).sum() == 27
    values = np.zeros((40, 30, 20))
    values[20:24, 10:14, 5:8] = 1
    data = data_of(html_viewer([Layer("map", values, "map")], STRAIGHT))
    assert data["shape"] == [8, 8, 7]
    np.testing.assert_allclose(np.array(data["affine"])[:, 3], (STRAIGHT @ [18, 8, 3, 1])[:3])
    far = np.diag([4.0, 4.0, 6.0, 1.0])
    far[:3, 3] = (STRAIGHT @ [35, 12, 6, 1])[:3]
    boxed = data_of(html_viewer([Layer("map", values, "map")], STRAIGHT, boxes={"far": far}))
    low = np.array(boxed["affine"])[:, 3]
    assert (low + np.array([2, 2, 6]) * (np.array(boxed["shape"]) - 1) >= far[:3, 3] + [2, 2, 3]).all()
    page = html_viewer([Layer("map", values, "map")], STRAIGHT)
    assert "Cropped from 40 × 30 × 20 voxels" in page


def test_any_order_of_storage_shows_the_same(layers):
    flipped = [Layer(one.name, one.values[::-1].transpose(2, 0, 1), one.kind, one.unit, one.window, one.threshold,
                     one.names) for one in layers]  # fmt: skip
    affine = STRAIGHT @ np.array([[0, -1, 0, SHAPE[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(affine @ [0, SHAPE[0] - 1, 0, 1], STRAIGHT @ [0, 0, 0, 1])
    assert data_of(html_viewer(flipped, affine)) == data_of(html_viewer(layers, STRAIGHT))


def test_a_large_scan_is_made_coarser_and_the_page_says_so():
    values = np.random.default_rng(0).uniform(1, 2, (33, 32, 16))
    mask = np.zeros(values.shape, np.uint8)
    mask[17, 9, 3] = 3
    made = html_viewer(
        [Layer("image", values), Layer("score", values, "score"), Layer("mask", mask, "mask")],
        np.diag([1.0, 1.0, 2.0, 1.0]),
        max_bytes=20_000,
    )
    data = data_of(made)
    assert sum(len(one["data"]) for one in data["layers"]) <= 20_000
    assert data["shape"] == [17, 16, 16]
    assert "2 × 2 × 1 voxels were put together" in made
    np.testing.assert_allclose(np.array(data["affine"]), [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0]])
    padded = np.concatenate([values, values[-1:]])
    blocks = padded.reshape(17, 2, 16, 2, 16)
    means, stored = blocks.mean((1, 3)), data["layers"][0]
    means = np.clip(means, stored["low"], stored["high"])  # the rarest values are cut off
    np.testing.assert_allclose(values_of(data, stored), means, atol=0.01)
    np.testing.assert_allclose(values_of(data, data["layers"][1]), blocks.max((1, 3)), atol=2e-5)
    assert codes_of(data, data["layers"][2])[8, 4, 3] == 3
    assert (codes_of(data, data["layers"][2]) > 0).sum() == 1


def test_blocks_with_voxels_without_value_have_the_mean_of_the_others():
    values = np.full((4, 4, 4), 5.0)
    values[0] = np.nan
    values[2:, 2:, 2:] = np.nan
    values[1, 1, 1] = 1.0
    coarser = _coarser(_coarser(_coarser(Layer("map", values, "map"), 0), 1), 2).values
    expected = np.full((2, 2, 2), 5.0)
    expected[0, 0, 0] = (3 * 5 + 1) / 4
    expected[1, 1, 1] = np.nan
    np.testing.assert_allclose(coarser, expected)


class Rows:
    """Stands for records of voxels: packs the numbers of the rows that it is asked for."""

    def __init__(self, rows):
        self.signals = SimpleNamespace(rows=rows)

    def pack(self, rows):
        return {"rows": rows.tolist()}


def test_records_follow_the_voxels_of_the_viewer_however_it_turns_cuts_and_joins_them():
    rng = np.random.default_rng(0)
    values = np.zeros((20, 16, 8))
    values[3:18, 2:14, 1:7] = rng.uniform(1, 2, (15, 12, 6))
    rows = np.zeros(values.shape, np.int32)
    filled = (values > 1.3) & (np.arange(8) % 2 == 0)
    rows[filled] = 1 + rng.permutation(filled.sum())
    affine = np.diag([-1.0, 1, 2, 1])
    for max_bytes in (1_000_000, 900):
        data = data_of(html_viewer([Layer("map", values, "map")], affine, records=Rows(rows), max_bytes=max_bytes))
        has_record = codes_of(data, {"data": data["records"]["present"], "bits": 8})
        places = np.argwhere(has_record)
        found = data["records"]["rows"]
        assert len(found) == len(places) == len(set(found)) > 10
        matrix = np.vstack([data["affine"], [0, 0, 0, 1]])
        centers = np.column_stack([places, np.ones(len(places))]) @ matrix.T
        at = {row: voxel for row, voxel in zip(rows[filled], np.argwhere(filled), strict=True)}
        for row, center in zip(found, centers, strict=True):
            distance = np.abs((affine @ [*at[row], 1] - center)[:3])
            # In a joined voxel, the record is of one of those that were joined.
            assert (distance <= np.linalg.norm(matrix[:3, :3], axis=0) / 2).all()
        assert (len(found) == filled.sum()) == (max_bytes == 1_000_000)


def test_maps_have_three_digits_where_that_fits_and_two_where_it_does_not():
    values = np.random.default_rng(0).uniform(1, 2, (20, 20, 20))
    for max_bytes, bits in ((1_000_000, 12), (12_000, 8)):
        data = data_of(html_viewer([Layer("map", values, "map")], np.eye(4), max_bytes=max_bytes))
        assert data["shape"] == [20, 20, 20]
        assert data["layers"][0]["bits"] == bits


class Parts(HTMLParser):
    """Elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_names_are_escaped_wherever_they_stand(layers):
    evil = "</script><script>alert(1)</script><!--\"&'"
    named = [Layer(evil, one.values, one.kind, evil, names=(evil, evil)) for one in layers]
    made = html_viewer(named, STRAIGHT, boxes={evil: np.eye(4)}, points=[(evil, (0, 0, 0))], label=evil,
                       instead=evil)  # fmt: skip
    page = Page(evil, [Section(evil, made)]).html()
    scripts = [given for tag, given in Parts(page).found if tag == "script"]
    assert scripts == [{"type": "application/json"}, {}]
    assert "<!--" not in page.partition("<script>")[0]
    assert [layer["name"] for layer in data_of(made)["layers"]] == [evil] * 3


def test_the_policy_allows_the_viewer_and_nothing_else(layers):
    page = Page("title", [Section("", html_viewer(layers, STRAIGHT))]).html()
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page).group(1))
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for kind, text in (
        ("script", re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)),
        ("style", re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}
    assert "script-src" not in Page("title", []).html()
    assert 'style="' not in page


def test_the_script_and_its_style_name_no_address_and_end_no_element():
    for name in ("viewer.js", "voxel.js", "page.css"):
        text = SCRIPT.with_name(name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|//\w|url\(|@import|</|<!--|eval\(|fetch\(|XMLHttp|WebSocket|innerHTML", text)
        assert len(text) < 25_000


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros((3, 3, 3)), "image"), (np.full((3, 3, 3), np.nan), "map"), (np.full((3, 3, 3), 7.0), "score"),
        (np.full((1, 1, 1), -np.inf), "image"),
        (np.zeros((3, 3, 3), bool), "mask"),
        (np.full((2, 3, 4), 1e-30, np.float32), "map"),
    ],
)
def test_volumes_with_one_number_or_none_can_be_shown(values, kind):
    data = data_of(html_viewer([Layer("odd", values, kind)], np.eye(4)))
    stored = data["layers"][0]
    if kind != "mask":
        assert stored["window"][1] > stored["window"][0]
        known = np.isfinite(values)
        np.testing.assert_array_equal(np.isfinite(values_of(data, stored)), known)


# ---- the script, without a page --------------------------------------------------------------------------------------


def node(code, **given):
    """Run JavaScript beside the functions of the viewer, and give what it returns."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("no node is on the PATH to run the viewer's functions without a browser")
    text = f"const v = require({json.dumps(str(SCRIPT))}); const given = JSON.parse(require('fs').readFileSync(0));\n"
    text += f"(async () => {{ {code} }})().then((out) => console.log(JSON.stringify(out)));"
    done = subprocess.run([command, "-e", text], input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def plane_points(affine, shape, plane, position, size):
    """Where the pixels of a plane lie, in mm: by the words of the documentation."""
    normal, across, up = PLANES[plane]
    corners = (
        np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape])).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    )
    low, high = corners.min(axis=0), corners.max(axis=0)
    width, height = size
    pixel = (high[across] - low[across]) / width, (high[up] - low[up]) / height
    points = np.empty((height, width, 3))
    points[..., normal] = position[normal]
    steps = (np.arange(width) + 0.5) * pixel[0]
    points[..., across] = low[across] + steps if plane == "sagittal" else high[across] - steps
    points[..., up] = (high[up] - (np.arange(height) + 0.5) * pixel[1])[:, None]
    return points


def nearest(affine, shape, points):
    """The voxel of each point, and how far it is from the next one."""
    index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    voxel = np.floor(index + 0.5).astype(int)
    inside = ((voxel >= 0) & (voxel < shape)).all(-1)
    return voxel, inside, np.abs(index + 0.5 - np.round(index + 0.5)).min(-1)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
def test_planes_cut_the_grid_where_numpy_says(affine):
    position = [6.4, 3.2, 31.0]
    made = node(
        "const g = v.geometryOf(given.shape, given.affine); return { pixel: g.pixel, planes: Object.keys(v.PLANES).map("
        "(name) => [name, v.sizeOf(g, name), [...v.offsetsOf(g, name, given.position)]]) };",
        shape=SHAPE,
        affine=affine[:3].tolist(),
        position=position,
    )
    for plane, size, offsets in made["planes"]:
        points = plane_points(affine, SHAPE, plane, position, size)
        voxel, inside, margin = nearest(affine, SHAPE, points)
        expected = np.where(
            inside, np.ravel_multi_index(np.moveaxis(np.where(inside[..., None], voxel, 0), -1, 0), SHAPE), -1
        )
        sure = margin > 0.02  # oblique fields are no whole number of pixels
        assert sure.mean() > 0.8
        np.testing.assert_array_equal(np.reshape(offsets, size[::-1])[sure], expected[sure])
        # A pixel is a square, in all planes of one size.
        extent = np.delete(np.ptp(points, axis=(0, 1)), PLANES[plane][0]) + made["pixel"]
        np.testing.assert_allclose(extent / made["pixel"], size, rtol=0.02)


def test_points_become_pixels_and_come_back():
    made = node(
        "const g = v.geometryOf(given.shape, given.affine); return Object.keys(v.PLANES).map((name) => {"
        " const point = v.worldOf(g, name, [6, 3, 31], 17, 40); return [v.pixelOf(g, name, point),"
        " v.offsetOf(g, point), v.offsetsOf(g, name, [6, 3, 31])[40 * v.sizeOf(g, name)[0] + 17]]; });",
        shape=SHAPE,
        affine=OBLIQUE[:3].tolist(),
    )
    for pixel, offset, drawn in made:
        np.testing.assert_allclose(pixel, [17, 40], atol=1e-9)
        assert offset == drawn


@pytest.mark.parametrize("at", [0.0, 3.3, -7.9, 30.0])
@pytest.mark.parametrize("normal", [0, 1, 2])
def test_a_plane_cuts_a_box_in_the_area_that_its_points_fill(at, normal):
    """An independent measure: the share of random points near the plane that are inside the box."""
    affine = turned(33, (30, 20, 25), (1.0, 2.0, 0.5))
    corners = np.array(
        node(f"return v.crossSection(given.affine, {normal}, {at});", affine=affine[:3].tolist())
    ).reshape(-1, 3)
    first, second = [i for i in range(3) if i != normal]
    x, y = corners[:, first], corners[:, second]
    area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
    side = np.linspace(-40, 40, 401)
    points = np.empty((401, 401, 3))
    points[..., normal], points[..., first], points[..., second] = at, side[:, None], side[None]
    inside = (np.abs((points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T) <= 0.5).all(-1)
    assert area == pytest.approx(inside.sum() * 0.2**2, rel=0.03, abs=1.5)
    np.testing.assert_allclose(corners[:, normal], at, atol=1e-9)


def test_bytes_are_unpacked_as_python_packed_them(layers):
    data = data_of(html_viewer(layers, STRAIGHT))
    found = node(
        "const length = given.shape.reduce((a, b) => a * b);"
        "const all = []; for (const one of given.layers) all.push([...await v.unpack(one.data, length, one.bits)]);"
        "return all;",
        shape=data["shape"],
        layers=data["layers"],
    )
    for codes, layer in zip(found, data["layers"], strict=True):
        np.testing.assert_array_equal(np.reshape(codes, data["shape"]), codes_of(data, layer))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_readings_have_no_more_digits_than_the_codes_carry(bits):
    rng = np.random.default_rng(bits)
    low, high = -0.37, 812.4
    step = (high - low) / (2**bits - 2)
    values = np.concatenate([[0.0, low, high], rng.uniform(low, high, 200)])
    texts = node(
        "return given.values.map((value) => v.reading(given.layer, value));",
        layer={"low": low, "high": high, "bits": bits},
        values=values.tolist(),
    )
    assert texts[0] == "0"
    for value, text in zip(values[1:], texts[1:], strict=True):
        # The place of the third digit, or a higher one where the steps between codes are longer.
        place = max(np.floor(np.log10(abs(value))) - 2, np.ceil(np.log10(step)))
        assert 10.0**place >= step
        assert len(text.partition(".")[2]) == max(-place, 0)
        assert abs(float(text.replace("−", "-")) - value) <= 10.0**place / 2 + 1e-9


def test_the_volume_above_a_threshold_is_that_of_the_voxels(layers):
    data = data_of(html_viewer(layers, STRAIGHT))
    values = layers[1].values
    for side, expected in (("above", (values >= 0.6).sum()), ("below", (values <= 0.6).sum())):
        counted = node(
            "const one = given.layer; one.codes = Uint16Array.from(given.codes);"
            "return v.shareOf(one, { value: 0.6, side: given.side });",
            layer=data["layers"][1],
            codes=codes_of(data, data["layers"][1]).ravel().tolist(),
            side=side,
        )
        assert counted == expected


# ---- a browser -------------------------------------------------------------------------------------------------------

PIXELS = """(() => { const canvas = document.querySelector('[data-plane=%s] canvas');
  const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let text = '';
  for (let i = 0; i < data.length; i += 4) text += String.fromCharCode(data[i], data[i + 1], data[i + 2]);
  return [width, height, btoa(text)]; })()"""


def pixels(page, plane):
    width, height, text = page.evaluate(PIXELS % plane)
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 3).astype(int)


def switch(page, role, value):
    """Set a control as a person does, and tell the page."""
    kind = "checked" if isinstance(value, bool) else "value"
    page.evaluate(
        f"(() => {{ const one = document.querySelector('[data-role={role}]'); one.{kind} = {json.dumps(value)};"
        " one.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.fixture
def opened(tab, tmp_path):
    """Open a page that holds a viewer in a browser."""

    def call(viewer, **options):
        path = tmp_path / "page.html"
        path.write_text(Page("Page", [Section("Planes", viewer)]).html(), encoding="utf-8")
        return tab.open(path, **options)

    return call


def test_a_browser_draws_the_numbers_and_the_slider_changes_the_picture(layers, tmp_path, tab, opened):
    for affine in (STRAIGHT, OBLIQUE):
        made = html_viewer(layers, affine, start=(affine @ [5, 4, 2, 1])[:3])
        page = opened(made)
        data = data_of(made)
        switch(page, "crosshair", False)
        switch(page, "outline", False)
        # Without overlay: gray levels by plain numpy from the numbers that were given.
        switch(page, "overlay", "")
        shown = {plane: pixels(page, plane) for plane in ("axial", "coronal", "sagittal")}
        position = page.evaluate("document.querySelector('.viewer').viewer.position")
        image = data["layers"][0]
        low, high = image["window"]
        for plane, drawn in shown.items():
            points = plane_points(affine, SHAPE, plane, position, drawn.shape[1::-1])
            voxel, inside, margin = nearest(affine, SHAPE, points)
            values = layers[0].values[tuple(np.moveaxis(np.where(inside[..., None], voxel, 0), -1, 0))]
            gray = 255 * np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)
            expected = np.where(inside, gray, 0)
            sure = margin > 0.02
            tolerance = 1 + 255 * (image["high"] - image["low"]) / 254 / (high - low) / 2
            assert np.abs(drawn - expected[..., None])[sure].max() <= tolerance
            assert drawn.std() > 20
        # With it, exactly the voxels from the threshold on are in color, and fewer after the slider has moved.
        switch(page, "overlay", "1")
        for place in (None, 900):
            if place is not None:
                switch(page, "threshold", place)
            score = data["layers"][1]
            limit = 0.6 if place is None else score["low"] + place / 1000 * (score["high"] - score["low"])
            drawn = pixels(page, "axial")
            points = plane_points(affine, SHAPE, "axial", position, drawn.shape[1::-1])
            voxel, inside, margin = nearest(affine, SHAPE, points)
            values = layers[1].values[tuple(np.moveaxis(np.where(inside[..., None], voxel, 0), -1, 0))]
            colored = np.ptp(drawn, axis=-1) > 0
            np.testing.assert_array_equal(colored[margin > 0.02], (inside & (values >= limit))[margin > 0.02])
            volume = (layers[1].values >= limit).sum() * abs(np.linalg.det(affine)) / 1000
            told = float(page.evaluate("document.querySelector('[data-role=amount]').textContent").split()[0])
            assert told == pytest.approx(volume, rel=6e-3)
        switch(page, "side", "below")
        assert (np.ptp(pixels(page, "axial"), axis=-1) > 0).mean() > colored.mean()
        page.evaluate("document.querySelector('[data-role=used]').click()")
        assert page.evaluate("document.querySelector('[data-role=limit]').textContent") == "≥ 0.6"
    assert set(tab.requests) == {(tmp_path / "page.html").resolve().as_uri()}


def test_doubt_is_gray_and_colors_are_those_of_the_bar_at_any_opacity(opened):
    rng = np.random.default_rng(0)
    brightness, values = rng.uniform(0, 1, SHAPE), rng.uniform(0, 2, SHAPE)
    doubted = np.zeros(SHAPE)
    doubted[:4] = 1
    layers = [
        Layer("scan", brightness, window=(0, 1)),
        Layer("K", values, "map", window=(0, 2)),
        Layer("K", doubted, "doubt"),
    ]
    made = html_viewer(layers, STRAIGHT, image="scan", overlay="K", start=(STRAIGHT @ [5, 4, 2, 1])[:3])
    page = opened(made)
    switch(page, "crosshair", False)
    bar = "[data-role=overlay-scale] canvas"
    for opacity in (100, 60, 20):
        switch(page, "opacity", opacity)
        drawn = pixels(page, "axial")
        points = plane_points(STRAIGHT, SHAPE, "axial", page.evaluate("document.querySelector('.viewer').viewer.position"),
                              drawn.shape[1::-1])  # fmt: skip
        voxel, inside, margin = nearest(STRAIGHT, SHAPE, points)
        sure = inside & (margin > 0.02)
        places = tuple(np.moveaxis(voxel[sure], -1, 0))
        gray = np.array([185, 190, 198])
        expected = opacity / 100 * gray + (1 - opacity / 100) * 255 * brightness[places][:, None]
        is_gray = doubted[places] == 1
        assert np.abs(drawn[sure] - expected)[is_gray].max() <= 2
        # Every other color of the planes is a color of the bar, at the number of its voxel.
        shown = page.evaluate(PIXELS.replace("[data-plane=%s] canvas", bar))
        colors = np.frombuffer(base64.b64decode(shown[2]), np.uint8).reshape(shown[1], shown[0], 3).astype(int)
        columns = np.round(255 * values[places] / 2).astype(int)
        rows = np.round((len(colors) - 1) * (1 - brightness[places])).astype(int)
        step = 255 * (1 - opacity / 100) / (len(colors) - 1)
        assert np.abs(drawn[sure] - colors[rows, columns])[~is_gray].max() <= step / 2 + 6
    assert page.locator("[data-role=has-doubt]").is_visible()
    told = "document.querySelector('.viewer').viewer.describeAt([%s], () => true)"
    inside_doubt = ", ".join(str(x) for x in (STRAIGHT @ [2, 4, 2, 1])[:3])
    assert page.evaluate(told % inside_doubt).endswith("(in doubt)")


def test_colors_and_windows_are_those_that_the_reader_chooses(opened):
    rng = np.random.default_rng(1)
    brightness, values = rng.uniform(0, 1, SHAPE), rng.uniform(0, 2, SHAPE)
    layers = [Layer("scan", brightness, window=(0, 1)), Layer("K", values, "map", window=(0, 2))]
    made = html_viewer(layers, STRAIGHT, image="scan", overlay="K", start=(STRAIGHT @ [5, 4, 2, 1])[:3])
    page = opened(made)
    switch(page, "crosshair", False)
    points = plane_points(STRAIGHT, SHAPE, "axial", page.evaluate("document.querySelector('.viewer').viewer.position"),
                          pixels(page, "axial").shape[1::-1])  # fmt: skip
    voxel, inside, margin = nearest(STRAIGHT, SHAPE, points)
    sure = inside & (margin > 0.02)
    places = tuple(np.moveaxis(voxel[sure], -1, 0))

    def assert_drawn(shares, colors):
        expected = mpl.colormaps[colors](np.clip(shares, 0, 1), bytes=True)[:, :3].astype(int)
        # Numbers are stored in steps; colors change by less than 8 from one of 256 to the next.
        assert np.abs(pixels(page, "axial")[sure] - expected).max() <= 8

    def choose(end, text):
        page.locator(f"[data-role={end}]").fill(text)
        page.locator(f"[data-role={end}]").press("Enter")

    assert page.locator("[data-role=overlay-low]").input_value() == "0"
    for colors in ("magma", "coolwarm", "gray", "viridis"):
        switch(page, "colors", colors)
        assert_drawn(values[places] / 2, colors)
    choose("overlay-low", "0.5")
    choose("overlay-high", "1.5")
    assert_drawn(values[places] - 0.5, "viridis")
    assert page.locator("[data-role=overlay-scale] span").all_inner_texts() == ["0.5", "1.5"]
    choose("overlay-low", "3")
    assert page.locator("[data-role=overlay-low]").input_value() == "0.5"
    for end in ("overlay-low", "overlay-high"):
        choose(end, "")
    assert_drawn(values[places] / 2, "viridis")
    switch(page, "overlay", "")
    choose("image-high", "0.5")
    assert_drawn(brightness[places] / 0.5, "gray")


def test_outlines_boxes_and_the_crosshair_are_drawn_where_they_are(layers, opened):
    box = np.diag([8.0, 12.0, 12.0, 1.0])
    box[:3, 3] = (STRAIGHT @ [7, 5, 2, 1])[:3]
    start = (STRAIGHT @ [3, 4, 2, 1])[:3]
    made = html_viewer([Layer("blank", np.ones(SHAPE)), layers[2]], STRAIGHT, boxes={"box": box}, start=start)
    page = opened(made)
    edge = (box[:3, 3] + [3.9, -5.9, 0]).tolist(), (box[:3, 3] + [4.1, 0, 0]).tolist()
    words = [page.evaluate(f"document.querySelector('.viewer').viewer.describeAt({at}, () => false)") for at in edge]
    assert [text.endswith("box") for text in words] == [True, False]
    drawn = pixels(page, "axial")
    scale = drawn.shape[1] / SHAPE[0]

    def middle(i, j):
        return int((SHAPE[1] - 0.5 - j) * scale), int((SHAPE[0] - 0.5 - i) * scale)

    blue = (drawn == [86, 180, 233]).all(-1)
    rows, columns = np.nonzero(blue)
    # The mask is 4 × 4 voxels wide in this slice, and only its rim is colored.
    assert np.ptp(columns) + 1 == round(4 * scale)
    assert np.ptp(rows) + 1 == round(4 * scale)
    assert not blue[middle(4, 5)]
    # Inside the rim a dark line keeps it apart from bright voxels.
    row, column = (rows.min() + rows.max()) // 2, columns.min()
    assert blue[row, column : column + 2].all()
    assert (drawn[row, column + 2] == 0).all()
    assert not blue[row, column + 3]
    assert blue[middle(4, 6)[0] - int(scale / 2) + 1, middle(4, 6)[1]]
    assert not (drawn == [230, 159, 0]).all(-1).any()  # the second label is in another slice
    yellow = (drawn == [240, 228, 66]).all(-1)
    rows, columns = np.nonzero(yellow)
    assert np.ptp(columns) + 1 == pytest.approx(8 / 2 * scale, abs=4)
    assert np.ptp(rows) + 1 == pytest.approx(12 / 2 * scale, abs=4)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(middle(7, 5)[1], abs=2)
    row, column = middle(3, 4)
    assert np.ptp(drawn[row - 1 : row + 2, 5], axis=0).min() > 0 or drawn[row, 5, 0] != drawn[row - 3, 5, 0]
    assert drawn[5, column - 1 : column + 2].std() > 0


def test_keys_clicks_and_the_list_of_places_move_the_planes(layers, opened):
    target = (STRAIGHT @ [9, 3, 3, 1])[:3]
    made = html_viewer(layers, STRAIGHT, start=(STRAIGHT @ [5, 4, 2, 1])[:3], points=[("Lesion 1", target)])
    page = opened(made, width=420)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    where = "document.querySelector('.viewer').viewer.position"
    np.testing.assert_allclose(page.evaluate(where), (STRAIGHT @ [5, 4, 2, 1])[:3])
    # To the right of an axial plane is the patient's left.
    page.evaluate("document.querySelector('[data-plane=axial] canvas').focus()")
    for key, step in (("ArrowRight", (-1, 0, 0)), ("ArrowUp", (0, 1, 0)), ("PageUp", (0, 0, 1))):
        before = np.array(page.evaluate(where))
        page.keyboard.press(key)
        np.testing.assert_allclose(np.array(page.evaluate(where)) - before, np.multiply(step, (2, 2, 6)))
    switch(page, "point", "0")
    np.testing.assert_allclose(page.evaluate(where), target)
    text = page.evaluate("document.querySelector('[data-role=values]').textContent")
    assert text.startswith(f"At {target[0]:.1f}, {target[1]:.1f}".replace("-", "−"))
    assert f"score: {float(f'{layers[1].values[9, 3, 3]:.3g}'):g}" in text
    assert text.endswith("; candidate")
    # The slider of the threshold by keyboard.
    page.evaluate("document.querySelector('[data-role=threshold]').focus()")
    before = page.evaluate("document.querySelector('[data-role=limit]').textContent")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('[data-role=limit]').textContent") != before
    # A click into the middle of the voxel (2, 7) of the axial plane.
    page.evaluate("document.querySelector('[data-plane=axial] canvas').scrollIntoView()")
    left, top, width, height = page.evaluate(
        "(() => { const { left, top, width, height } = document.querySelector('[data-plane=axial] canvas')"
        ".getBoundingClientRect(); return [left, top, width, height]; })()"
    )
    x = left + width * (SHAPE[0] - 2.5) / SHAPE[0]
    y = top + height * (SHAPE[1] - 7.5) / SHAPE[1]
    page.mouse.click(x, y)
    np.testing.assert_allclose(page.evaluate(where), (STRAIGHT @ [2, 7, 3, 1])[:3])


def test_no_script_of_a_file_runs_and_damaged_numbers_leave_the_picture(layers, tmp_path, tab):
    made = html_viewer(layers, STRAIGHT, instead="the picture")
    page = Page("Page", [Section("Planes", made)]).html()
    # Even where escaping were forgotten, the policy stands.
    hostile = page.replace("<h1>", "<img src=x onerror='document.title=1'><script>document.title = 2</script><h1>")
    path = tmp_path / "page.html"
    path.write_text(hostile.replace('"data":"H4s', '"data":"H5s', 1), encoding="utf-8")
    page = tab.open(path)
    assert len(tab.complaints) == 3  # the picture, what it would have run, and the script
    assert all("violates the following Content Security Policy" in words for words in tab.complaints)
    tab.complaints.clear()
    assert page.evaluate("document.title") == "Page"
    assert page.evaluate("document.querySelector('[data-role=body]').hidden")
    assert not page.evaluate("document.querySelector('[data-role=instead]').hidden")
    assert "cannot draw" in page.evaluate("document.querySelector('[data-role=failure]').textContent")


def test_a_layer_keeps_the_colors_of_its_meaning_and_others_have_their_own():
    mask = np.zeros((4, 4, 4))
    mask[1:3] = 1
    layers = [
        Layer("image", mask),
        Layer("other", 14 * mask, "mask"),
        Layer("lesion", mask, "mask", colors=(REFERENCE,)),
        Layer("marks", 2 * mask, "mask", names=("perhaps", "sure"), colors=(UNSURE, FOUND)),
    ]
    page = str(html_viewer(layers, np.eye(4)))
    stored = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL).group(1))
    other, lesion, marks = (layer["colors"] for layer in stored["layers"][1:])
    assert [OUTLINES[k] for k in (*lesion, *marks)] == [REFERENCE, UNSURE, FOUND]
    assert not {*other} & {*lesion, *marks}
    # 20 in the picture, and the same beside it.
    script = SCRIPT.read_text().partition("const OUTLINES = ")[2].partition(")")[0]
    drawn = [f"#{color}" for color in re.findall(r"[0-9a-f]{6}", script)]
    assert re.findall(r"\.c\d+ \{ background: (#\w+)", SCRIPT.with_name("page.css").read_text()) == drawn
    assert (drawn[: len(OUTLINES)], len(set(drawn))) == ([*OUTLINES], 20)
    assert len({*re.findall(r'swatch c(\d+)"', page)}) == 17
