"""The network that places a box, and its losses."""

import numpy as np
import pytest

from placement.box.voxel import TURNS, Voxel, rotation_of
from placement.search.scene import Scene

torch = pytest.importorskip("torch")
pytest.importorskip("skorch")

from placement.learned.pose_network import (  # noqa: E402
    PlacementLoss,
    PlacementNetwork,
    rotation_from_angles,
    rotation_from_six,
    sampled_dice,
    sampled_fraction,
)

pytestmark = pytest.mark.deep

KINDS = ("symmetric", "euler", "moment")


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same weights and inputs in every run: 2 % of all draws put every side at one bound."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def random_boxes(rng, n):
    """Canonical boxes: centers, sides, angles in degrees, rotations."""
    boxes = [Voxel(rng.normal(0, 6, 3), rng.uniform(12, 40, 3), rng.uniform(-30, 30, 3)).canonical() for _ in range(n)]
    return [np.array([getattr(box, name) for box in boxes]) for name in ("center", "size", "angles", "rotation")]


def as_answers(center, size, angles, rotation):
    found = {"center": center, "log_size": np.log(size), "angles": np.radians(angles), "rotation": rotation}
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in found.items()}


def as_targets(tumor, step, experts, present=None):
    """Targets of cases; experts: a list of boxes' arrays, one for each expert."""
    n = len(experts[0][0])
    names = ("center", "size", "angles", "rotation")
    found = {name: np.stack([one[i] for one in experts], axis=1) for i, name in enumerate(names)}
    found["angles"] = np.radians(found["angles"])
    found["present"] = np.ones((n, len(experts))) if present is None else present
    found["tumor"] = np.broadcast_to(tumor, (n, 1, *tumor.shape))
    found["step"] = np.full(n, step)
    return {key: torch.tensor(np.array(value), dtype=torch.float64) for key, value in found.items()}


def dice_by_hand(mine, theirs):
    """Share of 6³ places in a box that another holds, whose faces are ramps as wide as a sixth of its sides."""
    (c, d, r), (c2, d2, r2) = mine, theirs
    held = 0.0
    for place in np.ndindex(6, 6, 6):
        local = r2.T @ (c + r @ (((np.array(place) + 0.5) / 6 - 0.5) * d) - c2)
        held += np.prod(np.clip((d2 / 2 - np.abs(local)) / (d2 / 6) + 0.5, 0, 1)) / 6**3
    return 2 * held * d.prod() / (d.prod() + d2.prod())


def double(loss):
    loss.turns = loss.turns.double()
    return loss


def ball(n=24, step=4.0, radius=25.0):
    line = (np.arange(n) - 0.5 * (n - 1)) * step
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    return (np.linalg.norm(grid, axis=-1) < radius).astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_what_numpy_computes_by_hand(kind):
    rng = np.random.default_rng(0)
    mine, theirs = random_boxes(rng, 4), random_boxes(rng, 4)
    tumor = np.ones((24, 24, 24))
    found = double(PlacementLoss(kind)).terms(as_answers(*mine), as_targets(tumor, 4.0, [theirs]))
    for i in range(4):
        (c, d, a, r), (c2, d2, a2, r2) = ([part[i] for part in boxes] for boxes in (mine, theirs))
        wanted = 2 * np.sum(((c - c2) / 10) ** 2)
        if kind == "symmetric":
            wanted = 2 * (np.sqrt(1 + wanted / 2) - 1) + 6 * (1 - dice_by_hand((c, d, r), (c2, d2, r2)))
        if kind == "euler":
            wanted += 3 * np.sum(((d - d2) / 10) ** 2) + 3 * np.sum(np.radians(a - a2) ** 2)
        elif kind == "moment":
            values, vectors = np.linalg.eigh(r @ np.diag(d**2 / 12) @ r.T)
            values2, vectors2 = np.linalg.eigh(r2 @ np.diag(d2**2 / 12) @ r2.T)
            logs = vectors @ np.diag(np.log(values)) @ vectors.T - vectors2 @ np.diag(np.log(values2)) @ vectors2.T
            wanted += 3 * np.sum(logs**2) / 4
        else:
            wanted += min(
                3 * np.sum((np.log(d) - np.log(np.abs(p).T @ d2)) ** 2) + 3 * np.sum((r - r2 @ p) ** 2) / 8
                for p in TURNS
            )
        assert float(found["experts"][i]) == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(found["outside"], 0, atol=1e-12)
    np.testing.assert_allclose(found["center"], 0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences_and_finite_at_the_identity_of_cubes(kind):
    rng = np.random.default_rng(4)
    theirs = random_boxes(rng, 2)
    targets = as_targets(ball() * 0.9, 4.0, [theirs])
    loss = double(PlacementLoss(kind))
    turn = torch.tensor(rng.normal(0, 0.3, (2, 3 if kind == "euler" else 6)))
    turn = turn if kind == "euler" else turn + torch.tensor([1.0, 0, 0, 0, 1, 0])
    where, logs = torch.tensor(rng.normal(0, 6, (2, 3))), torch.tensor(rng.normal(3, 0.2, (2, 3)))

    def cost(center, log_size, turn):
        angles = {"angles": turn} if kind == "euler" else {}
        rotation = rotation_from_angles(turn) if kind == "euler" else rotation_from_six(turn)
        return loss({"center": center, "log_size": log_size, "rotation": rotation, **angles}, targets)

    inputs = [one.clone().requires_grad_() for one in (where, logs, turn)]
    assert torch.autograd.gradcheck(cost, inputs, eps=1e-7, atol=1e-4, rtol=1e-3)
    cube = [np.zeros((1, 3)), np.full((1, 3), 20.0), np.zeros((1, 3)), np.eye(3)[None]]
    targets = as_targets(ball(), 4.0, [cube])
    answers = {key: value.requires_grad_() for key, value in as_answers(*cube).items()}
    double(PlacementLoss(kind))(answers, targets).backward()
    for name, value in answers.items():
        assert value.grad is None or torch.isfinite(value.grad).all(), name


def test_the_nearest_expert_or_their_mean_counts():
    rng = np.random.default_rng(5)
    mine, one, two = (random_boxes(rng, 3) for _ in range(3))
    tumor = ball()

    def costs(how, experts, present=None):
        loss = PlacementLoss("symmetric", how).double()
        return np.asarray(loss.terms(as_answers(*mine), as_targets(tumor, 4.0, experts, present))["experts"])

    first, second = costs("min", [one]), costs("min", [two])
    alone = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    for how, both in (("min", np.minimum(first, second)), ("mean", (first + second) / 2)):
        np.testing.assert_allclose(costs(how, [one, two]), both)
        np.testing.assert_allclose(costs(how, [one, two], alone), [first[0], second[1], both[2]])


def test_the_sampled_dice_and_part_of_tumor_are_near_the_exact_ones():
    rng = np.random.default_rng(11)
    mine, theirs = random_boxes(rng, 30), random_boxes(rng, 30)
    found = sampled_dice(as_answers(*mine), as_targets(ball(), 4.0, [theirs, mine]))
    pairs = zip(zip(*mine[:3], strict=True), zip(*theirs[:3], strict=True), strict=True)
    exact = [Voxel(*one).dice(Voxel(*other)) for one, other in pairs]
    assert np.ptp(exact) > 0.3
    np.testing.assert_allclose(found[:, 0], exact, atol=0.05)
    np.testing.assert_allclose(found[:, 1], 1)
    n, step = 32, 3.0
    tumor = ball(n, step, 26.0)
    line = np.eye(4) * step
    line[:3, 3], line[3, 3] = -0.5 * (n - 1) * step, 1
    scene = Scene(tumor, line)
    center, size, angles, rotation = random_boxes(np.random.default_rng(6), 20)
    exact = [scene.rows.fraction(Voxel(*box)) for box in zip(center, size, angles, strict=True)]
    arrays = [torch.tensor(one) for one in (np.tile(tumor, (20, 1, 1, 1, 1)), center, size, rotation)]
    found = sampled_fraction(*arrays, torch.full((20,), step, dtype=torch.float64))
    assert np.ptp(exact) > 0.1
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_six_numbers_make_every_rotation_and_angles_those_of_voxels():
    rng = np.random.default_rng(8)
    six = torch.tensor(rng.normal(size=(50, 6)))
    made = rotation_from_six(six)
    np.testing.assert_allclose(made @ made.transpose(1, 2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(torch.linalg.det(made), 1)
    wanted = np.array([rotation_of(rng.uniform(-180, 180, 3)) for _ in range(20)])
    again = rotation_from_six(torch.tensor(np.concatenate([wanted[:, :, 0], wanted[:, :, 1]], axis=1)))
    np.testing.assert_allclose(again, wanted, atol=1e-12)
    angles = np.random.default_rng(9).uniform(-60, 60, (10, 3))
    found = rotation_from_angles(torch.tensor(np.radians(angles)))
    np.testing.assert_allclose(found, [rotation_of(one) for one in angles], atol=1e-12)


@pytest.mark.parametrize("angles", [False, True])
@pytest.mark.parametrize("n", [24, 32])
def test_a_new_network_answers_the_usual_box_near_the_middle(n, angles):
    net = PlacementNetwork(2, (4, 8, 8, 8), n, 96 / n, size_range=(10, 60), size=(20, 25, 30), angles=angles).eval()
    frame = torch.tensor([[5.0, 6.0, 7.0, 96 / n]]).repeat(3, 1)
    with torch.no_grad():
        answer = net(torch.rand(3, 2, n, n, n), frame)
    assert answer["center"].abs().max() < 10
    np.testing.assert_allclose(answer["log_size"].exp(), np.tile([20, 25, 30], (3, 1)), rtol=0.2)
    np.testing.assert_allclose(answer["rotation"], np.tile(np.eye(3), (3, 1, 1)), atol=0.3)


def test_answers_stay_within_the_range_of_sides_and_the_view():
    net = PlacementNetwork(1, (4, 4, 4, 4), 24, 4.0, size_range=(10, 60), size=(20, 20, 20)).eval()
    with torch.no_grad():
        for head in (net.center, net.size, net.turn):
            head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0)) * 100)
        answer = net(torch.randn(20, 1, 24, 24, 24), torch.tensor([[0.0, 0, 0, 4]]).repeat(20, 1))
    sides = answer["log_size"].exp()
    assert 10 - 1e-3 <= sides.min() < sides.max() <= 60 + 1e-3
    assert answer["center"].abs().max() <= 96


@pytest.mark.parametrize("n", [24, 32])
def test_a_new_network_that_sees_distances_starts_with_the_deepest_place(n):
    step = 96 / n
    line = (np.arange(n) - 0.5 * (n - 1)) * step
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1)
    deepest = np.array([12.0, -20.0, 7.0])
    depth = 2.0 - np.linalg.norm(grid - deepest, axis=-1) / 12
    volume = torch.tensor(np.stack([depth > 0, depth])[None], dtype=torch.float32)
    net = PlacementNetwork(2, (4, 4, 4, 4), n, step, size_range=(10, 60), size=(20, 20, 20), depth=1).eval()
    with torch.no_grad():
        net.center.weight.zero_()
        found = net(volume, torch.tensor([[0.0, 0, 0, step]]))["center"][0]
    np.testing.assert_allclose(found, deepest, atol=2.0)
