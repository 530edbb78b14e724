"""Recomputed calls: the gradients of the call itself, and nothing kept but the input."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from promptnet.inference.sampling.checkpointing import checkpointed, leaves_of
from promptnet.inference.sampling.loop import sample


def test_gradients_reach_the_input_and_whatever_the_call_reads():
    network, weight = nn.Linear(3, 3).double(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    outside = weight.exp()  # shared by both calls, and not to be used up by the first
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor) -> Tensor:
        return network(x * outside).tanh()

    wanted = [x, weight, *network.parameters()]
    expected = torch.autograd.grad(call(call(x)).square().sum(), wanted, retain_graph=True)
    found = torch.autograd.grad(checkpointed(call, checkpointed(call, x)).square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_only_the_input_is_kept():
    saved: list[Tensor] = []
    x, weight = torch.randn(2, 3), torch.randn(3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        output = checkpointed(lambda x: (x @ weight).exp().tanh() @ weight, x)
    assert [one.data_ptr() for one in saved] == [x.data_ptr()]
    assert leaves_of(output) == [weight]
    output.sum().backward()
    assert weight.grad is not None


def test_an_input_that_needs_no_gradient_gets_none():
    x, weight = torch.randn(2, 3), torch.tensor(2.0, requires_grad=True)
    checkpointed(lambda x: x * weight, x).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, x.sum())


def test_without_gradients_it_is_the_call():
    x, weight = torch.randn(2), torch.tensor(2.0, requires_grad=True)
    with torch.no_grad():
        assert not checkpointed(lambda x: x * weight, x).requires_grad
    assert not checkpointed(lambda x: 3 * x, x).requires_grad


def test_a_call_is_recomputed_in_the_precision_it_was_made_in():
    seen: list[torch.dtype] = []
    weight, x = torch.randn(3, 3, requires_grad=True), torch.randn(2, 3)

    def call(x: Tensor) -> Tensor:
        product = x @ weight
        seen.append(product.dtype)
        return product.float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = checkpointed(call, x)
    output.sum().backward()
    assert seen == [torch.bfloat16] * 2


def test_what_may_differ_the_second_time_is_refused(unet: UNet2DConditionModel):
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(2)
    try:
        with pytest.raises(ValueError, match=r"unet\.eval\(\)"):
            sample(unet.train(), scheduler, torch.zeros(1, 4, 8, 8), [], checkpoint=True)
    finally:
        unet.eval()
