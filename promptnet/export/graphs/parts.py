"""The networks of a pipeline as functions of tensors alone, which other software can run: no person is in any of them.

LoRA layers are inputs: for each layer the stacks A (B, R, d_in) and B (B, d_out, R), zeros in rows without a LoRA. So
one graph serves all people, and one batch can hold several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from promptnet.export.errors import ExportError
from promptnet.export.format_names import PARTS
from promptnet.inference.sampling.conditions import networks_of
from promptnet.inference.subject.lora import applied_stacks, initial_loras, key_value_layers, word_layers
from promptnet.models.text import encode_embedded

LORA_PREFIX = "lora."


@dataclass(frozen=True)
class Input:
    """One input of a graph.

    Args:
        shape: without the batch.
        dtype: float, int64 or bool.
        high: whole numbers are drawn below this; numbers are drawn with this standard deviation.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    high: float = 1.0

    def drawn(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random values (batch, *shape)."""
        shape = (batch, *self.shape)
        if self.dtype.is_floating_point:
            return (self.high * torch.randn(shape, generator=generator)).to(self.dtype)
        return torch.randint(int(self.high), shape, generator=generator).to(self.dtype)


Compute = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Graph:
    """A network, its inputs and outputs.

    Args:
        name: one of `PARTS`.
        network: whose weights the graph holds.
        inputs: by name, in order.
        outputs: names, in order.
        compute: inputs by name -> outputs.
    """

    name: str
    network: nn.Module
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    compute: Compute

    def module(self) -> nn.Module:
        """A module with one positional argument for each input."""
        return _Module(self)

    def drawn(self, batch: int, seed: int) -> dict[str, Tensor]:
        """Random inputs, the same on every device.

        Args:
            batch: number of rows.
            seed: of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        place = next(self.network.parameters()).device
        return {name: each.drawn(batch, generator).to(place) for name, each in self.inputs.items()}

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute outputs eagerly."""
        with torch.no_grad():
            return dict(zip(self.outputs, self.compute(values), strict=True))

    @property
    def loras(self) -> list[str]:
        """Names of the inputs that are LoRA stacks."""
        return [name for name in self.inputs if name.startswith(LORA_PREFIX)]


class _Module(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.network, self.names, self.compute = graph.network, list(graph.inputs), graph.compute

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.compute(dict(zip(self.names, values, strict=True)))


def graphs_of(pipe: Any, names: Sequence[str] | None = None, rank: int = 8) -> list[Graph]:
    """The graphs of a pipeline.

    Args:
        pipe: a PromptNetPipeline.
        names: some of `PARTS`; None is all that it has.
        rank: R, the largest of the LoRA layers that the graphs take.

    Raises:
        ExportError: a name is not known, the pipeline has no such part, or a network has inputs that are not.
    """
    for name in names or ():
        if name not in PARTS:
            raise ExportError(f"There is no graph {name!r}: choose from {', '.join(PARTS)}.")
    found = [name for name in PARTS if getattr(pipe, name.removesuffix("_decoder"), None) is not None]
    if missing := sorted(set(names or ()) - set(found)):
        raise ExportError(f"The pipeline has no {', '.join(missing)}: leave it out, or give --promptnet.")
    if isinstance(rank, bool) or rank < 1:
        raise ExportError(f"rank={rank} must be 1 or more.")
    made = {"unet": _unet, "vae_decoder": _vae_decoder, "promptnet": _promptnet}
    chosen = [name for name in found if names is None or name in names]
    return [made[name](pipe, rank) if name in made else _text_encoder(pipe, name) for name in chosen]


def _unet(pipe: Any, rank: int) -> Graph:
    unet, side, encoders = pipe.unet, pipe.unet.config.sample_size, networks_of(pipe).text_encoders
    kind, layers = unet.config.addition_embed_type, key_value_layers(unet)
    if kind not in (None, "text_time") or unet.config.class_embed_type is not None:
        raise ExportError("The U-Net wants conditions that only its own family knows: no graph is made of it.")
    length, width = encoders.text_encoders[0].max_length, unet.config.cross_attention_dim
    inputs = {
        "sample": Input((unet.config.in_channels, side, side), unet.dtype),
        "timestep": _TIMESTEP,
        "encoder_hidden_states": Input((length, width), unet.dtype),
    }
    if kind is not None:
        inputs["text_embeds"] = Input((pipe.text_encoder_2.config.projection_dim,), unet.dtype)
        inputs["time_ids"] = Input((6,), torch.float32, high=100.0)

    def compute(values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        extra = {name: values[name] for name in ("text_embeds", "time_ids") if name in values}
        sample = values["sample"]
        with applied_stacks(unet, _stacks(values), sample.shape[0]):
            return unet(
                sample,
                values["timestep"],
                encoder_hidden_states=values["encoder_hidden_states"],
                added_cond_kwargs=extra or None,
                return_dict=False,
            )

    return Graph("unet", unet, {**inputs, **_lora_inputs(layers, rank, unet.dtype)}, ("prediction",), compute)


_TIMESTEP = Input((), torch.int64, high=1000)


def _vae_decoder(pipe: Any, rank: int) -> Graph:
    vae = pipe.vae
    side, scale, shift = pipe.unet.config.sample_size, vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0

    def compute(values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return vae.decode(values["latents"] / scale + shift, return_dict=False)

    inputs = {"latents": Input((vae.config.latent_channels, side, side), vae.dtype)}
    return Graph("vae_decoder", vae, inputs, ("image",), compute)


def _text_encoder(pipe: Any, name: str) -> Graph:
    encoder = networks_of(pipe).text_encoders.text_encoders[int(name == "text_encoder_2")]
    network = encoder.network
    if getattr(network.config, "use_attention_mask", False):
        raise ExportError(f"{name} reads an attention mask, which its graph has no input for.")
    table = network.get_input_embeddings().weight
    inputs = {
        "input_ids": Input((encoder.max_length,), torch.int64, high=len(table)),
        "words": Input((encoder.max_length, encoder.width), network.dtype, float(table.detach().float().std())),
        "is_word": Input((encoder.max_length,), torch.bool, high=2),
    }
    has_pooled = name == "text_encoder_2"

    def compute(values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        given = values["input_ids"], values["words"], values["is_word"]
        states, pooled = encode_embedded(network, *given, encoder.layer, encoder.final_norm)
        return (states, pooled) if has_pooled and pooled is not None else (states,)

    outputs = ("hidden_states", "pooled") if has_pooled else ("hidden_states",)
    return Graph(name, network, inputs, outputs, compute)


def _promptnet(pipe: Any, rank: int) -> Graph:
    encoder, side = pipe.promptnet, pipe.unet.config.sample_size
    if pipe.image_encoder is None:
        raise ExportError("The pipeline has no image encoder, which says how many states PromptNet reads: give it one.")
    vision = pipe.image_encoder.config
    latents = Input((encoder.config.in_channels, side, side), encoder.dtype)
    inputs = {
        "reference_latents": latents,
        "timestep": _TIMESTEP,
        "vision_states": Input(((vision.image_size // vision.patch_size) ** 2 + 1, encoder.vision_dim), encoder.dtype),
    }
    if encoder.with_noise:
        inputs["noisy_latents"] = latents

    def compute(values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        reference = values["reference_latents"]
        with applied_stacks(encoder, _stacks(values), reference.shape[0]):
            return encoder(
                reference,
                values["timestep"],
                values["vision_states"],
                values.get("noisy_latents"),
                return_dict=False,
            )

    own = _lora_inputs(word_layers(encoder), rank, encoder.dtype)
    return Graph("promptnet", encoder, {**inputs, **own}, ("pseudo_words",), compute)


def _lora_inputs(layers: Mapping[str, nn.Module], rank: int, dtype: torch.dtype) -> dict[str, Input]:
    """Inputs `lora.LAYER.A` (R, d_in) and `lora.LAYER.B` (d_out, R); drawn so that A x and B y are as large as x."""
    found = {}
    for name, (d_out, d_in) in {name: lora.shape for name, lora in initial_loras(layers, 1).items()}.items():
        found[f"{LORA_PREFIX}{name}.A"] = Input((rank, d_in), dtype, d_in**-0.5)
        found[f"{LORA_PREFIX}{name}.B"] = Input((d_out, rank), dtype, rank**-0.5)
    return found


def _stacks(values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    names = [name.removeprefix(LORA_PREFIX)[:-2] for name in values if name.startswith(LORA_PREFIX)]
    return {name: (values[f"{LORA_PREFIX}{name}.A"], values[f"{LORA_PREFIX}{name}.B"]) for name in names[::2]}
