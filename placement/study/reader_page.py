"""A page on which experts place boxes with the mouse, without knowing who proposed them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmrifit._utils.randomness import RandomState, seed_from
from dmrifit.report import page
from dmrifit.report.viewer import Layer, pack_volumes, page_json
from placement.box.voxel import Voxel
from placement.exchange.tables import BOX
from placement.exchange.vendor_texts import NOTICE
from placement.search.scene import Scene

#: What readers are told, as the experts of the study were.
RULES = (
    "Place one box in each tumor, of at least 6 mL, where you would measure a spectrum.",
    "As much tumor and as little else as you can; rotate it about one or two axes at most.",
    "Click into a plane to place a box. Drag it to move it, a square to move a face, the circle "
    "to turn it; the wheel moves through the planes. Correct or accept a proposed box.",
    "The patient's right is on the left of axial and coronal planes.",
)

_MAX_BYTES = 24_000_000
_PLANES = {"axial": (2, "RLAP"), "coronal": (1, "RLSI"), "sagittal": (0, "PASI")}
_NUMBERS = {"center, mm": "xyz", "sides, mm": "123", "angles, degrees": "xyz"}


def reader_page(
    scenes: Sequence[Scene],
    *,
    proposals: Mapping[str, Voxel] | None = None,
    random_state: RandomState = 0,
) -> str:
    """
    Make one HTML page, which needs no network, to place or correct a box in each case.

    Cases come in an order drawn by the seed, by numbers instead of their names; what the reader
    saves once all have a box is a table with the columns that `read_experts` reads.
    """
    names = [scene.name for scene in scenes]
    if not scenes or len(set(names)) < len(names):
        raise ValueError(f"readers need cases of different names, not {names}")
    order = np.random.default_rng(seed_from(random_state)).permutation(len(scenes))
    each = _MAX_BYTES // len(scenes)
    cases = [_case(scenes[int(i)], (proposals or {}).get(names[int(i)]), each) for i in order]
    # Another choice of cases or proposals begins anew in the browser.
    key = hashlib.sha256(repr([(case["name"], case["box"]) for case in cases]).encode())
    data = {"cases": cases, "columns": ["name", "expert", *BOX], "key": key.hexdigest()[:16]}
    body = page.fill(
        page.read_data(__file__, "reader.html"),
        planes=_PLANES,
        numbers=list(_NUMBERS.items()),
        data=page_json(data),
    )
    sections = [page.Section("", body), *(page.Section("", page.Note(rule)) for rule in RULES)]
    lead = page.notice_lead([scene.synthetic for scene in scenes], "case", f"{NOTICE}.")
    script = f"{page.viewer_script()}\n{page.read_data(__file__, 'reader.js')}"
    style = page.read_data(__file__, "reader.css")
    return page.Page("Place the boxes", sections, lead, script=script, style=style).html()


def _case(scene: Scene, proposal: Voxel | None, max_bytes: int) -> dict[str, Any]:
    """Pack the image and the outline of the tumor, and the box that is proposed."""
    layers = [Layer("tumor", scene.tumor > 0.5, "mask")]
    if scene.image is not None:
        layers.insert(0, Layer("image", scene.image.reshape(*scene.shape, -1)[..., 0]))
    box = None
    if proposal is not None:
        box = {
            "center": proposal.center.tolist(),
            "size": proposal.size.tolist(),
            "angles": proposal.angles.tolist(),
        }
    start = [float(x) for x in scene.centroid]
    packed = pack_volumes(layers, scene.affine, max_bytes=max_bytes)
    return {"name": scene.name, "start": start, "box": box, **packed}
