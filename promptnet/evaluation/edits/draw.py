"""Drawing a group of pictures one way: from seeds, through inversion, or with subjects."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.edits.cards import DDIM
from promptnet.evaluation.edits.methods import Way
from promptnet.evaluation.edits.tasks import NEUTRAL, NEUTRAL_SUBJECT, Group
from promptnet.evaluation.harness.renderer import generator, settle_process
from promptnet.evaluation.harness.workers import StudioSpec

if TYPE_CHECKING:
    from promptnet import PromptNetPipeline, Subject
    from promptnet.inference.editing.edit_image import InvertedPictures


@dataclass(frozen=True)
class EditStudioSpec(StudioSpec):
    """What a process needs to build its own studio of edits."""

    guidance_scale: float = 3.0
    """Of unedited drawings."""
    scheduler: str = DDIM

    def build(self) -> "EditStudio":
        """The studio."""
        return EditStudio(self)


class EditStudio:
    """Draws groups; inversions and subjects of the last group are kept, as all ways come to a group in turn."""

    def __init__(self, spec: EditStudioSpec) -> None:
        self.spec = spec
        self._loaded: PromptNetPipeline | None = None
        self._of: Group | None = None
        self._inverted: InvertedPictures | None = None
        self._subjects: list[Subject] = []

    def __call__(self, group: Group, way: Way) -> list[Image.Image]:
        """One picture for each of the group's asks; the same group and way give the same pictures."""
        if group != self._of:
            self._of, self._inverted, self._subjects = group, None, []
        if way.kind == "ledits":
            return self._peer(group, way)
        if group.source == "renders":
            return self._redrawn(group, way)
        return self._drawn(group, way)

    def _drawn(self, group: Group, way: Way) -> list[Image.Image]:
        import torch

        pipe, subjects = self._pipe(), group.source == "subjects"
        shape = (pipe.unet.config["in_channels"], *[pipe.unet.config["sample_size"]] * 2)
        noise = torch.stack([torch.randn(shape, generator=generator(ask.seed)) for ask in group.asks])
        knobs: dict[str, Any] = {"num_inference_steps": self.spec.steps, "latents": noise}
        knobs |= {"guidance_rescale": 0.0, "eta": 0.0}
        if subjects:  # the other knobs are the base model's own
            knobs |= {"subject": self._group_subjects(group)}
        else:
            knobs |= {"guidance_scale": self.spec.guidance_scale}
        prompt = NEUTRAL_SUBJECT if subjects else NEUTRAL
        generators = [generator(ask.seed + 1) for ask in group.asks]
        edits = [way.card] if way.card is not None else []
        (pictures,) = pipe([prompt] * len(group.asks), edits=edits, generator=generators, return_dict=False, **knobs)
        return pictures

    def _redrawn(self, group: Group, way: Way) -> list[Image.Image]:
        import torch

        from promptnet.inference.editing.edit_image import redrawn
        from promptnet.inference.references import decode_latents

        if way.card is None:
            return self._renders(group)
        pipe = self._pipe()
        if self._inverted is None:
            self._inverted = self._inversion(group)
        edited = redrawn(pipe, self._inverted, [way.card], correct_until=way.correct_until)
        with torch.no_grad():
            pictures: Any = pipe.image_processor.postprocess(decode_latents(pipe.vae, edited), output_type="pil")
        return pictures

    def _inversion(self, group: Group) -> "InvertedPictures":
        import torch

        from promptnet.inference.editing.edit_image import invert_pictures
        from promptnet.inference.references import encode_pixels
        from promptnet.inference.sampling.requests import make_rows
        from promptnet.metrics.judge import to_pixels

        pipe = self._pipe()
        with torch.no_grad():
            latents = encode_pixels(pipe.vae, to_pixels(self._renders(group)).to(pipe.device))
        how: dict[str, Any] = {"num_steps": self.spec.steps, "guidance_scale": self.spec.guidance_scale}
        return invert_pictures(pipe, latents, make_rows([NEUTRAL] * len(group.asks), None), **how)

    def _peer(self, group: Group, way: Way) -> list[Image.Image]:
        from promptnet.evaluation.edits.ledits import edited_by_ledits

        assert way.edit is not None
        sources = self._renders(group) if group.source == "renders" else self._drawn(group, Way("", "original"))
        noise, prompts = generator(group.asks[0].seed), (NEUTRAL, way.edit.styled)
        return edited_by_ledits(self._pipe(), sources, *prompts, self.spec.steps, noise, way.guidance_scale)

    def _renders(self, group: Group) -> list[Image.Image]:
        return [portrait.render(self.spec.size_px) for portrait in group.portraits()]

    def _group_subjects(self, group: Group) -> "list[Subject]":
        if not self._subjects:
            pipe = self._pipe()
            for ask, picture in zip(group.asks, self._renders(group), strict=True):
                quiet: dict[str, Any] = {"generator": generator(ask.seed), "progress_bar": False}
                self._subjects.append(pipe.customize(picture, class_word="a person", **quiet))
        return self._subjects

    def _pipe(self) -> "PromptNetPipeline":
        if self._loaded is None:
            from promptnet import PromptNetPipeline
            from promptnet.inference.editing.inversion import make_scheduler

            if self.spec.threads is not None:
                settle_process(self.spec.threads)
            self._loaded = PromptNetPipeline.from_pretrained(Path(self.spec.base), use_safetensors=True)
            self._loaded = self._loaded.to(self.spec.device)
            if type(self._loaded.scheduler).__name__ != self.spec.scheduler:
                self._loaded.scheduler = make_scheduler(self.spec.scheduler, self._loaded.scheduler.config)
            self._loaded.set_progress_bar_config(disable=True)
        return self._loaded
