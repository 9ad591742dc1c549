"""Running statistics of a topology's own: what batches say, and nothing else changed."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgestitch.batchnorm import freeze_statistics, has_batchnorm, reestimated


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).eval()


def images(*sizes: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [3 + 2 * torch.randn(size, 2, 4, 4, generator=random) for size in sizes]


def test_the_statistics_of_one_batch_normalise_that_batch():
    [batch] = images(64)
    own = reestimated(network()[:2], [batch])
    with torch.no_grad():
        normalised = own(batch).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalised.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(1), torch.ones(3), atol=1e-2, rtol=0)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_the_first_layer_has_the_mean_over_batches(sizes):
    net, batches = network(), images(*sizes)
    own = reestimated(net, batches)
    with torch.no_grad():
        means = torch.stack([net[0](batch).mean((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(own.get_buffer("1.running_mean"), means.mean(0))


def test_the_original_stays_and_parameters_are_shared():
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    own = reestimated(net, images(8))
    torch.testing.assert_close(net.state_dict(), before)
    assert [id(p) for p in own.parameters()] == [id(p) for p in net.parameters()]
    assert not own.training
    assert not net.training


def test_a_network_without_batchnorm_says_so():
    assert has_batchnorm(network())
    assert not has_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_frozen_statistics_stay_while_parameters_are_trained():
    net = network().train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    freeze_statistics(net)
    net(images(8)[0]).square().mean().backward()
    torch.testing.assert_close(dict(net.named_buffers()), before)
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.train()[1].training
