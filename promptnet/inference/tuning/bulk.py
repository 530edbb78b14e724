"""Many subjects, one after another, in a process of its own: what a worker of `promptnet batch` does.

Each row has a generator of its own from the one seed, so a row's subject does not depend on who else is in the table,
nor on which process made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from promptnet.images.load import open_image


@dataclass(frozen=True)
class BulkConfig:
    """What all rows have in common.

    Args:
        base: folder or Hub id of the base model.
        device: of the networks, such as "cpu" or "cuda".
        steps: tuning steps; 0 encodes only, None is the pipeline's default.
        seed: of every row.
        num_threads: of torch; 0 leaves it to torch. Sums of several threads may round differently.
        allow_foreign: whether to take images that the encoder does not know.
    """

    base: str
    device: str = "cpu"
    steps: int | None = None
    seed: int = 0
    num_threads: int = 0
    allow_foreign: bool = False


class BulkCustomizer:
    """A pipeline that makes the subject files of a table's rows.

    Args:
        config: of all rows.
    """

    def __init__(self, config: BulkConfig) -> None:
        from promptnet.inference.pipeline import PromptNetPipeline

        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        self.pipe: Any = PromptNetPipeline.from_pretrained(config.base, use_safetensors=True).to(config.device)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """Make the subjects of some rows.

        Args:
            rows: columns "image", "class_word" and "out", each with as many entries.

        Returns:
            Columns "out" and "error", which is empty for what went well: one bad image does not end the others.
        """
        outs = [str(out) for out in rows["out"]]
        each = zip(rows["image"], rows["class_word"], outs, strict=True)
        return {"out": outs, "error": [self._error(Path(image), str(word), Path(out)) for image, word, out in each]}

    def _error(self, image: Path, class_word: str, out: Path) -> str:
        try:
            self.make(image, class_word, out)
        except (ValueError, OSError) as error:
            return str(error) or type(error).__name__
        return ""

    def make(self, image: Path, class_word: str, out: Path) -> None:
        """Make one subject file."""
        subject = self.pipe.customize(
            [open_image(image)],
            class_word=class_word,
            steps=self.config.steps,
            allow_foreign=self.config.allow_foreign,
            generator=torch.Generator().manual_seed(self.config.seed),
            progress_bar=False,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        subject.save(out)
