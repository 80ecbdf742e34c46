"""Counting of implants in real brains, and the names of stored work."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.metastasis import bench_metastasis_people as people
from metastasis.simulate.enhancement import draw_varied_nodule
from metastasis.simulate.implants import Implants


def test_implants_without_voxels_are_missed():
    rng = np.random.default_rng(0)
    nodules = [draw_varied_nodule(np.zeros(3), "solid", 8.0, rng, contrasts=(0.2, 0.3)) for _ in range(4)]
    numbers = np.zeros((12, 12, 12), np.int16)
    for number in (1, 2, 3):
        numbers[1:4, 1:4, 4 * number - 4 : 4 * number - 1] = number
    implants = Implants(np.zeros(numbers.shape, np.float32), (numbers > 0).astype(np.uint8), numbers, nodules)
    scores = np.where(numbers > 0, 0.8, 0)
    row = people.at_threshold(0.5, [0 * scores, scores], [implants])
    assert (row["sensitivity"], row["n"]["solid"], row["findings"]) == (0.75, 4, 0)
    assert people.matched(0.66, [0 * scores, scores], [implants])["threshold"] == 0.8
    assert people.matched(1.0, [0 * scores, scores], [implants])["sensitivity"] == 0.75


def test_weights_and_statistics_of_networks_are_averaged():
    torch = pytest.importorskip("torch")
    networks = []
    for shift in (0.0, 1.0, 5.0):
        layers = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2))
        for value in layers.state_dict().values():
            value.fill_(shift)
        networks.append(SimpleNamespace(net_=SimpleNamespace(module_=layers)))
    mean = people.mean_network(networks)
    for value in mean.net_.module_.state_dict().values():
        # The number of batches is a count, which stays as it was.
        np.testing.assert_allclose(value, 0 if value.dtype == torch.int64 else 2)
