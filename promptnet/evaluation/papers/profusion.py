"""ProFusion's table: every row customises every person, draws the prompts, and is scored by CLIP and face embedders."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.harness.renderer import OURS, encoder_folder, generator, image_size
from promptnet.evaluation.papers.base_models import Latest, check_folder, check_network, hash_of, load_pipe
from promptnet.evaluation.papers.config import ConfigError, ProFusionConfig
from promptnet.evaluation.papers.image_store import ImageStore, Job, key_of
from promptnet.evaluation.papers.inputs import Reference, check_subject_prompts, find_people, read_prompts
from promptnet.evaluation.papers.profusion_rows import Row, baseline_config, make_rows
from promptnet.evaluation.papers.profusion_score import score_rows, table
from promptnet.evaluation.papers.scorers import check_scorers
from promptnet.images.contact_sheet import contact_sheet

SHOWN = 8


class ProFusion:
    """The table of a config.

    Raises:
        ValueError: something in the config cannot be; nothing was made yet.
    """

    def __init__(self, config: ProFusionConfig, device: str) -> None:
        self.config, self.device, self.out = config, device, Path(config.out)
        self.base = check_folder(config.base)
        self.rows = {row.name: row for row in make_rows(config)}
        self.prompts = read_prompts(config.prompts)
        check_subject_prompts(self.prompts)
        self._check_networks()
        check_scorers(config, self.base)
        self.people = find_people(config.references, image_size(self.base), config.seed)[: config.limit]
        self._pipes, self._subjects = Latest(1), Latest(1)

    def _check_networks(self) -> None:
        config, methods = self.config, {row.method for row in self.rows.values()}
        check_network("promptnet", config.promptnet)
        check_network("image_encoder", config.image_encoder)
        if "promptnet" in methods and config.promptnet is None:
            encoder_folder(self.base, OURS)
        needs_eyes = methods & {"promptnet", "e4t"}
        if needs_eyes and config.image_encoder is None and not (self.base / "image_encoder" / "config.json").is_file():
            raise ConfigError(
                f"rows of {', '.join(sorted(needs_eyes))} need image_encoder, a CLIP image encoder's folder"
            )
        if "e4t" in methods and (config.e4t is None or not Path(config.e4t).is_dir()):
            raise ConfigError(f"row e4t needs e4t, the folder of promptnet pretrain-e4t, and got {config.e4t!r}")

    @cached_property
    def _weights(self) -> dict[str, Any]:
        """Return hashes of the weights that decide images."""
        own = {name: self.base / name for name in ("promptnet", "image_encoder")}
        given = {name: getattr(self.config, name) or own[name] for name in own}
        return {"base": hash_of(self.base), "e4t": hash_of(self.config.e4t)} | {n: hash_of(f) for n, f in given.items()}

    def _decides(self, row: Row, person: Reference) -> dict[str, Any]:
        """Return all that decides a row's subject of a person."""
        needed = {"prompt-only": (), "promptnet": ("promptnet", "image_encoder"), "e4t": ("e4t", "image_encoder")}
        weights = {name: self._weights[name] for name in ("base", *needed.get(row.method, ()))}
        found = {"weights": weights, "method": row.method, "tuning": row.tuning, "dtype": self.config.dtype}
        if row.method == "prompt-only":
            return found
        words = [self.config.class_word, self.config.phrase]
        return found | {"person": person.digest, "words": words, "seed": self.config.seed}

    def jobs(self) -> list[Job]:
        """Return every row of every person."""
        return [self._job(row, unit) for unit in range(len(self.people)) for row in self.rows.values()]

    def _job(self, row: Row, unit: int) -> Job:
        fixed = self._decides(row, self.people[unit]) | {"sampling": dict(row.sampling), "steps": self.config.steps}
        names = [key_of({**fixed, "prompt": prompt, "seed": seed}) for prompt, seed in self._images(unit)]
        return Job(row.name, unit, tuple(names))

    def _images(self, unit: int) -> list[tuple[str, int]]:
        """Return prompt and seed of each image of a person."""
        count = self.config.images_per_prompt
        prompts = [prompt for prompt in self.prompts for _ in range(count)]
        first = (self.config.seed * 1_000_003 + unit) * len(prompts)
        return [(prompt, first + place) for place, prompt in enumerate(prompts)]

    def prepare(self, shard: Any) -> None:
        """Prepare nothing: subjects are made with their images."""

    def make(self, job: Job, places: Sequence[int], store: ImageStore) -> None:
        """Draw and store some images of a job."""
        row, person = self.rows[job.row], self.people[job.unit]
        pipe, extra, speak = self._drawing(row, person)
        wanted = [self._images(job.unit)[place] for place in places]
        for start in range(0, len(wanted), self.config.batch_size):
            part = wanted[start : start + self.config.batch_size]
            images = pipe(
                [speak(prompt) for prompt, _ in part],
                generator=[generator(seed) for _, seed in part],
                **{**row.sampling, "num_inference_steps": self.config.steps, **extra},
            ).images
            for place, image in zip(places[start:], images, strict=False):
                store.put(job.names[place], image)
        if row.method == "dreambooth":  # gigabytes a person
            self._pipes = Latest(1)
            shutil.rmtree(self._own_model(row, person), ignore_errors=True)

    def _drawing(self, row: Row, person: Reference) -> tuple[Any, dict[str, Any], Any]:
        """Return a pipeline, what it is called with, and how S* is said."""
        phrase = self.config.phrase
        if row.method == "prompt-only":
            return self._pipe(), {}, lambda prompt: prompt.replace("S*", phrase)
        if row.method == "dreambooth":
            tuned: Any = baseline_config("dreambooth", self.config)
            name = f"{tuned.identifier} {self.config.class_word}"
            sampling = {"guidance_scale": self.config.guidance_scale}
            return self._dreambooth(row, person), sampling, lambda prompt: prompt.replace("S*", name)
        return self._pipe(), {"subject": self._subject(row, person), "class_word": phrase}, lambda prompt: prompt

    def _pipe(self) -> Any:
        config = self.config
        networks: dict[str, Any] = {"promptnet": config.promptnet, "image_encoder": config.image_encoder}
        return self._pipes.get("base", lambda: load_pipe(self.base, self.device, config.dtype, **networks))

    def _own_model(self, row: Row, person: Reference) -> Path:
        return self.out / "dreambooth" / key_of(self._decides(row, person))

    def _dreambooth(self, row: Row, person: Reference) -> Any:
        """Return the pipeline of a person's own base model, tuned unless its folder is there."""
        from promptnet.baselines import dreambooth_folder

        folder = self._own_model(row, person)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._pipes = Latest(1)  # two base models at once would be too much
            config: Any = baseline_config("dreambooth", self.config)
            how: dict[str, Any] = {"generator": generator(self.config.seed), "progress_bar": False}
            how["cache"] = self.out / "prior"
            pipe = load_pipe(self.base, self.device)  # tuning needs float32
            dreambooth_folder(pipe, person.load(), folder, self.config.class_word, config, **how)
        return self._pipes.get(str(folder), lambda: load_pipe(folder, self.device, self.config.dtype))

    def _subject(self, row: Row, person: Reference) -> Any:
        """Return a person's subject, made unless its file is there."""
        from promptnet import Subject

        path = self.out / "subjects" / f"{key_of(self._decides(row, person))}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._new_subject(row, person.load()).save(path)
        return self._subjects.get(path.name, lambda: Subject.load(path))

    def _new_subject(self, row: Row, images: list[Image.Image]) -> Any:
        from promptnet import baselines

        pipe, config = self._pipe(), self.config
        how: dict[str, Any] = {"generator": generator(config.seed), "progress_bar": False}
        if row.method == "promptnet":
            if row.tuning is None:
                return pipe.encode(images, class_word=config.phrase, allow_foreign=True)
            return pipe.customize(images, class_word=config.phrase, allow_foreign=True, **how, **row.tuning)
        given: Any = baseline_config(row.method, config)
        if row.method == "e4t":
            assert config.e4t is not None
            return baselines.e4t_subject(pipe, images, Path(config.e4t), given, **how)
        if row.method == "textual-inversion":
            return baselines.textual_inversion_subject(pipe, images, config.class_word, given, **how)
        return baselines.dreambooth_lora_subject(
            pipe, images, config.class_word, given, cache=self.out / "prior", **how
        )

    def score(self, store: ImageStore) -> dict[str, Any]:
        """Score all images."""
        texts = [prompt.replace("S*", self.config.phrase) for prompt, _ in self._images(0)]
        images = {
            row: [store.get(self._job(self.rows[row], unit)) for unit in range(len(self.people))] for row in self.rows
        }
        return score_rows(self.config, self.base, self.device, images, texts, [person.load() for person in self.people])

    def table(self, results: dict[str, Any]) -> str:
        """Return results as Markdown."""
        return table(results)

    def sheet(self, store: ImageStore) -> Image.Image:
        """Return the first prompt of some people, a line each."""
        size_px = image_size(self.base)
        lines = [
            (
                person.name,
                [person.load()[0], *(store.get(self._job(row, unit))[0] for row in self.rows.values())],
            )
            for unit, person in enumerate(self.people[:SHOWN])
        ]
        return contact_sheet(lines, ["reference", *self.rows], tile_px=min(size_px, 256))
