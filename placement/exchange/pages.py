"""Parts of pages of boxes: flags with remedies, content as a bar, numbers to copy, planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmrifit._utils.counts import counted, percent
from dmrifit.report import page, style
from dmrifit.report.viewer import Layer, html_viewer
from placement.box.voxel import Voxel
from placement.exchange.vendor_texts import NOTICE, UNVERIFIED_PLANES
from placement.search.optimizer import share_words
from placement.search.scene import Scene
from placement.search.tissue_labels import NORMAL, OUTSIDE_BRAIN, UNCHECKED_BRAIN, border_title

if TYPE_CHECKING:
    from markupsafe import Markup

#: Boxes of other programs may be turned by half a turn, which leaves them as they were.
ANGLES = "angles, degrees (half turns, or another order of the sides, give the same box)"

#: Smaller shares of a box are below the accuracy of `voxel_content`, and are not named.
_SMALLEST_SHARE = 0.0005

_TEXTS = page.Texts(__file__)


def box_assets() -> dict[str, Any]:
    """Give what pages of boxes need beside the viewer."""
    files = {"script": "pages.js", "style": "pages.css"}
    return {name: page.read_data(__file__, file) for name, file in files.items()}


def voxel_page(voxel: Voxel, scene: Scene, content: Mapping[str, Any], picture: bytes) -> str:
    """Make the page of a voxel: what it holds, planes to move through, and its numbers."""
    layers = scene_layers(scene, scene.target_name)
    for name, (color, region) in scene.outlined.items():
        # Below the target, which may have the same border.
        layers.insert(-1, Layer(name, region, "mask", colors=(style.OUTLINES[color],)))
    planes = html_viewer(
        layers,
        scene.affine,
        boxes={"voxel": voxel.affine},
        points=[("center of the voxel", voxel.center), ("center of the tumor", scene.centroid)],
        label="Voxel over the image",
        instead=page.Picture(picture, "Voxel in three planes", width=1000),
    )
    numbers = [
        *pose_rows(content),
        ["part that is target", share_words(content["scores"]["tumor_fraction"])],
        ["target", ", ".join(content["targets"])],
    ]
    sections = [
        page.Section("", case_summary(content)),
        page.Section("", planes),
        page.Section("The voxel", page.Table(numbers)),
        page.Section("Numbers for consoles", console_numbers(content)),
    ]
    lead = page.notice_lead([scene.synthetic], "case", f"{NOTICE}.")
    return page.Page(scene.name or "Voxel", sections, lead, **box_assets()).html()


def scene_layers(scene: Scene, target: str) -> list[Layer]:
    """Give what the viewer shows of a scene: the image, if there is one, and the target."""
    layers = [Layer(target, scene.tumor > 0.5, "mask", colors=style.OUTLINES[:1])]
    if scene.image is not None:
        layers.insert(0, Layer("image", scene.image.reshape(*scene.shape, -1)[..., 0]))
    return layers


def case_summary(content: Mapping[str, Any]) -> Markup:
    """Say what is wrong with a box, and what it holds."""
    parts = []
    start, order = 0.0, _TEXTS["bar"]
    for name, share, title in _content_parts(content["content"]):
        parts.append((f"t{order.index(name)}", round(start, 3), round(100 * share, 3), title))
        start += 100 * share
    return page.fill(
        page.read_data(__file__, "summary.html"),
        content=content,
        line=_size_line(content),
        words=content_line(content["content"]),
        parts=parts,
        checks=page.sentence("; ".join([*_checks(content), *content["notes"]])),
        placed_by=content.get("placed_by", ""),
    )


def summary_line(content: Mapping[str, Any]) -> str:
    """Say in one line how large a box is, where it lies, and what it holds."""
    holding = content_line(content["content"])
    parts = [_size_line(content), content["side"], holding, *_checks(content)]
    # Numbers of a terminal are copied into commands, where a minus is a hyphen.
    return "; ".join(parts).replace("−", "-")


def _size_line(content: Mapping[str, Any]) -> str:
    share = share_words(content["scores"]["tumor_fraction"])
    return box_line(content, "size", share=share, targets=", ".join(content["targets"]))


def box_line(record: Mapping[str, Any], text: str, **words: str) -> str:
    """Say in one line how large a box is, where it lies, and how it is turned."""
    sides = " × ".join(f"{round(side, 2):g}" for side in record["size_mm"])
    center, turns = (_three(record["ras"][key]) for key in ("center_mm", "angles_deg"))
    words |= {"sides": sides, "center": center, "turns": turns, "rotation": rotation_words(record)}
    words["changes"] = ""
    # Of a repeated box; of another head no tissue is compared.
    if record.get("changed_share") is not None:
        shares = {key: percent(record[f"{key}_share"]) for key in ("changed", "shown")}
        words["changes"] = _TEXTS("changes", **shares)
    return _TEXTS(text, **{**record, **words})


def rotation_words(content: Mapping[str, Any]) -> str:
    """Count the rotations that each console has to set."""
    angles = content["console"]["angles"]
    if not any(angles.values()):
        return "not rotated"
    words = f"rotated by {counted(angles['philips'], 'angle')}"
    if angles["philips"] == angles["siemens"]:
        return words
    return f"{words} (Philips) or {angles['siemens']} (Siemens)"


def content_line(content: Mapping[str, float | None]) -> str:
    """Say in one line what a box holds."""
    return ", ".join(title for _, _, title in _content_parts(content))


def _content_parts(content: Mapping[str, float | None]) -> list[tuple[str, float, str]]:
    """Give the tissues of a box by name, their shares, which add up to 1, and what to write."""
    outside, outside_brain = content["outside"] or 0.0, content.get("outside_brain") or 0.0
    shares = {name: content.get(name) or 0.0 for name in _TEXTS["bar"]}
    if NORMAL not in content:
        shares = {"tumor": content["target"] or 0.0, "outside the target": outside - outside_brain}
    # What a mask of the brain leaves out of labeled tissue is drawn as that tissue.
    shares[OUTSIDE_BRAIN] = min(outside_brain, outside)
    written = {**shares, OUTSIDE_BRAIN: outside_brain}
    names = [name for name, share in written.items() if share >= _SMALLEST_SHARE]
    titles = {name: f"{name} {share_words(written[name])}" for name in names}
    labeled = outside_brain - shares[OUTSIDE_BRAIN]
    if labeled >= _SMALLEST_SHARE:
        titles[OUTSIDE_BRAIN] += f" (of it {percent(labeled / outside_brain)} labeled)"
    return [(name, shares[name], title) for name, title in titles.items()]


def _checks(content: Mapping[str, Any]) -> list[str]:
    """Say how far the box is from excluded tissue, and what was not checked."""
    words = []
    for name, region in content["regions"].items():
        if (distance := region["distance_mm"]) is not None:
            # Never rounded up to a margin that it misses.
            digits = 3 if distance < region["margin_mm"] <= round(distance, 1) else 1
            words.append(f"{distance:.{digits}f} mm from {border_title(name)}")
            if share := region.get("share_within_margin"):
                unkept = f"the margin of {region['margin_mm']:g} mm is not kept"
                words[-1] += f" ({unkept}: {percent(share)} of the box lies in it)"
    # A flag says that it was searched in vain.
    if content["brain"] is None and UNCHECKED_BRAIN not in content["flags"]:
        words.append("the brain is unknown: skull and scalp not checked")
    return [*words, content["lipid"], content["shim"]]


def _three(numbers: Sequence[float]) -> str:
    """Write coordinates in mm, or angles in degrees."""
    return _TEXTS("three", **dict(zip("xyz", numbers, strict=True)))


def pose_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Describe the pose of a box in rows of a table."""
    pose = record["ras"]
    return [
        ["center (RAS+), mm", _three(pose["center_mm"])],
        ["sides, mm", " × ".join(f"{x:.2f}" for x in record["size_mm"])],
        ["volume, mL", f"{record['volume_mL']:.2f}"],
        [ANGLES, _three(pose["angles_deg"])],
        ["orientation", rotation_words(record)],
    ]


def console_numbers(content: Mapping[str, Any]) -> Markup:
    """Show the numbers for consoles with buttons that copy them, or why there are none."""
    return page.fill(
        page.read_data(__file__, "consoles.html"),
        content=content,
        said={key: page.sentence(content[key]) for key in ("side", "valid")},
        note=f"Siemens: {UNVERIFIED_PLANES}.",
    )
