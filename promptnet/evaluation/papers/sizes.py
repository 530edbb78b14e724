"""The tables of sizes (Attn-SF, ScaleCrafter): every model draws the prompts at its own size, and at others by rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from PIL import Image

from promptnet.evaluation.harness.renderer import generator
from promptnet.evaluation.papers.base_models import Latest, check_folder, hash_of, load_pipe, shape_of_unet
from promptnet.evaluation.papers.config import ConfigError, SizesConfig
from promptnet.evaluation.papers.image_store import ImageStore, Job, key_of
from promptnet.evaluation.papers.inputs import captions, check_images
from promptnet.evaluation.papers.scorers import check_features, check_scorers
from promptnet.evaluation.papers.sizes_score import Drawn, score_models, table
from promptnet.evaluation.resolution.methods import Shape, Size, ladder_settings
from promptnet.images.contact_sheet import contact_sheet
from promptnet.inference.resolution.plan import plan_size
from promptnet.inference.resolution.published_files import check_resolution, published_names
from promptnet.inference.resolution.settings import ResolutionSettings, load_settings

TRAINED = "trained"
SIDES = {
    "0.25x": (0.5, 0.5),
    "0.5x": (1, 0.5),
    "2x": (2, 1),
    "4x": (2, 2),
    "6.25x": (2.5, 2.5),
    "8x": (4, 2),
    "16x": (4, 4),
}
"""Scale to width and height over the trained side."""
SHOWN = 4
TILED_FROM = 4
"""Times the trained area, above which images are decoded in tiles, as `promptnet generate` does."""
_NOT_SETTINGS = ("direct", "auto", TRAINED)


class Sizes:
    """The table of a config.

    Raises:
        ValueError: something in the config cannot be; nothing was made yet.
    """

    def __init__(self, config: SizesConfig, device: str) -> None:
        self.config, self.device = config, device
        self.bases = {name: check_folder(model["base"]) for name, model in config.models.items()}
        self.shapes = {name: Shape.of(base) for name, base in self.bases.items()}
        self.prompts = captions(config.prompts, config.seed)[: config.limit]
        if isinstance(config.real, str):
            check_images("real", config.real)
        for base in self.bases.values():
            check_scorers(config, base)
            check_features(config.features, base)
        self.settings = {
            (model, scale, row): self._settings(model, scale, row)
            for model in self.bases
            for scale in config.scales
            for row in config.rows
        }
        self._check_layers()
        self._pipes = Latest(1)

    def _check_layers(self) -> None:
        """Check that all settings name layers of their networks, on shapes without weights.

        Raises:
            ValueError: some do not.
        """
        for model, base in self.bases.items():
            unet, trained_px = shape_of_unet(base), self.shapes[model].trained_px
            for (other, scale, _), settings in self.settings.items():
                if other != model or isinstance(settings, str):
                    continue
                size = self.size_of(model, scale)
                plan_size(
                    unet,
                    settings,
                    trained_size_px=(trained_px, trained_px),
                    size_px=(size.height, size.width),
                    num_inference_steps=self.config.steps,
                )

    def size_of(self, model: str, scale: str) -> Size:
        """Return the size of a model's images at a scale.

        Raises:
            ValueError: the model cannot draw it.
        """
        shape = self.shapes[model]
        width, height = (round(side * shape.trained_px) for side in SIDES.get(scale, (1, 1)))
        if width % shape.multiple_px or height % shape.multiple_px:
            raise ConfigError(
                f"scale {scale} of {model} is {width}x{height}, and sides must be multiples of {shape.multiple_px}: "
                "leave it out"
            )
        return Size(width, height)

    def _settings(self, model: str, scale: str, row: str) -> Any:
        """Return what a row gives the pipeline as resolution: a name, or settings as a mapping."""
        size = self.size_of(model, scale)
        if row in _NOT_SETTINGS:
            return "auto" if row == "auto" else "off"
        if row == "attn-sf":
            found = ResolutionSettings(num_steps=self.config.steps, attention=True)
        else:
            found = self._scalecrafter(model, scale, size)
        record = dataclasses.asdict(found)
        del record["name"]
        return record

    def _scalecrafter(self, model: str, scale: str, size: Size) -> ResolutionSettings:
        """Return ScaleCrafter's settings: the config's, or the published ones of that name.

        Raises:
            ValueError: there are none.
        """
        given = self.config.models[model].get("settings", {})
        source = given if isinstance(given, str) else given.get(scale)
        if source is None and f"{model}-{size.name}" in published_names():
            source = f"published:{model}-{size.name}"
        if source is None:
            raise ConfigError(
                f"row scalecrafter: there are no published settings {model}-{size.name}; models: {model} needs "
                f"settings: {{{scale}: published:NAME, a file or derived}}"
            )
        if source == "derived":
            return ladder_settings(size, self.shapes[model], self.config.steps)["redilation"]
        check_resolution(source)
        return load_settings(source)

    def jobs(self) -> list[Job]:
        """Return every size and row of every prompt, one model after the other."""
        units = range(len(self.prompts))
        return [self._job(row, unit) for model in self.bases for unit in units for row in self._rows(model)]

    def _rows(self, model: str) -> list[str]:
        return [
            f"{model}/{TRAINED}/{TRAINED}",
            *(f"{model}/{scale}/{row}" for scale in self.config.scales for row in self.config.rows),
        ]

    @cached_property
    def _hashes(self) -> dict[str, Any]:
        return {name: hash_of(base) for name, base in self.bases.items()}

    def _job(self, row: str, unit: int) -> Job:
        model, scale, _ = row.split("/")
        config, size = self.config, self.size_of(model, scale)
        decided = {"weights": self._hashes[model], "resolution": self._resolution(row), "size": size.name}
        decided |= {"prompt": self.prompts[unit], "seed": config.seed + unit, "steps": config.steps}
        decided |= {"guidance_scale": config.guidance_scale, "dtype": config.dtype}
        return Job(row, unit, (key_of(decided),))

    def _resolution(self, row: str) -> Any:
        model, scale, name = row.split("/")
        return "off" if scale == TRAINED else self.settings[model, scale, name]

    def prepare(self, shard: Any) -> None:
        """Prepare nothing."""

    def make(self, job: Job, places: Sequence[int], store: ImageStore) -> None:
        """Draw and store a job's image: one at a time, because large ones fill the memory."""
        model, scale, _ = job.row.split("/")
        size = self.size_of(model, scale)
        load = lambda: load_pipe(self.bases[model], self.device, self.config.dtype)  # noqa: E731
        pipe = self._pipes.get(model, load)
        if size.width * size.height > TILED_FROM * self.shapes[model].trained_px ** 2:
            pipe.vae.enable_tiling()
        else:
            pipe.vae.disable_tiling()
        images = pipe(
            self.prompts[job.unit],
            width=size.width,
            height=size.height,
            resolution=self._resolution(job.row),
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            generator=generator(self.config.seed + job.unit),
        ).images
        store.put(job.names[0], images[0])

    def score(self, store: ImageStore) -> dict[str, Any]:
        """Score all images."""

        def images(row: str) -> list[Image.Image]:
            return [store.get(self._job(row, unit))[0] for unit in range(len(self.prompts))]

        drawn = Drawn(self.config, self.device, self.bases, self.shapes, self.prompts)
        return score_models(drawn, images)

    def table(self, results: dict[str, Any]) -> str:
        """Return results as Markdown."""
        return table(results)

    def sheet(self, store: ImageStore) -> Image.Image:
        """Return the first prompts, a line each, of the first model at its first scale."""
        model = next(iter(self.bases))
        rows = self._rows(model)[: 1 + len(self.config.rows)]
        lines = [
            (self.prompts[unit], [store.get(self._job(row, unit))[0] for row in rows])
            for unit in range(min(SHOWN, len(self.prompts)))
        ]
        headings = [row.partition("/")[2] for row in rows]
        return contact_sheet(lines, headings, tile_px=min(2 * self.shapes[model].trained_px, 512))
