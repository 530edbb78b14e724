"""The papers' formulas, written out without the code that is tested."""

from typing import Any

import torch
from torch import Tensor


def text_inputs(pipe: Any, words: Tensor, before: str = "a") -> dict[str, Any]:
    """What the U-Net gets for "<before> S*", of embeddings that are put together by hand."""
    states, pooled, start = [], None, 0
    networks = [n for n in (pipe.text_encoder, pipe.text_encoder_2) if n is not None]
    for network, tokenizer in zip(networks, (pipe.tokenizer, pipe.tokenizer_2), strict=False):
        width = network.config.hidden_size
        table = network.get_input_embeddings().weight
        length = network.config.max_position_embeddings
        ids = tokenizer(before, add_special_tokens=False).input_ids
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        own = words[:, start : start + width]
        start += width
        rest = length - 1 - len(ids) - len(own)
        pad = [last] + [tokenizer.pad_token_id] * (rest - 1)
        embedded = torch.cat([table[[first, *ids]], own, table[pad]])[None]
        end = 1 + (ids.index(last) if last in ids else len(ids) + len(own))  # the toy tokenizer has no "a" but the end
        found = run_clip(network, embedded, end)
        states.append(found[0] if len(networks) == 1 else found[1])
        pooled = found[2]
    inputs: dict[str, Any] = {"encoder_hidden_states": torch.cat(states, dim=-1)}
    if len(networks) == 2:
        side = float(pipe.trained_size_px[0])
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]])
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return inputs


def run_clip(network: Any, embedded: Tensor, end: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """(last state behind the final norm, state before the last layer, projected state at the end token)."""
    text = getattr(network, "text_model", network)
    length = embedded.shape[1]
    hidden = embedded + text.embeddings.position_embedding.weight[:length]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for layer in text.encoder.layers:
        before = hidden
        found = layer(hidden, attention_mask=mask)
        hidden = found[0] if isinstance(found, tuple) else found
    last = text.final_layer_norm(hidden)
    projection = getattr(network, "text_projection", None)
    return last, before, None if projection is None else projection(last[:, end])


def squared_error(pipe: Any, latents: Tensor, noise: Tensor, timestep: int, inputs: dict[str, Any]) -> Tensor:
    """|| target - unet(sqrt(a) x + sqrt(1-a) n, t, c) ||^2, the mean over one image's values."""
    a = pipe.scheduler.alphas_cumprod[timestep]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    target = (
        noise if pipe.scheduler.config.prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents
    )
    output = pipe.unet(noisy, torch.tensor(timestep), **inputs).sample
    return (output - target).square().mean()
