import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)

from promptnet.inference.resolution.attention import ScaledAttnProcessor, attention_scale, query_scale, scaled_queries


def build_attention(**more: Any) -> Any:
    torch.manual_seed(0)
    return Attention(query_dim=8, heads=2, dim_head=4, **more).double().eval().requires_grad_(False)


def expected(attn: Any, x: torch.Tensor, s: float) -> torch.Tensor:
    """softmax(s q k / sqrt(d)) v, written out."""

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (2, 4)).transpose(1, 2)

    q, k, v = heads(attn.to_q(x)), heads(attn.to_k(x)), heads(attn.to_v(x))
    if attn.norm_q is not None and attn.norm_k is not None:
        q, k = attn.norm_q(q), attn.norm_k(k)
    y = (s * q @ k.mT / 2).softmax(-1) @ v
    return attn.to_out[0](y.transpose(1, 2).flatten(2))


def test_the_formula() -> None:
    assert attention_scale(4096, 1024) == pytest.approx(math.sqrt(math.log(4096) / math.log(1024)), abs=1e-15)
    assert attention_scale(4096, 1024) > 1 > attention_scale(256, 1024)
    assert attention_scale(77, 77) == 1
    assert attention_scale(100, 33.3) == pytest.approx(math.sqrt(math.log(100) / math.log(33.3)))


def test_one_token_has_a_limit_and_a_trained_one_is_refused() -> None:
    assert attention_scale(1, 1024) == 1
    for trained in (1, 0.5, 0, -3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="trained_tokens"):
            attention_scale(64, trained)
    with pytest.raises(ValueError, match="tokens=0"):
        attention_scale(0, 64)
    assert query_scale(4, 4.0) == 1  # one token when trained: the layer is left as it is
    assert query_scale(64, 4.0) == attention_scale(64, 16)


BACKENDS = [AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(1)]


@pytest.mark.parametrize("processor", BACKENDS, ids=lambda processor: type(processor).__name__)
def test_every_backend_sees_the_factor(processor: Any) -> None:
    attn, x = build_attention(), torch.randn(2, 12, 8, dtype=torch.float64)
    attn.set_processor(ScaledAttnProcessor(processor, trained_tokens=5))
    torch.testing.assert_close(attn(x), expected(attn, x, attention_scale(12, 5)), rtol=0, atol=1e-12)


def test_xformers_sees_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' processor for it, with the library's one function written out."""

    def attention(q: Any, k: Any, v: Any, *, attn_bias: Any, op: Any, scale: float) -> torch.Tensor:
        return (scale * q @ k.mT).softmax(-1) @ v  # (B * heads, N, d)

    library = SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=attention))
    monkeypatch.setattr(attention_processor, "xformers", library)
    attn, x = build_attention(), torch.randn(2, 12, 8, dtype=torch.float64)
    attn.set_processor(ScaledAttnProcessor(attention_processor.XFormersAttnProcessor(), trained_tokens=5))
    torch.testing.assert_close(attn(x), expected(attn, x, attention_scale(12, 5)), rtol=0, atol=1e-12)


def test_fused_projections_see_the_factor() -> None:
    attn, x = build_attention(), torch.randn(2, 12, 8, dtype=torch.float64)
    attn.fuse_projections(fuse=True)
    attn.set_processor(ScaledAttnProcessor(FusedAttnProcessor2_0(), trained_tokens=5))
    torch.testing.assert_close(attn(x), expected(attn, x, attention_scale(12, 5)), rtol=0, atol=1e-12)


def test_norms_of_queries_do_not_undo_it() -> None:
    attn, x = build_attention(qk_norm="layer_norm"), torch.randn(2, 12, 8, dtype=torch.float64)
    attn.set_processor(ScaledAttnProcessor(AttnProcessor2_0(), trained_tokens=5))
    torch.testing.assert_close(attn(x), expected(attn, x, attention_scale(12, 5)), rtol=0, atol=1e-12)


def test_cross_attention_is_left_alone() -> None:
    attn, x = build_attention(cross_attention_dim=8), torch.randn(2, 12, 8, dtype=torch.float64)
    context = torch.randn(2, 3, 8, dtype=torch.float64)
    plain = attn(x, context)
    attn.set_processor(ScaledAttnProcessor(AttnProcessor2_0(), trained_tokens=5))
    assert torch.equal(attn(x, context), plain)


def test_a_processor_that_would_ignore_the_factor_is_an_error() -> None:
    attn = build_attention()
    attn.set_processor(ScaledAttnProcessor(lambda attn, x, **_: x, trained_tokens=5))
    with pytest.raises(RuntimeError, match="ignored"):
        attn(torch.randn(2, 12, 8, dtype=torch.float64))


def test_it_is_gone_after_the_block_and_after_an_error() -> None:
    attn, x = build_attention(), torch.randn(2, 12, 8, dtype=torch.float64)
    plain, sharper = attn(x), expected(attn, x, 2.0)
    with scaled_queries(attn, lambda tokens: 2.0) as scaling:
        torch.testing.assert_close(attn(x), sharper, rtol=0, atol=1e-12)
    assert scaling.ran(attn)
    with pytest.raises(KeyError), scaled_queries(attn, lambda tokens: 2.0):
        raise KeyError
    assert torch.equal(attn(x), plain)


def test_low_rank_adapters_on_the_projection_are_scaled_with_it() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    attn, x = build_attention(), torch.randn(2, 12, 8, dtype=torch.float64)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), attn)
    attn.double().requires_grad_(False)
    attn.set_processor(ScaledAttnProcessor(AttnProcessor2_0(), trained_tokens=5))
    torch.testing.assert_close(attn(x), expected(attn, x, attention_scale(12, 5)), rtol=0, atol=1e-12)
