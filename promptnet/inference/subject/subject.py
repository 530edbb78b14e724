"""The per-user artefact: what is kept of one person, as data.

A subject is reference images, as latents and as the image encoder saw them, and the LoRA layers that tuning found.
It holds the face as plainly as the photographs do: treat the file like one. It works with the base model that it was
made with, which it knows by its weights.
"""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from promptnet.inference.subject.class_word import SubjectError, check_class_word
from promptnet.inference.subject.fingerprint import differing
from promptnet.inference.subject.fingerprint import fingerprint as fingerprint_of
from promptnet.inference.subject.lora import LoRALayer, merge_loras
from promptnet.io.artifacts import FileKind, Tensors, Texts, hash_content

FORMAT_VERSION = 1
_ENCODER_PARTS = {"promptnet", "image_encoder"}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False, repr=False)
class Subject:
    """One person: K reference images and what tuning learnt from them.

    Args:
        reference_latents: (K, C, h, w), scaled VAE latents of the reference images.
        vision_states: (K, T, V), `last_hidden_state` of the image encoder for them.
        weights: (K,), how much each image counts, above 0; they are scaled to sum to 1.
        class_word: what the person is in a sentence, such as "person", "woman", "boy".
        fingerprint: component -> hash of the weights that the subject was made with.
        loras: LoRA layers by component and layer, "unet.<layer>" or "promptnet.<layer>". Empty: not tuned.
        base: what the base model was called, for messages only.
        words: (L, D), words that depend on nothing, in place of what PromptNet makes of the image: such a subject needs
            no encoder. It keeps one reference image, for previews, and no vision states (1, 0, 0). None: PromptNet's.

    Attributes:
        tables: words of whole drawings that an encoder without noise has made of it (`sampling.word_table`), with what
            they depend on beside the subject. Never in its file.

    Raises:
        SubjectError: shapes, dtypes or values are not as above.
    """

    reference_latents: Tensor
    vision_states: Tensor
    weights: Tensor
    class_word: str
    fingerprint: Mapping[str, str]
    loras: Mapping[str, LoRALayer] = field(default_factory=dict)
    base: str = ""
    words: Tensor | None = None
    tables: MutableMapping[Any, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        _check_tensors(self)
        _check_texts(self)
        if abs(float(self.weights.sum()) - 1) > 1e-5:  # what was scaled once stays bit for bit as it is
            object.__setattr__(self, "weights", self.weights / self.weights.sum())

    @property
    def num_references(self) -> int:
        return len(self.reference_latents)

    @property
    def needs_encoder(self) -> bool:
        """Whether PromptNet makes its words."""
        return self.words is None

    def num_words(self, encoder: Any) -> int:
        """L, how many pseudo-words stand for it in a prompt.

        Args:
            encoder: PromptNet; not asked where the subject has words of its own.
        """
        if self.words is not None:
            return len(self.words)
        return encoder.num_pseudo_words(*self.reference_latents.shape[2:])

    @property
    def unet_loras(self) -> dict[str, LoRALayer]:
        """What to give to `apply_loras(unet, ...)` in rows that hold this subject; empty if the U-Net was not tuned."""
        return self._loras_of("unet")

    @property
    def promptnet_loras(self) -> dict[str, LoRALayer]:
        """What to give to `apply_loras(promptnet, ...)`."""
        return self._loras_of("promptnet")

    @property
    def deltas(self) -> Mapping[str, LoRALayer]:
        """The name of `loras` before; it works for one release."""
        warnings.warn("Subject.deltas is now Subject.loras.", DeprecationWarning, stacklevel=2)
        return self.loras

    def _loras_of(self, component: str) -> dict[str, LoRALayer]:
        prefix = f"{component}."
        return {name.removeprefix(prefix): lora for name, lora in self.loras.items() if name.startswith(prefix)}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file."""
        factors = {
            f"deltas.{name}.{key}": matrix
            for name, lora in self.loras.items()
            for key, matrix in (("down", lora.A), ("up", lora.B))
        }
        own = {name: getattr(self, name) for name in ("reference_latents", "vision_states", "weights")}
        own |= {} if self.words is None else {"words": self.words}
        return {**own, **factors}

    def texts(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        return {"class_word": self.class_word, "fingerprint": dict(self.fingerprint), "base": self.base}

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything in the subject: equal for equal subjects, on any device."""
        return hash_content(self.texts(), self.tensors())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy on another device, or in another floating-point type; it shares the words that are known."""
        copied = replace(
            self,
            reference_latents=self.reference_latents.to(device=device, dtype=dtype),
            vision_states=self.vision_states.to(device=device, dtype=dtype),
            weights=self.weights.to(device=device),
            loras={name: lora.to(device, dtype) for name, lora in self.loras.items()},
            words=None if self.words is None else self.words.to(device=device, dtype=dtype),
        )
        if dtype is None:
            object.__setattr__(copied, "tables", self.tables)
        return copied

    def scaled(self, strength: float) -> Self:
        """What tuning learnt, dialled: 0 is the encoder's words alone, 1 as tuned, more is more.

        Raises:
            SubjectError: the strength is not a finite number, or the subject was not tuned.
        """
        if isinstance(strength, bool) or not isinstance(strength, Real) or not math.isfinite(strength):
            raise SubjectError(f"strength={strength!r} must be a finite number: 0 is not tuned, 1 as tuned.")
        if not self.loras:
            raise SubjectError("The subject was not tuned, so nothing can be scaled: change subject_scale of the call.")
        loras = {name: LoRALayer(lora.A, lora.B * float(strength)) for name, lora in self.loras.items()}
        return replace(self, loras=loras if strength else {})

    def check(self, pipe: Any) -> None:
        """Refuse a pipeline whose base model is not the one that this subject was made with.

        Raises:
            SubjectError: names the components whose weights differ.
        """
        self.check_fingerprint(fingerprint_of(pipe), pipe)

    def check_fingerprint(self, found: Mapping[str, str], pipe: Any) -> None:
        """The same with the pipeline's fingerprint, for those who check several subjects.

        Raises:
            SubjectError: names the components whose weights differ.
        """
        names = differing(self.fingerprint, found)
        if not self.needs_encoder:
            names = [name for name in names if name not in _ENCODER_PARTS]
        if names:
            raise SubjectError(_other_base(self, pipe, names))

    @classmethod
    def combine(cls, subjects: Sequence["Subject"], weights: Sequence[float] | None = None) -> "Subject":
        """Several subjects of the same person as one: their images side by side, their LoRA layers averaged.

        Args:
            subjects: made with the same base model, with the same class word.
            weights: how much each counts, above 0; default: all the same.

        Raises:
            SubjectError: none is given, they do not belong together, or a weight is not above 0.
        """
        weights = [1.0] * len(subjects) if weights is None else list(weights)
        if not subjects or len(weights) != len(subjects) or not all(0 < weight < float("inf") for weight in weights):
            raise SubjectError(
                f"{len(subjects)} subjects with the weights {weights} cannot be combined: "
                "give at least one subject, and a weight above 0 for each."
            )
        first = subjects[0]
        for other in subjects[1:]:
            _check_same_kind(first, other)
        fractions = [weight / sum(weights) for weight in weights]
        return replace(
            first,
            reference_latents=torch.cat([subject.reference_latents for subject in subjects]),
            vision_states=torch.cat([subject.vision_states for subject in subjects]),
            weights=torch.cat([share * subject.weights for share, subject in zip(fractions, subjects, strict=True)]),
            loras=merge_loras([subject.loras for subject in subjects], fractions),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the subject as one safetensors file that only its owner can read; an old file is replaced whole.

        Raises:
            SubjectError: the folder does not exist, or the file cannot be written. Nothing half-written is left.
        """

        save_subject(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Subject":
        """Read a subject file, believing nothing in it before it was checked.

        Raises:
            SubjectError: missing, too large, broken, altered, of another version, or not a subject at all.
        """

        return load_subject(Path(path))

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes, for those who keep it elsewhere."""
        return KIND.to_bytes(self.texts(), self.tensors())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Subject":
        """The subject in the content of such a file, checked as `load` checks it.

        Raises:
            SubjectError: as `load` does.
        """
        return KIND.from_bytes(data, _assembled)

    def __repr__(self) -> str:
        """What kind of subject it is, and nothing that is in it."""
        return (
            f"Subject({self.class_word!r}, references={self.num_references}, "
            f"loras={len(self.loras)}, base={self.base!r}, device='{self.reference_latents.device}')"
        )


def _check_tensors(subject: Subject) -> None:
    shapes = {"reference_latents": 4, "vision_states": 3, "weights": 1}
    if subject.words is not None:
        _check_words(subject, subject.words)
        del shapes["vision_states"]
    for name, num_dims in shapes.items():
        tensor: Tensor = getattr(subject, name)
        if tensor.ndim != num_dims or not tensor.numel():
            raise SubjectError(f"{name} must have {num_dims} dimensions, none of them empty, not {list(tensor.shape)}.")
    counts = {name: len(getattr(subject, name)) for name in shapes}
    if len(set(counts.values())) > 1:
        raise SubjectError(f"There must be as many of each for every reference image, but there are {counts}.")
    for name, tensor in subject.tensors().items():
        if tensor.dtype not in _DTYPES:
            raise SubjectError(f"{name} must be float32, float16 or bfloat16, not {tensor.dtype}.")
        if not tensor.isfinite().all():
            raise SubjectError(f"{name} has values that are not finite: {_advice(name)}.")
    if not (subject.weights > 0).all():
        raise SubjectError(f"The images' weights must be above 0, not {subject.weights.tolist()}.")
    for name in subject.loras:
        if not name.startswith(("unet.", "promptnet.")):
            raise SubjectError(f"A LoRA layer belongs to the unet or the promptnet, but one is for {name!r}.")


def _advice(name: str) -> str:
    if name in ("reference_latents", "vision_states"):  # nothing has been tuned yet
        return "load the pipeline in bfloat16 or float32, or check the weights of its VAE and image encoder"
    return "customise again with a lower learning rate"


def _check_words(subject: Subject, words: Tensor) -> None:
    if words.ndim != 2 or not words.numel():
        raise SubjectError(f"words must be (L, D), none of them empty, not {list(words.shape)}.")
    shape = list(subject.vision_states.shape)
    if subject.num_references != 1 or shape != [1, 0, 0]:
        raise SubjectError(
            f"A subject with words of its own keeps 1 reference image and no vision states, not "
            f"{subject.num_references} and {shape}."
        )
    if any(name.startswith("promptnet.") for name in subject.loras):
        raise SubjectError("A subject with words of its own has no LoRA layers for the promptnet.")


def image_weights(weights: Any, count: int) -> Tensor:
    """How much each of `count` images counts, (count,); None is all the same.

    Raises:
        SubjectError: there are not as many, or one is no number above 0.
    """
    weights = weights.tolist() if isinstance(weights, Tensor) else weights
    given = [1.0] * count if weights is None else list(weights) if isinstance(weights, Iterable) else [weights]
    numbers = all(isinstance(weight, Real) and 0 < float(weight) < float("inf") for weight in given)
    if len(given) != count or not numbers:
        raise SubjectError(f"weights={weights!r} must hold a number above 0 for each of the {count} images.")
    return torch.tensor([float(weight) for weight in given])


def _check_texts(subject: Subject) -> None:
    check_class_word(subject.class_word)
    if not all(isinstance(text, str) for pair in subject.fingerprint.items() for text in pair):
        raise SubjectError("The fingerprint must hold a hash for each component's name.")
    if not isinstance(subject.base, str):
        raise SubjectError(f"base={subject.base!r} must be the base model's name.")


def _check_same_kind(first: Subject, other: Subject) -> None:
    if not (first.needs_encoder and other.needs_encoder):
        raise SubjectError(
            "Subjects with words of their own cannot be combined: customise one on all the images together."
        )
    if differing(first.fingerprint, other.fingerprint):
        raise SubjectError("Subjects made with different base models cannot be combined: customise them with one.")
    if first.class_word != other.class_word:
        raise SubjectError(
            f"Subjects with the class words {first.class_word!r} and {other.class_word!r} cannot be combined. "
            "For two people in one image give both to the pipeline, as S1* and S2*."
        )
    for name in ("reference_latents", "vision_states"):
        one, two = getattr(first, name), getattr(other, name)
        if (one.shape[1:], one.dtype, one.device) != (two.shape[1:], two.dtype, two.device):
            raise SubjectError(f"Subjects whose {name} differ in shape, type or device cannot be combined: see .to().")


def _other_base(subject: Subject, pipe: Any, names: Sequence[str]) -> str:
    message = (
        f"This subject was made with {_what_differs(subject, pipe, names)}: the weights of {', '.join(names)} differ. "
        "Load what it was made with, or customise again from the images."
    )
    if any(getattr(getattr(pipe, name, None), "dtype", None) == torch.bfloat16 for name in names):
        message += " A subject of an earlier version does not know a bfloat16 copy: load it as float32 or float16."
    return message


def _what_differs(subject: Subject, pipe: Any, names: Sequence[str]) -> str:
    if not set(names) - _ENCODER_PARTS:
        return "another encoder than this pipeline's (promptnet=..., image_encoder=...)"
    here = base_name(pipe)
    made_with = f" ({subject.base})" if subject.base else ""
    return f"another base model{made_with} than this one{f' ({here})' if here else ''}"


def base_name(pipe: Any) -> str:
    """What the pipeline was loaded from, without the folders above it."""
    name = str(getattr(pipe, "name_or_path", "") or "")
    return Path(name).name if os.path.isabs(name) else name


_KEY = "promptnet.subject"


KIND = FileKind(
    key=_KEY,
    version=FORMAT_VERSION,
    max_bytes=256 * 1024 * 1024,
    error=SubjectError,
    title="Subject file",
    noun="a subject",
    maker="promptnet customize",
    again="customise again",
)


def save_subject(subject: Subject, path: Path) -> None:
    """See `Subject.save`."""
    KIND.save(path, subject.texts(), subject.tensors())


def load_subject(path: Path) -> Subject:
    """See `Subject.load`."""
    return KIND.load(path, _assembled)


def _assembled(texts: Texts, tensors: Tensors) -> Subject:
    own = {name: tensors.pop(name) for name in ("reference_latents", "vision_states", "weights")}
    words = tensors.pop("words", None)
    return Subject(**own, **texts, loras=_paired(tensors), words=words)


def _paired(tensors: dict[str, Tensor]) -> dict[str, LoRALayer]:
    """The LoRA layers of deltas.<name>.down and deltas.<name>.up, each with its other half and nothing else."""
    loras = {}
    for key in [key for key in tensors if key.startswith("deltas.") and key.endswith(".down")]:
        name = key.removeprefix("deltas.").removesuffix(".down")
        loras[name] = LoRALayer(A=tensors.pop(key), B=tensors.pop(f"deltas.{name}.up"))
    if tensors:
        raise SubjectError(f"it has tensors that do not belong to a subject: {', '.join(sorted(tensors))}.")
    return loras
