"""From rows to what the U-Net is conditioned on: prompts of plain words, encoded once, and prompts that hold S*.

S* depends on the image being drawn and on the step, so PromptNet and the text encoders run once in every evaluation
that holds a subject: for all rows, subjects and reference images together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.sampling.guidance import Condition, References
from promptnet.inference.sampling.loop import UNetInputs
from promptnet.inference.sampling.regions import region_maps
from promptnet.inference.sampling.requests import Request
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.sampling.word_table import TableWord, WordTable
from promptnet.inference.subject.lora import LoRALayers, RowLoRAs, apply_loras, merge_loras
from promptnet.inference.subject.subject import Subject
from promptnet.models.micro_conditioning import generated_size_ids, micro_conditions
from promptnet.models.text import PromptStates
from promptnet.models.text_encoders import TextEncoders, text_encoders_of

Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Networks:
    """What turns prompts and subjects into conditions, and where it computes.

    Args:
        text_encoders: the base model's text encoders.
        promptnet: the encoder; None where no prompt holds a subject that needs it.
        device: where to compute.
        dtype: the U-Net's.
        latent_px: pixels of an image for each of its latents, along a side.
        zeros_without_prompt: whether a prompt that is not given is zeros, as SDXL's U-Net may be trained; otherwise it
            is an empty one.
        negative_encoders: what reads negative prompts, if it is something else.
        encoder_hash: of PromptNet's weights, where its words may be kept with their subjects.
    """

    text_encoders: TextEncoders
    promptnet: Any
    device: torch.device
    dtype: torch.dtype
    latent_px: int = 8
    zeros_without_prompt: bool = False
    negative_encoders: TextEncoders | None = None
    encoder_hash: str | None = None

    def inputs(self, states: Tensor, pooled: Tensor | None, x: Tensor, loras: RowLoRAs | None = None) -> UNetInputs:
        """What the U-Net gets for rows with these states (B, T, D) and SDXL's pooled states (B, P).

        Args:
            states: of the prompts.
            pooled: None for base models with one text encoder.
            x: latents (N, C, h, w) of the batch, whose size SDXL's U-Net is told of.
            loras: for each row.
        """
        if pooled is None:
            return UNetInputs(states.to(self.dtype), loras=loras)
        height_px, width_px = (self.latent_px * side for side in x.shape[2:])
        sizes = generated_size_ids(height_px, width_px, len(states), states.device)
        return UNetInputs(states.to(self.dtype), micro_conditions(pooled, sizes, self.dtype), loras)


def networks_of(pipe: Any, clip_skip: int | None = None) -> Networks:
    """What turns a pipeline's prompts and subjects into conditions.

    Args:
        pipe: whose.
        clip_skip: how many layers earlier text encoders are read.

    Raises:
        ValueError: an encoder has not as many layers, or the U-Net reads an image through an IP-Adapter.
    """
    _check_without_ip_adapter(pipe.unet.config)
    text_encoders = text_encoders_of(pipe)
    return Networks(
        text_encoders.skipping(clip_skip),
        pipe.promptnet,
        pipe._execution_device,
        pipe.unet.dtype,
        pipe.vae_scale_factor,
        pipe.config.get("force_zeros_for_empty_prompt", False),
        text_encoders if clip_skip else None,
    )


def _check_without_ip_adapter(unet_config: Any) -> None:
    if getattr(unet_config, "encoder_hid_dim_type", None) == "ip_image_proj":
        raise ValueError(
            "The U-Net has an IP-Adapter, which reads an image that PromptNetPipeline does not give it: call "
            "unload_ip_adapter() of the pipeline that loaded it, or draw there: in_stock_pipeline is for subjects, "
            "stock_arguments for edits."
        )


class PlainPrompts:
    """Prompts of plain words, each encoded once.

    Args:
        networks: the text encoders'.
        prompts: repeated ones are encoded once. None is a prompt that was not given.
    """

    def __init__(self, networks: Networks, prompts: Sequence[str | None]) -> None:
        self.networks = networks
        unique = list(dict.fromkeys(map(self._key, prompts)))
        self._index = {prompt: index for index, prompt in enumerate(unique)}
        encoded = networks.text_encoders.encode([prompt or "" for prompt in unique], device=networks.device)
        states, pooled = encoded.hidden_states, encoded.pooled
        if None in self._index:
            absent = torch.tensor([self._index[None]], device=states.device)
            states = states.index_fill(0, absent, 0)
            pooled = None if pooled is None else pooled.index_fill(0, absent, 0)
        self._states = states.to(networks.dtype)  # (P, T, D)
        self._pooled = pooled  # (P, Q)

    def _key(self, prompt: str | None) -> str | None:
        return prompt if self.networks.zeros_without_prompt else prompt or ""

    def condition(self, prompts: Sequence[str | None], rows: Tensor) -> Condition:
        """These prompts in these rows."""
        places = [self._index[self._key(prompt)] for prompt in prompts]
        states, pooled = self._states[places], None if self._pooled is None else self._pooled[places]
        return Condition(lambda x, step: self.networks.inputs(states, pooled, x), rows)


@dataclass(frozen=True, eq=False)
class _Word:
    """One reference image of one subject, read for one row."""

    row: int
    subject: Subject
    image: int


@dataclass(frozen=True, eq=False)
class _EncodedWords:
    """A prompt of a row, with for each placeholder the word that stands there.

    `region` names the placeholder of the one person that the prompt holds, in a row with regions.
    """

    row: int
    prompt: str
    words: Mapping[str, int]
    weight: float
    loras: LoRALayers | None
    region: str | None = None


class _Evaluation:
    """Which evaluation words were made for: equal only to one of the same step and latents objects."""

    def __init__(self, step: Step, x: Tensor) -> None:
        self.step, self.x = step, x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Evaluation) and self.step is other.step and self.x is other.x

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class SubjectPrompts:
    """The prompts that hold S*, in the rows that have one.

    A subject with words of its own brings them as they are, and PromptNet reads the others.

    A row with regions has a prompt for each of its subjects, with class words for the others and that subject's LoRA
    layers alone, which counts where the subject's weight map says.

    Another row with several subjects reads their reference images side by side: the first of each, the second of each,
    and so on. A subject with one image is read with it every time.

    Args:
        networks: PromptNet and the text encoders.
        rows: those with a subject.
        indices: their places in the batch.
        word_positions: see `promptnet.models.text`.
        level_noise: if given, (C, h, w) of noise for each row on the reference images' grid: for images drawn
            at another size, PromptNet sees sqrt(a) r + sqrt(1-a) n. If not, every n-th of their latents.
        every: k, for how many steps the words of one evaluation stay; 1 makes them anew in each evaluation.
        timesteps: of the drawing; an encoder that does not look at x makes the words of all of them at once.
        latent_size: height and width of the latents, for rows with regions.

    Raises:
        ValueError: subjects of one row have different numbers of reference images, or the prompt is too long.
    """

    def __init__(
        self,
        networks: Networks,
        rows: Sequence[Request],
        indices: Sequence[int],
        *,
        word_positions: Any = "natural",
        level_noise: Noise | None = None,
        every: int = 1,
        timesteps: Sequence[Tensor] = (),
        latent_size: tuple[int, int] | None = None,
    ) -> None:
        self.networks, self.word_positions, self.every = networks, word_positions, every
        self.indices = torch.tensor(indices, device=networks.device)
        self._words, self._groups = _read_rows(rows)
        self._num_regions = torch.tensor([max(1, len(row.regions)) for row in rows])
        self._maps = [_region_maps_of(row, latent_size, networks.device) for row in rows]
        self._readings = [reading for group in self._groups for reading in group]
        self._read = [word for word in self._words if word.subject.needs_encoder]
        self._fixed = [word.subject.words for word in self._words]
        if self._read:
            self._gather_references(indices, len(rows), level_noise)
        counts = [word.subject.num_words(networks.promptnet) for word in self._words]
        self._tokens = networks.text_encoders.tokenize(
            [reading.prompt for reading in self._readings],
            [{name: counts[index] for name, index in reading.words.items()} for reading in self._readings],
        )
        self._last: tuple[Any, PromptStates] | None = None
        self._timesteps = timesteps
        self._table: WordTable | None = None

    def _gather_references(self, indices: Sequence[int], num_rows: int, level_noise: Noise | None) -> None:
        """Lay side by side what PromptNet reads: N images."""
        device = self.networks.device
        self._batch_rows = torch.tensor([indices[word.row] for word in self._read], device=device)
        self._word_rows = torch.tensor([word.row for word in self._read], device=device)
        self._latents = self._gather(lambda subject: subject.reference_latents)  # (N, C, h, w)
        self._vision_states = self._gather(lambda subject: subject.vision_states)  # (N, T, V)
        self._word_loras = RowLoRAs(tuple(word.subject.promptnet_loras for word in self._read))
        self._noise = None if level_noise is None else level_noise(self._latents[:1].expand(num_rows, -1, -1, -1))

    def _gather(self, tensor_of: Callable[[Subject], Tensor]) -> Tensor:
        networks = self.networks
        tensors = [tensor_of(word.subject)[word.image] for word in self._read]
        return torch.stack([tensor.to(networks.device, networks.promptnet.dtype) for tensor in tensors])

    def references(self, pseudo_word_scale: float = 1.0) -> References:
        """The predictions that hold the subjects, their output states scaled by gamma."""
        weights = torch.zeros(len(self.indices), len(self._groups), dtype=torch.float64)
        conditions, start = [], 0
        for image, group in enumerate(self._groups):
            for reading in group:
                weights[reading.row, image] = reading.weight
            conditions.append(self._condition(slice(start, start + len(group)), pseudo_word_scale))
            start += len(group)
        maps = [self._map_of(group) for group in self._groups]
        return References(self.indices, conditions, weights, maps, self._num_regions)

    def _map_of(self, group: Sequence[_EncodedWords]) -> Tensor | None:
        """The maps of one condition's rows (R, 1, h, w), 1 in rows without regions; None if none has any."""
        found = [None if reading.region is None else self._maps[reading.row][reading.region] for reading in group]
        like = next((map_ for map_ in found if map_ is not None), None)
        return None if like is None else torch.stack([torch.ones_like(like) if m is None else m for m in found])

    def _condition(self, part: slice, pseudo_word_scale: float) -> Condition:
        readings = self._readings[part]
        loras = RowLoRAs(tuple(reading.loras for reading in readings))
        given = loras if any(loras.rows) else None
        rows = self.indices[[reading.row for reading in readings]]

        def inputs(x: Tensor, step: Step) -> UNetInputs:
            states = self.states(x, step).scaled(pseudo_word_scale)
            pooled = None if states.pooled is None else states.pooled[part]
            return self.networks.inputs(states.hidden_states[part], pooled, x, given)

        return Condition(inputs, rows)

    def states(self, x: Tensor, step: Step) -> PromptStates:
        """The text encoders' states of all readings; computed once in each evaluation, or once for `every` steps."""
        made_for = _Evaluation(step, x) if self.every == 1 else step.index // self.every
        if self._last is None or self._last[0] != made_for:
            self._last = (made_for, self._encode(self.all_words(x, step)))
        return self._last[1]

    def all_words(self, x: Tensor, step: Step) -> list[Tensor]:
        """S* for x at this step, (L, D) for each row, subject and reference image: read, or the subject's own."""
        read = iter(self.pseudo_words(x, step)) if self._read else iter(())
        return [next(read) if words is None else words.to(self.networks.device) for words in self._fixed]

    def pseudo_words(self, x: Tensor, step: Step) -> Tensor:
        """What PromptNet reads for x at this step, (N, L, D): one for each row, subject and reference image."""
        promptnet = self.networks.promptnet
        if self._timesteps and not promptnet.with_noise and not torch.is_grad_enabled():
            return self._word_table().at(step.timestep)
        with apply_loras(promptnet, self._word_loras):
            return promptnet(
                self._latents, step.timestep, self._vision_states, noisy_latents=self._noisy_latents(x, step)
            ).pseudo_words

    def _word_table(self) -> WordTable:
        if self._table is None:
            self._table = WordTable(
                self.networks.promptnet,
                [TableWord(word.subject, word.image) for word in self._read],
                self._latents,
                self._vision_states,
                self._timesteps,
                self.networks.encoder_hash,
            )
        return self._table

    def _noisy_latents(self, x: Tensor, step: Step) -> Tensor:
        """x_t as PromptNet sees it, (N, C, h, w)."""
        if self._noise is not None and x.shape[2:] != self._latents.shape[2:]:
            noise = self._noise[self._word_rows]
            return step.alpha**0.5 * self._latents + (1 - step.alpha) ** 0.5 * noise
        height, width = self._latents.shape[2:]
        return strided(x[self._batch_rows], height, width).to(self._latents.dtype)

    def _encode(self, words: Sequence[Tensor]) -> PromptStates:
        return self.networks.text_encoders.encode_tokens(
            self._tokens,
            [{name: words[index] for name, index in reading.words.items()} for reading in self._readings],
            positions=self.word_positions,
            device=self.networks.device,
        )


def _read_rows(rows: Sequence[Request]) -> tuple[list[_Word], list[list[_EncodedWords]]]:
    """All words to be made, and for each k the readings with the k-th reference images."""
    words: list[_Word] = []
    groups: list[list[_EncodedWords]] = []
    for index, row in enumerate(rows):
        subjects = list({id(subject): subject for subject in row.subjects.values()}.values())
        places: dict[tuple[int, int], int] = {}
        for subject in subjects:
            for image in range(subject.num_references):
                places[id(subject), image] = len(words)
                words.append(_Word(index, subject, image))
        if row.regions:
            _read_regions(index, row, places, groups)
            continue
        loras = _joined_loras(subjects)
        for image, weight in enumerate(_image_weights(subjects)):
            found = {
                name: places[id(subject), min(image, subject.num_references - 1)]
                for name, subject in row.subjects.items()
            }
            groups += [[] for _ in range(image + 1 - len(groups))]
            groups[image].append(_EncodedWords(index, row.prompt, found, weight, loras))
    return words, groups


def _read_regions(
    index: int, row: Request, places: Mapping[tuple[int, int], int], groups: list[list[_EncodedWords]]
) -> None:
    """Add a row's readings: for each subject, one with each of its images."""
    group = 0
    for name, subject in row.subjects.items():
        loras, prompt = subject.unet_loras or None, row.prompt_of(subject)
        for image, weight in enumerate(subject.weights.tolist()):
            groups += [[] for _ in range(group + 1 - len(groups))]
            word = {name: places[id(subject), image]}
            groups[group].append(_EncodedWords(index, prompt, word, weight / len(row.subjects), loras, name))
            group += 1


def _region_maps_of(row: Request, latent_size: tuple[int, int] | None, device: torch.device) -> dict[str, Tensor]:
    """Placeholder -> (1, h, w), the share of each place times the number of subjects: 1 on average."""
    if not row.regions:
        return {}
    if latent_size is None:
        raise ValueError("Regions are not supported here: generate with PromptNetPipeline.")
    maps = region_maps(list(row.regions.values()), *latent_size) * len(row.regions)
    return {name: map_[None].to(device) for name, map_ in zip(row.regions, maps, strict=True)}


def _image_weights(subjects: Sequence[Subject]) -> list[float]:
    """The weight of each side-by-side reading: the mean over the subjects that have that many images."""
    counts = {subject.num_references for subject in subjects}
    most = max(counts)
    if counts - {1, most}:
        raise ValueError(
            f"Subjects in one prompt have {', '.join(map(str, sorted(counts)))} reference images: they need one "
            "image, or the same number."
        )
    weights = [s.weights.tolist() for s in subjects if s.num_references == most]
    return [sum(column) / len(weights) for column in zip(*weights, strict=True)]


def _joined_loras(subjects: Sequence[Subject]) -> LoRALayers | None:
    """What acts in the U-Net where these subjects appear."""
    parts = [subject.unet_loras for subject in subjects if subject.unet_loras]
    if len(parts) < 2:
        return parts[0] if parts else None
    return merge_loras(parts)


def strided(x: Tensor, height: int, width: int) -> Tensor:
    """Every n-th of the latents (B, C, H, W), so that (B, C, height, width) are left: their variance stays one."""
    rows, columns = (_spread(size, count, x.device) for size, count in zip(x.shape[2:], (height, width), strict=True))
    return x if x.shape[2:] == (height, width) else x[:, :, rows][:, :, :, columns]


def _spread(size: int, count: int, device: torch.device) -> Tensor:
    """`count` indices spread evenly over `size`, at the middles of equal parts."""
    return (torch.arange(count, device=device) * 2 + 1) * size // (2 * count)
