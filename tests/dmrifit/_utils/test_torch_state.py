"""What torch keeps for the whole process: set for a while and given back."""

import threading

import pytest

torch = pytest.importorskip("torch")

from dmrifit._utils import torch_state  # noqa: E402

pytestmark = pytest.mark.deep


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_block_has_one_thread_and_gives_back_what_was_set():
    with torch_state.one_torch_thread():
        assert torch.get_num_threads() == 1
        with torch_state.one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), torch_state.one_torch_thread():
        _ = 1 / 0
    assert torch.get_num_threads() == 3


def test_blocks_in_two_threads_of_python_wait_for_each_other():
    entered, order = threading.Event(), []

    def second():
        entered.wait(10)
        with torch_state.one_torch_thread():
            order.append(("second", torch.get_num_threads()))

    thread = threading.Thread(target=second)
    thread.start()
    with torch_state.one_torch_thread():
        entered.set()
        thread.join(0.2)
        order.append(("first", torch.get_num_threads()))
    thread.join()
    assert order == [("first", 1), ("second", 1)]
    assert torch.get_num_threads() == 3


def test_a_seed_sets_what_is_drawn_in_a_block_and_nothing_after_it_or_after_an_error():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    undisturbed = torch.rand(4)
    torch.set_rng_state(state)
    with torch_state.forked_generator(11):
        drawn = torch.rand(4)
    torch.testing.assert_close(torch.rand(4), undisturbed, rtol=0, atol=0)
    torch.testing.assert_close(drawn, torch.rand(4, generator=torch.Generator().manual_seed(11)), rtol=0, atol=0)
    with torch_state.forked_generator(12, "cpu"):
        assert not torch.equal(torch.rand(4), drawn)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt), torch_state.forked_generator(11):
        draw_and_stop()
    assert torch.equal(torch.get_rng_state(), state)


def draw_and_stop():
    torch.rand(4)
    raise KeyboardInterrupt


def test_seeding_leaves_gpus_alone_where_the_processor_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: pytest.fail("a GPU was seeded"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs were seeded"))
    with torch.random.fork_rng(devices=[]):
        torch_state.seed_generators(7, torch.device("cpu"))
        torch.testing.assert_close(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_kernels_are_repeatable_in_a_block_only(flags):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = flags
    try:
        with torch_state.repeatable_kernels():
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert (cudnn.benchmark, cudnn.deterministic) == flags
        with pytest.raises(KeyboardInterrupt), torch_state.repeatable_kernels():
            draw_and_stop()
        assert (cudnn.benchmark, cudnn.deterministic) == flags
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def test_the_first_gpu_is_taken_automatically_and_a_missing_one_may_become_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(torch_state.resolve_device("auto")) == "cuda:0"
    assert str(torch_state.resolve_device("cuda:1")) == "cuda:1"
    with pytest.raises(ValueError, match="has 2 GPUs"):
        torch_state.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(torch_state.resolve_device("auto")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torch_state.resolve_device("cuda") == torch.device("cuda", 0)
    assert torch_state.resolve_device("cpu:0") == torch.device("cpu")
    assert torch_state.resolve_device("cuda:1", fallback=True) == torch.device("cpu")
    assert torch_state.resolve_device("cuda:0", fallback=True) == torch.device("cuda", 0)
    # A driver that counts GPUs that torch cannot use.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda', and this machine has 0 GPUs that torch can use"):
        torch_state.resolve_device("cuda")
