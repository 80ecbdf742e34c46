"""Training by skorch: the net, its loss, batches, and what happens around an epoch."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skorch")

from torch import nn  # noqa: E402

from dmrifit.networks import training_loop  # noqa: E402
from dmrifit.networks.training import Training  # noqa: E402

pytestmark = pytest.mark.deep


class Product(nn.Module):
    """A loss that would be computed in bfloat16 if it were let."""

    def forward(self, answers, targets):
        return (answers.T @ answers).sum()


def test_in_mixed_precision_the_loss_is_single_and_answers_are_finite():
    net = training_loop.Net(
        nn.Linear(3, 1),
        criterion=training_loop.WithMargin(nn.BCEWithLogitsLoss()),
        train_split=None,
        mixed=True,
        verbose=0,
    ).initialize()
    answer = net.infer(torch.randn(4, 3))
    assert answer.dtype == torch.bfloat16
    net.criterion_.criterion = Product()
    assert net.get_loss(answer, torch.zeros(4, 1)).dtype == torch.float32
    net.criterion_.criterion = nn.BCEWithLogitsLoss()
    # At logit 9 a probability in bfloat16 is one, and the loss of a wrong answer infinite.
    loss = net.get_loss(torch.full((4, 1), 9.0, dtype=torch.bfloat16), torch.zeros(4, 1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(9 + math.log1p(math.exp(-9)), rel=1e-5)


def test_targets_are_cropped_to_the_answer_of_a_network_and_other_shapes_are_an_error():
    loss = training_loop.WithMargin(nn.L1Loss(), (1, 0, 2))
    targets = torch.zeros(1, 1, 5, 4, 7)
    targets[:, :, 1:4, :, 2:5] = 1
    answers = torch.full((1, 1, 3, 4, 3), 1.25)
    assert loss(answers, targets).item() == pytest.approx(0.25)
    loss = training_loop.WithMargin(nn.MSELoss(), (1, 1, 1))
    message = r"returns \(5, 5, 5\) voxels but the target has \(3, 3, 3\); its margin is not \(1, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(1, 1, 5, 5, 5), torch.zeros(1, 1, 5, 5, 5))
    with pytest.raises(ValueError, match="differ in shape, which torch would broadcast"):
        training_loop.WithMargin(nn.MSELoss())(torch.zeros(4), torch.zeros(4, 1))


def batches(samples, batch_size, seed=0):
    return training_loop.Batches(lambda rng, epoch: iter(samples), batch_size, seed)


def test_samples_of_one_shape_come_together_and_none_is_lost():
    shapes = [(2, 3), (4,), (2, 3), (2, 3), (4,), (2, 3), (2, 3), (4,)]
    samples = [(np.full(shape, i), i) for i, shape in enumerate(shapes)]
    made_batches = list(batches(samples, 2))
    assert [tuple(inputs.shape) for inputs, _ in made_batches] == [(2, 2, 3), (2, 4), (2, 2, 3), (1, 2, 3), (1, 4)]
    assert [targets.tolist() for _, targets in made_batches] == [[0, 2], [1, 4], [3, 5], [6], [7]]
    for inputs, targets in made_batches:
        assert [block.unique().item() for block in inputs] == targets.tolist()


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Linear(2, 1)
    options = {"train_split": None, "verbose": 0, "callbacks": [], "iterator_train": None}
    return training_loop.Net(module, criterion=nn.MSELoss, optimizer=torch.optim.SGD, lr=9.0, **options).initialize()


SAMPLES = [(np.array([1.0, 2.0]), np.array([1.0])), (np.array([2.0, -1.0]), np.array([0.0]))]


def run(epochs, *, trained=None, rate=lambda epoch: 0.1 / (1 + epoch), samples=SAMPLES, **options):
    trained = trained or net()
    fields = {name: options.pop(name) for name in ("patience", "after_epoch", "verbose") if name in options}
    settings = Training(epochs=epochs, **fields)
    training_loop.Epochs(batches(samples, 2), rate, settings, 7, **options).run(trained)
    return trained


def test_each_epoch_has_its_learning_rate_and_descends_by_it():
    trained = run(3)
    assert [row["learning_rate"] for row in trained.history] == [0.1, 0.05, pytest.approx(0.1 / 3)]
    weights, bias = (value.detach().numpy().astype(float) for value in net().module_.parameters())
    weights = weights[0]
    x, y = np.array([[1, 2], [2, -1.0]]), np.array([1, 0.0])
    losses = []
    for rate in (0.1, 0.05, 0.1 / 3):
        residual = x @ weights + bias - y
        losses.append((residual**2).mean())
        weights, bias = weights - rate * x.T @ residual, bias - rate * 2 * residual.mean()
    np.testing.assert_allclose([row["train_loss"] for row in trained.history], losses, rtol=1e-5)
    np.testing.assert_allclose(trained.module_.weight.detach().numpy()[0], weights, rtol=1e-5)


def scored(scores):
    """Give scores as they are written, one for each epoch."""
    return lambda trained: scores[len(trained.history) - 1]


@pytest.mark.parametrize(
    ("scores", "patience", "n_epochs", "best"),
    [
        ([1, 2, 3, 2, 3, 9], 2, 5, 3),  # as good again is not better
        ([1, math.nan, 0, 9], 2, 3, 1),
        ([math.nan, 1, 2, 3, 4, 5], 3, 6, 6),
        ([5, 4, 3, 2, 1, 0], 1, 2, 1),
        ([3, 4, 2, 1, 0, 0], None, 6, 2),
    ],
)
def test_training_ends_after_epochs_without_a_better_score_with_the_best_weights(scores, patience, n_epochs, best):
    trained = run(6, score=scored(scores), patience=patience)
    assert len(trained.history) == n_epochs
    expected = run(best)
    np.testing.assert_array_equal(trained.module_.weight.detach(), expected.module_.weight.detach())


def test_a_training_that_has_waited_long_enough_does_not_begin_again_and_reports_its_history():
    seen = []
    trained = run(6, score=scored([5, 4, 3, 2, 1, 0]), patience=2)
    options = {"patience": 2, "best": None, "after_epoch": lambda history: seen.append(len(history))}
    run(9, trained=trained, score=scored([0] * 9), **options)
    assert len(trained.history) == 3
    assert seen == [3]


def test_an_infinite_loss_and_infinite_weights_are_errors():
    infinite = [(np.array([1e38, 1e38]), np.array([-1e38]))]
    with pytest.raises(FloatingPointError, match=r"the loss became inf in epoch 1 with a learning rate of 0\.1; lower"):
        run(2, samples=infinite)
    with pytest.raises(FloatingPointError, match=r"weights became infinite .* in epoch 1 \(weight, bias\)"):
        run(2, rate=lambda epoch: math.inf)


def test_what_is_drawn_in_an_epoch_depends_on_its_number_alone():
    draws = {}

    def remember(trained):
        draws.setdefault(len(trained.history), []).append(torch.rand(1).item())
        return 0.0

    run(3, score=remember)
    trained = run(1, score=remember)
    torch.rand(5)
    run(3, trained=trained, score=remember)
    assert {epoch: len(set(drawn)) for epoch, drawn in draws.items()} == {1: 1, 2: 1, 3: 1}
    assert len({drawn[0] for drawn in draws.values()}) == 3
