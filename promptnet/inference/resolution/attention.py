"""Attn-SF: self-attention stays as sharp over more or fewer tokens as it was at the trained size.

The factor goes onto the queries, where each backend must see it: scaled dot product, sliced, xformers, fused
projections, any processor that calls the layer's own projections. What is set on `attn.scale` fused kernels ignore.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from promptnet.models.slots import Place, asking, shared_place, slot_of

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
    return _scale(tokens, trained_tokens)


def _scale(tokens: float, trained_tokens: float) -> float:
    """Logarithms to base 2: compiled code knows no other ones of sizes that may change."""
    return 1.0 if tokens == 1 else math.sqrt(math.log2(tokens) / math.log2(trained_tokens))


def query_scale(tokens: int, area_ratio: float) -> float:
    """s of a layer that has N tokens where the image is `area_ratio` times as large as the trained ones.

    A layer whose trained grid had one token or less never learned to choose: it is left as it is.
    """
    trained = tokens / area_ratio
    return _scale(tokens, trained) if trained > 1 else 1.0


class QueryScaling:
    """What layers do in a call: they multiply queries by s, or by what makes the logits s times as large.

    One object serves all layers of a network, so that blocks which are compiled one by one share their code.

    Args:
        scale: s, from the number of tokens.
    """

    def __init__(self, scale: Callable[[int], float]) -> None:
        self.scale, self.tokens = scale, 0
        self._ran: set[int] = set()
        self._compiled = False

    def ran(self, attention: nn.Module) -> bool:
        """Whether the layer that makes this attention's queries was called. Compiled code does not say which were."""
        return self._compiled or id(_scaled_layer(attention)) in self._ran

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._note(layer)
        return output * self.scale(args[0].shape[-2])

    def fused(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Queries, keys and values side by side."""
        self._note(layer)
        return _scale_first(output, output.shape[-1] // 3, self.scale(args[0].shape[-2]))

    def count(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The projection before a query norm: the norm sees heads apart, and cannot count tokens."""
        self.tokens = args[0].shape[-2]
        return output

    def normed(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A query norm, which would undo what comes before it."""
        self._note(layer)
        return output * self.scale(self.tokens)

    def _note(self, layer: nn.Module) -> None:
        if torch.compiler.is_compiling():
            self._compiled = True
        else:
            self._ran.add(id(layer))


def _scale_first(x: Tensor, width: int, s: float) -> Tensor:
    """The first `width` channels times s."""
    scaled = x.clone()
    scaled[..., :width] *= s
    return scaled


def query_layer(attention: nn.Module) -> nn.Module:
    """The layer whose output is queries, or queries, keys and values where these are fused."""
    return attention.get_submodule("to_qkv" if getattr(attention, "fused_projections", False) else "to_q")


def _scaled_layer(attention: nn.Module) -> nn.Module:
    """The query norm, or the projection where there is none."""
    norm = getattr(attention, "norm_q", None)
    return query_layer(attention) if norm is None else norm


def scaling_actions(
    attentions: Iterable[nn.Module], scaling: QueryScaling, places: Callable[[str], Place]
) -> dict[str, Any]:
    """What to ask so that these attentions' logits are multiplied by s, by the key of its place.

    Args:
        attentions: diffusers `Attention`s; peft adapters on their projections and their processors are left in place.
        scaling: what they do.
        places: by the name of what is done there.
    """
    actions: dict[str, Any] = {}

    def ask(layer: nn.Module, name: str, action: Any) -> None:
        place = places(name)
        slot_of(layer, place)
        actions[place.key] = action

    for attention in attentions:
        layer, norm = query_layer(attention), getattr(attention, "norm_q", None)
        if norm is not None:
            ask(layer, "tokens", scaling.count)
            ask(norm, "normed queries", scaling.normed)
        elif getattr(attention, "fused_projections", False):
            ask(layer, "fused queries", scaling.fused)
        else:
            ask(layer, "queries", scaling)
    return actions


@contextmanager
def scaled_queries(attention: nn.Module, scale: Callable[[int], float]) -> Iterator[QueryScaling]:
    """For the length of the block, in this thread, this attention's logits are multiplied by s.

    Args:
        attention: a diffusers `Attention`.
        scale: s, from the number of tokens.

    Yields:
        the scaling; its `ran` says whether the attention really went through it.
    """
    scaling = QueryScaling(scale)
    with asking(scaling_actions([attention], scaling, lambda name: shared_place(attention, name))):
        yield scaling


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
        if not scaling.ran(attn):
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
