"""Attn-SF: self-attention stays as sharp over more or fewer tokens as it was at the trained size.

The factor goes onto the queries, where each backend must see it: scaled dot product, sliced, xformers, fused
projections, any processor that calls the layer's own projections. What is set on `attn.scale` fused kernels ignore.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

# Said of layers that were not called.
COMPILED_BEFORE = "If the network is compiled: torch.compiler.reset(), and call it again."


def attention_scale(tokens: float, trained_tokens: float) -> float:
    """s = sqrt(ln N / ln T), what logits are multiplied by, arXiv 2306.08645 equation 9.

    It keeps the entropy of attention at N tokens near that at T. With N = 1 the softmax has nothing to choose from and
    no factor can matter: s is 1 then.

    Args:
        tokens: N >= 1, how many tokens there are.
        trained_tokens: T > 1, how many there were at the trained size; may be a fraction.

    Raises:
        ValueError: a number is out of range.
    """
    if not (math.isfinite(tokens) and tokens >= 1):
        raise ValueError(f"tokens={tokens} must be a finite number of at least 1.")
    if not (math.isfinite(trained_tokens) and trained_tokens > 1):
        raise ValueError(
            f"trained_tokens={trained_tokens} must be above 1: one token attends to itself alone, whatever the scale. "
            "Leave such a layer as it is."
        )
    return 1.0 if tokens == 1 else math.sqrt(math.log(tokens) / math.log(trained_tokens))


def query_scale(tokens: int, area_ratio: float) -> float:
    """s of a layer that has N tokens where the image is `area_ratio` times as large as the trained ones.

    A layer whose trained grid had one token or less never learned to choose: it is left as it is.
    """
    trained = tokens / area_ratio
    return attention_scale(tokens, trained) if trained > 1 else 1.0


class QueryScaling:
    """A forward hook that multiplies queries by s, or by what makes the logits s times as large.

    Args:
        scale: s, from the number of tokens.
        fused: whether the layer gives queries, keys and values side by side.
    """

    def __init__(self, scale: Callable[[int], float], *, fused: bool = False) -> None:
        self.scale, self.fused, self.ran = scale, fused, False
        self.tokens = 0

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.ran = True
        s = self.scale(self.tokens or args[0].shape[-2])
        if not self.fused:
            return output * s
        width = output.shape[-1] // 3
        return _scale_first(output, width, s)


def _scale_first(x: Tensor, width: int, s: float) -> Tensor:
    """The first `width` channels times s."""
    scaled = x.clone()
    scaled[..., :width] *= s
    return scaled


class _TokenCount:
    """A forward pre-hook on the projection before a query norm: the norm sees heads apart, and cannot count tokens."""

    def __init__(self, scaling: QueryScaling) -> None:
        self.scaling = scaling

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.scaling.tokens = args[0].shape[-2]


def query_layer(attention: nn.Module) -> nn.Module:
    """The layer whose output is queries, or queries, keys and values where these are fused."""
    return attention.get_submodule("to_qkv" if getattr(attention, "fused_projections", False) else "to_q")


@contextmanager
def scaled_queries(attention: nn.Module, scale: Callable[[int], float]) -> Iterator[QueryScaling]:
    """For the length of the block, this attention's logits are multiplied by s.

    Args:
        attention: a diffusers `Attention`; peft adapters on its projections and its processor are left in place.
        scale: s, from the number of tokens.

    Yields:
        the hook; its `ran` says whether the attention really went through it.
    """
    layer, norm = query_layer(attention), getattr(attention, "norm_q", None)
    if norm is None:
        scaling = QueryScaling(scale, fused=bool(getattr(attention, "fused_projections", False)))
        handles = [layer.register_forward_hook(scaling)]
    else:  # a norm would undo what comes before it
        scaling = QueryScaling(scale)
        handles = [layer.register_forward_pre_hook(_TokenCount(scaling)), norm.register_forward_hook(scaling)]
    try:
        with _noticed(layer):
            yield scaling
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _noticed(layer: nn.Module) -> Iterator[None]:
    """Lets compiled code know of hooks, which it does not look at: it does look whether a layer has its own forward."""
    if "forward" in vars(layer):  # somebody else's, such as offloading
        yield
        return
    vars(layer)["forward"] = layer.forward
    try:
        yield
    finally:
        vars(layer).pop("forward", None)


class ScaledAttnProcessor:
    """Attn-SF as an attention processor, around the one that is installed.

        attn.set_processor(ScaledAttnProcessor(attn.processor, trained_tokens=1024))

    Args:
        processor: what computes the attention.
        trained_tokens: T > 1, the number of tokens at the trained size.

    Raises:
        ValueError: T is not above 1.
    """

    def __init__(self, processor: Any, trained_tokens: float) -> None:
        attention_scale(2, trained_tokens)
        self.processor, self.trained_tokens = processor, trained_tokens

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The attention with its logits scaled; cross-attention as it is.

        Raises:
            RuntimeError: the inner processor goes around the layer's projections, so that the factor was ignored.
        """
        given: dict[str, Any] = {"attention_mask": attention_mask, "temb": temb, **kwargs}
        given = {name: value for name, value in given.items() if value is not None}  # not all processors take all
        if encoder_hidden_states is not None:
            return self.processor(attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **given)
        with scaled_queries(attn, lambda tokens: attention_scale(tokens, self.trained_tokens)) as scaling:
            output = self.processor(attn, hidden_states, **given)
        if not scaling.ran:
            raise RuntimeError(never_ran(type(self.processor).__name__))
        return output


def never_ran(name: str) -> str:
    """What to say when a layer was to be scaled and was not called."""
    return (
        f"Attention was to be scaled, but {name} never called the layer that makes its queries, so the factor would "
        "have been ignored. Use a processor that calls attn.to_q, such as diffusers' AttnProcessor2_0, or leave "
        f"attention as it is (attention: false in the settings). {COMPILED_BEFORE}"
    )


def is_self_attention(module: nn.Module) -> bool:
    """Whether tokens of the image attend to each other, and to nothing else."""
    return isinstance(module, Attention) and not module.is_cross_attention and not has_added_keys(module)


def has_added_keys(module: nn.Module) -> bool:
    """Whether an attention's keys are the text's beside the image's."""
    return isinstance(module, Attention) and getattr(module, "add_k_proj", None) is not None
