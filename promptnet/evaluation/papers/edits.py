"""A comparison of edits (Wu et al., arXiv 2212.08698): learned mixing weights beside what needs no learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.edits.ledits import edited_by_ledits
from promptnet.evaluation.edits.methods import fixed_weights
from promptnet.evaluation.harness.renderer import generator, image_size
from promptnet.evaluation.method_names import LEARNED, LEDITS, SEGA
from promptnet.evaluation.papers.base_models import Latest, check_folder, hash_of, load_pipe
from promptnet.evaluation.papers.config import ConfigError, EditsConfig
from promptnet.evaluation.papers.edits_cards import card_path, card_record, check_teacher, learn_missing
from promptnet.evaluation.papers.edits_score import score_edits, table
from promptnet.evaluation.papers.image_store import ImageStore, Job, key_of
from promptnet.evaluation.papers.inputs import check_images, check_plain_prompts
from promptnet.evaluation.papers.scorers import check_scorers
from promptnet.evaluation.papers.sega import edited_by_sega
from promptnet.images.contact_sheet import contact_sheet
from promptnet.images.crop import square
from promptnet.images.load import open_image

ORIGINAL = "original"
SHOWN = 4


class Edits:
    """The table of a config.

    Raises:
        ValueError: something in the config cannot be; nothing was made yet.
    """

    def __init__(self, config: EditsConfig, device: str) -> None:
        self.config, self.device, self.out = config, device, Path(config.out)
        self.base = check_folder(config.base)
        self.edits: dict[str, Mapping[str, str]] = {edit["name"]: edit for edit in config.edits}
        check_plain_prompts([edit[side] for edit in config.edits for side in ("from", "to")])
        self._check_family()
        if LEARNED in config.rows:
            check_teacher(config, self.base)
        check_scorers(config, self.base)
        self.images = None if config.images is None else check_images("images", config.images)[: config.limit]
        self._pipes = Latest(1)

    def _check_family(self) -> None:
        if (self.base / "text_encoder_2").is_dir():
            for row in (LEARNED, SEGA):
                if row in self.config.rows:
                    raise ConfigError(
                        f"row {row}: there is none for base models with two text encoders (SDXL) yet: leave it out"
                    )

    @property
    def num_images(self) -> int:
        """Return how many images are edited."""
        if self.images is not None:
            return len(self.images)
        return min(self.config.seeds, self.config.limit or self.config.seeds)

    @cached_property
    def _hash(self) -> str | None:
        return hash_of(self.base)

    def jobs(self) -> list[Job]:
        """Return every row of every edit and image, the originals first."""
        return [self._job(row, unit) for unit in range(self.num_images) for row in self._rows()]

    def _rows(self) -> list[str]:
        """Return "edit/row" of all; images from seeds have an original for each edit's own neutral prompt."""
        return [f"{edit}/{row}" for edit in self.edits for row in (ORIGINAL, *self.config.rows)]

    def _job(self, row: str, unit: int) -> Job:
        edit, _, name = row.partition("/")
        config, given = self.config, self.edits[edit]
        decided: dict[str, Any] = {"weights": self._hash, "from": given["from"], "dtype": config.dtype}
        decided |= {"steps": config.steps, "guidance_scale": config.guidance_scale, "scheduler": config.scheduler}
        decided |= {"row": name, "source": self._source(unit)}
        if name != ORIGINAL:
            decided |= {"to": given["to"]}
        if name == SEGA:
            decided |= {"concept": given.get("concept")}
        if name == LEARNED:
            decided |= {"card": card_record(config, given, self._hash)}
        return Job(row, unit, (key_of(decided),))

    def _source(self, unit: int) -> Any:
        if self.images is None:
            return config_seed(self.config, unit)
        return key_of({"image": self.images[unit].read_bytes().hex()})

    def prepare(self, shard: Any) -> None:
        """Learn the cards that are missing; several processes share them."""
        if LEARNED in self.config.rows:
            learn_missing(self.config, list(self.edits.values()), self._hash, shard.index, self.device)

    def make(self, job: Job, places: Sequence[int], store: ImageStore) -> None:
        """Draw and store a job's image."""
        name = job.row.partition("/")[2]
        if self.images is not None:
            image = self._edited_image(job, name, square(open_image(self.images[job.unit]), image_size(self.base)))
        else:
            image = self._edited_seed(job, name, store)
        store.put(job.names[0], image)

    def _edited_image(self, job: Job, name: str, image: Image.Image) -> Image.Image:
        from promptnet.inference.editing.edit_image import edit_image

        if name == ORIGINAL:
            return image
        if name == LEDITS:
            return self._ledits(job, image)
        return edit_image(self._pipe(), image, self._card(job, name))[0]

    def _edited_seed(self, job: Job, name: str, store: ImageStore) -> Image.Image:
        given = self.edits[job.row.partition("/")[0]]
        if name == LEDITS:
            edit = job.row.partition("/")[0]
            return self._ledits(job, store.get(self._job(f"{edit}/{ORIGINAL}", job.unit))[0])
        seed, config = config_seed(self.config, job.unit), self.config
        if name == SEGA:
            concept = given.get("concept") or given["to"]
            how = {"num_steps": config.steps, "guidance_scale": config.guidance_scale}
            return edited_by_sega(self._pipe(), given["from"], concept, self._noise(seed), **how)
        edits = [] if name == ORIGINAL else [self._card(job, name)]
        return self._pipe()(
            given["from"],
            edits=edits,
            latents=self._noise(seed),
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            guidance_rescale=0.0,
            guidance_interval=(0.0, 1.0),
            eta=0.0,
        ).images[0]

    def _ledits(self, job: Job, image: Image.Image) -> Image.Image:
        given, noise = self.edits[job.row.partition("/")[0]], generator(config_seed(self.config, job.unit))
        prompts = (given["from"], given["to"])
        return edited_by_ledits(self._pipe(), [image], *prompts, self.config.steps, noise, self.config.guidance_scale)[
            0
        ]

    def _noise(self, seed: int) -> Any:
        import torch

        unet = self._pipe().unet
        shape = (1, unet.config["in_channels"], *[unet.config["sample_size"]] * 2)
        return torch.randn(shape, generator=generator(seed))

    def _card(self, job: Job, name: str) -> Any:
        from promptnet.inference.editing.card import EditCard, edit_fingerprint
        from promptnet.inference.editing.schedule_settings import schedule_settings

        given, pipe = self.edits[job.row.partition("/")[0]], self._pipe()
        if name == LEARNED:
            return EditCard.load(card_path(self.config, given, self._hash))
        return EditCard(
            fixed_weights(name, self.config.steps),
            given["from"],
            given["to"],
            type(pipe.scheduler).__name__,
            self.config.guidance_scale,
            edit_fingerprint(pipe),
            self.base.name,
            schedule_settings(pipe.scheduler),
        )

    def _pipe(self) -> Any:
        config = self.config
        return self._pipes.get("base", lambda: load_pipe(self.base, self.device, config.dtype, config.scheduler))

    def score(self, store: ImageStore) -> dict[str, Any]:
        """Score all images."""

        def images(row: str) -> list[Image.Image]:
            return [store.get(self._job(row, unit))[0] for unit in range(self.num_images)]

        return score_edits(self.config, self.base, self.device, images)

    def table(self, results: dict[str, Any]) -> str:
        """Return results as Markdown."""
        return table(results)

    def sheet(self, store: ImageStore) -> Image.Image:
        """Return the first images of each edit, a line each."""
        rows = (ORIGINAL, *self.config.rows)
        lines = [
            (edit, [store.get(self._job(f"{edit}/{row}", unit))[0] for row in rows])
            for edit in self.edits
            for unit in range(min(SHOWN, self.num_images))
        ]
        return contact_sheet(lines, rows, tile_px=min(image_size(self.base), 256))


def config_seed(config: EditsConfig, unit: int) -> int:
    """Return the seed of an image's noise; cards are learned on others."""
    return config.seed * 1_000_003 + unit
