"""How the baselines are tuned unless a call says otherwise; the published values are in configs/baselines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from promptnet.inference.tuning.config import LoopConfig
from promptnet.inference.values import real, whole

Keep = Literal["best", "last"]
Layers = Literal["kv", "attention"]


@dataclass(frozen=True)
class BaselineConfig(LoopConfig):
    """What every baseline has beside `LoopConfig`; `learning_rate` is AdamW's own.

    Args:
        weight_decay: AdamW's.
        decay: whether the learning rate falls linearly to 0; published runs keep it.
        keep: "best" keeps what did best at held-out noise levels and stops by patience, "last" takes every step.
    """

    weight_decay: float = 1e-2
    decay: bool = True
    keep: Keep = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep={self.keep!r} must be best or last.")
        if real("weight_decay", self.weight_decay) < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must be at least 0.")


@dataclass(frozen=True)
class TextualInversionConfig(BaselineConfig):
    """Textual inversion, arXiv 2208.01618: one new word, or several, and nothing else.

    Args:
        initial_word: whose embedding the words start from; None is the class word.
        num_words: L.
    """

    steps: int = 300
    learning_rate: float = 5e-3
    initial_word: str | None = None
    num_words: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("num_words", self.num_words, 1)


@dataclass(frozen=True)
class PriorConfig(BaselineConfig):
    """What DreamBooth's two kinds share, arXiv 2208.12242.

    Args:
        identifier: the rare word before the class word; both stand where S* is written.
        prior_weight: lambda of the prior's term; 0 makes no prior images.
        prior_prompt: what the prior's images are drawn of; {class_word} is replaced.
        num_prior_images: how many.
        prior_batch_size: prior images in one step.
        prior_steps: denoising steps of each.
        prior_guidance: their guidance scale.
    """

    identifier: str = "sks"
    prior_weight: float = 1.0
    prior_prompt: str = "a photo of a {class_word}"
    num_prior_images: int = 50
    prior_batch_size: int = 1
    prior_steps: int = 50
    prior_guidance: float = 7.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if real("prior_weight", self.prior_weight) < 0:
            raise ValueError(f"prior_weight={self.prior_weight} must be at least 0.")
        for name in ("num_prior_images", "prior_batch_size", "prior_steps"):
            whole(name, getattr(self, name), 1)
        if "S*" in self.prior_prompt:
            raise ValueError(f"prior_prompt={self.prior_prompt!r} must not hold S*: it is of the class alone.")


@dataclass(frozen=True)
class DreamBoothLoRAConfig(PriorConfig):
    """DreamBooth with low-rank layers in place of the whole U-Net.

    Args:
        rank: of the LoRA layers.
        layers: "kv", the cross-attention keys and values; or "attention", every projection of every attention.
    """

    steps: int = 300
    learning_rate: float = 1e-3
    rank: int = 4
    layers: Layers = "kv"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("rank", self.rank, 1)
        check_layers(self.layers)


@dataclass(frozen=True)
class DreamBoothConfig(PriorConfig):
    """DreamBooth of the whole U-Net."""

    steps: int = 400
    learning_rate: float = 5e-6
    decay: bool = False
    keep: Keep = "last"


@dataclass(frozen=True)
class E4TConfig(BaselineConfig):
    """Tuning of E4T on one person, arXiv 2302.12228, section 4.3.

    Args:
        regularization: lambda of the squared length of the encoder's offset from the class word.
        rank: at most this of each layer's offset is kept in the subject; 0 keeps all of it.
        num_levels: noise levels over which the subject's word is the mean of the encoder's.
    """

    steps: int = 15
    learning_rate: float = 5e-6
    batch_size: int = 16
    decay: bool = False
    keep: Keep = "last"
    regularization: float = 0.1
    rank: int = 0
    num_levels: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("rank", self.rank, 0)
        whole("num_levels", self.num_levels, 1)
        if real("regularization", self.regularization) < 0:
            raise ValueError(f"regularization={self.regularization} must be at least 0.")


CONFIGS: dict[str, type[BaselineConfig]] = {
    "textual-inversion": TextualInversionConfig,
    "dreambooth-lora": DreamBoothLoRAConfig,
    "dreambooth": DreamBoothConfig,
    "e4t": E4TConfig,
}


def check_layers(layers: str) -> None:
    """Refuse a group of layers that there is not.

    Raises:
        ValueError: names those that there are.
    """
    if layers not in get_args(Layers):
        raise ValueError(f"layers={layers!r} must be one of {', '.join(get_args(Layers))}.")


def load_config(method: str, path: Path | None = None, **given: Any) -> BaselineConfig:
    """Return a method's config: its defaults, then a YAML file's values, then those given that are not None.

    Args:
        method: a key of `CONFIGS`.
        path: of a file such as configs/baselines/textual-inversion.yaml.
        given: values by name.

    Raises:
        ValueError: there is no such method, the file cannot be read, or a value does not exist or is out of range.
    """
    if method not in CONFIGS:
        raise ValueError(f"method={method!r} must be one of {', '.join(CONFIGS)}.")
    config = CONFIGS[method]()
    return config.replaced({} if path is None else _read(path)).replaced(given)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The config '{path}' cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"The config '{path}' must hold names and values, such as steps: 100.")
    return found
