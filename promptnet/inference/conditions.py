"""From rows to what the U-Net is conditioned on: prompts of plain words, encoded once, and prompts that hold S*.

S* depends on the picture being drawn and on the step, so PromptNet and the text tower run once in every evaluation that
holds a subject: for all rows, subjects and reference pictures together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptnet.inference.deltas import Deltas, applied, summed
from promptnet.inference.guidance import Condition, References
from promptnet.inference.rows import Row
from promptnet.inference.sampling import UNetInputs
from promptnet.inference.schedule import Step
from promptnet.inference.subject import Subject
from promptnet.models.placeholders import tokenize_prompts
from promptnet.models.text import PromptStates, encode_prompts, encode_tokens

Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Networks:
    """What turns prompts and subjects into conditions, and where it computes."""

    tokenizer: Any
    text_encoder: Any
    promptnet: Any
    device: torch.device
    dtype: torch.dtype  # the U-Net's


class PlainPrompts:
    """Prompts of plain words, each encoded once.

    Args:
        networks: the text tower's.
        prompts: repeated ones are encoded once.
    """

    def __init__(self, networks: Networks, prompts: Sequence[str]) -> None:
        unique = list(dict.fromkeys(prompts))
        self._index = {prompt: index for index, prompt in enumerate(unique)}
        states = encode_prompts(networks.tokenizer, networks.text_encoder, unique, device=networks.device)
        self._states = states.hidden_states.to(networks.dtype)  # (P, T, D)

    def condition(self, prompts: Sequence[str], rows: Tensor) -> Condition:
        """These prompts in these rows."""
        inputs = UNetInputs(self._states[[self._index[prompt] for prompt in prompts]])
        return Condition(lambda x, step: inputs, rows)


@dataclass(frozen=True, eq=False)
class _Word:
    """One reference picture of one subject, read for one row."""

    row: int
    subject: Subject
    picture: int


@dataclass(frozen=True, eq=False)
class _Reading:
    """A row's prompt, with for each placeholder the word that stands there."""

    row: int
    words: Mapping[str, int]
    weight: float
    deltas: Deltas | None


class SubjectPrompts:
    """The prompts that hold S*, in the rows that have one.

    A row with several subjects reads their reference pictures side by side: the first of each, the second of each, and
    so on. A subject with one picture is read with it every time.

    Args:
        networks: PromptNet and the text tower.
        rows: those with a subject.
        indices: their places in the batch.
        word_positions: see `promptnet.models.text`.
        level_noise: if given, (C, h, w) of noise for each row on the reference pictures' grid: for pictures drawn
            at another size, PromptNet sees sqrt(a) r + sqrt(1-a) n. If not, every n-th of their latents.

    Raises:
        ValueError: subjects of one row have different numbers of reference pictures, or the prompt is too long.
    """

    def __init__(
        self,
        networks: Networks,
        rows: Sequence[Row],
        indices: Sequence[int],
        *,
        word_positions: Any = "natural",
        level_noise: Noise | None = None,
    ) -> None:
        self.networks, self.word_positions = networks, word_positions
        self.indices = torch.tensor(indices, device=networks.device)
        self._words, self._groups = _read_rows(rows)
        self._readings = [reading for group in self._groups for reading in group]
        self._batch_rows = torch.tensor([indices[word.row] for word in self._words], device=networks.device)
        self._word_rows = torch.tensor([word.row for word in self._words], device=networks.device)
        self._latents = self._gather(lambda subject: subject.reference_latents)  # (N, C, h, w)
        self._vision_states = self._gather(lambda subject: subject.vision_states)  # (N, T, V)
        self._noise = None if level_noise is None else level_noise(self._latents[:1].expand(len(rows), -1, -1, -1))
        num_words: int = networks.promptnet.num_pseudo_words(*self._latents.shape[2:])
        self._tokens = tokenize_prompts(
            networks.tokenizer,
            [rows[reading.row].prompt for reading in self._readings],
            [dict.fromkeys(reading.words, num_words) for reading in self._readings],
            max_length=min(networks.tokenizer.model_max_length, networks.text_encoder.config.max_position_embeddings),
        )
        self._last: tuple[Step, Tensor, PromptStates] | None = None

    def _gather(self, tensor_of: Callable[[Subject], Tensor]) -> Tensor:
        networks = self.networks
        tensors = [tensor_of(word.subject)[word.picture] for word in self._words]
        return torch.stack([tensor.to(networks.device, networks.promptnet.dtype) for tensor in tensors])

    def references(self, pseudo_word_scale: float = 1.0) -> References:
        """The predictions that hold the subjects, their output states scaled by gamma."""
        weights = torch.zeros(len(self.indices), len(self._groups), dtype=torch.float64)
        conditions, start = [], 0
        for picture, group in enumerate(self._groups):
            for reading in group:
                weights[reading.row, picture] = reading.weight
            conditions.append(self._condition(slice(start, start + len(group)), pseudo_word_scale))
            start += len(group)
        return References(self.indices, conditions, weights)

    def _condition(self, part: slice, pseudo_word_scale: float) -> Condition:
        readings = self._readings[part]
        deltas = tuple(reading.deltas for reading in readings)
        rows = self.indices[[reading.row for reading in readings]]

        def inputs(x: Tensor, step: Step) -> UNetInputs:
            states = self.states(x, step).scaled(pseudo_word_scale).hidden_states[part]
            return UNetInputs(states.to(self.networks.dtype), deltas=deltas if any(deltas) else None)

        return Condition(inputs, rows)

    def states(self, x: Tensor, step: Step) -> PromptStates:
        """The text tower's states of all readings; computed once in each evaluation."""
        if self._last is None or self._last[0] is not step or self._last[1] is not x:
            self._last = (step, x, self._encode(self.pseudo_words(x, step)))
        return self._last[2]

    def pseudo_words(self, x: Tensor, step: Step) -> Tensor:
        """S* for x at this step, (N, L, D): one for each row, subject and reference picture."""
        promptnet, deltas = self.networks.promptnet, [word.subject.promptnet_deltas for word in self._words]
        with applied(promptnet, deltas):
            return promptnet(
                self._latents, step.timestep, self._vision_states, noisy_latents=self._noisy_latents(x, step)
            ).pseudo_words

    def _noisy_latents(self, x: Tensor, step: Step) -> Tensor:
        """x_t as PromptNet sees it, (N, C, h, w)."""
        if self._noise is not None and x.shape[2:] != self._latents.shape[2:]:
            noise = self._noise[self._word_rows]
            return step.alpha**0.5 * self._latents + (1 - step.alpha) ** 0.5 * noise
        height, width = self._latents.shape[2:]
        return strided(x[self._batch_rows], height, width).to(self._latents.dtype)

    def _encode(self, words: Tensor) -> PromptStates:
        networks = self.networks
        return encode_tokens(
            networks.text_encoder,
            self._tokens,
            [{name: words[index] for name, index in reading.words.items()} for reading in self._readings],
            positions=self.word_positions,
            device=networks.device,
        )


def _read_rows(rows: Sequence[Row]) -> tuple[list[_Word], list[list[_Reading]]]:
    """All words to be made, and for each k the readings with the k-th reference pictures."""
    words: list[_Word] = []
    groups: list[list[_Reading]] = []
    for index, row in enumerate(rows):
        subjects = list({id(subject): subject for subject in row.subjects.values()}.values())
        places: dict[tuple[int, int], int] = {}
        for subject in subjects:
            for picture in range(subject.num_references):
                places[id(subject), picture] = len(words)
                words.append(_Word(index, subject, picture))
        deltas = _joined_deltas(subjects)
        for picture, weight in enumerate(_picture_weights(subjects)):
            found = {
                name: places[id(subject), min(picture, subject.num_references - 1)]
                for name, subject in row.subjects.items()
            }
            groups += [[] for _ in range(picture + 1 - len(groups))]
            groups[picture].append(_Reading(index, found, weight, deltas))
    return words, groups


def _picture_weights(subjects: Sequence[Subject]) -> list[float]:
    """The weight of each side-by-side reading: the mean over the subjects that have that many pictures."""
    counts = {subject.num_references for subject in subjects}
    most = max(counts)
    if counts - {1, most}:
        raise ValueError(
            f"Subjects in one prompt have {', '.join(map(str, sorted(counts)))} reference pictures: they need one "
            "picture, or the same number."
        )
    weights = [s.weights.tolist() for s in subjects if s.num_references == most]
    return [sum(column) / len(weights) for column in zip(*weights, strict=True)]


def _joined_deltas(subjects: Sequence[Subject]) -> Deltas | None:
    """What acts in the U-Net where these subjects appear."""
    parts = [subject.unet_deltas for subject in subjects if subject.unet_deltas]
    if len(parts) < 2:
        return parts[0] if parts else None
    return summed(parts)


def strided(x: Tensor, height: int, width: int) -> Tensor:
    """Every n-th of the latents (B, C, H, W), so that (B, C, height, width) are left: their variance stays one."""
    rows, columns = (_spread(size, count, x.device) for size, count in zip(x.shape[2:], (height, width), strict=True))
    return x if x.shape[2:] == (height, width) else x[:, :, rows][:, :, :, columns]


def _spread(size: int, count: int, device: torch.device) -> Tensor:
    """`count` indices spread evenly over `size`, at the middles of equal parts."""
    return (torch.arange(count, device=device) * 2 + 1) * size // (2 * count)
