"""Generate a group of images with one method: from seeds, through inversion, or with subjects."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from promptnet.evaluation.edits.cards import DDIM
from promptnet.evaluation.edits.methods import EditMethod
from promptnet.evaluation.edits.tasks import NEUTRAL, NEUTRAL_SUBJECT, Group
from promptnet.evaluation.harness.renderer import generator, settle_process
from promptnet.evaluation.harness.workers import RendererSpec

if TYPE_CHECKING:
    from promptnet import PromptNetPipeline, Subject
    from promptnet.inference.editing.edit_image import InvertedImages


@dataclass(frozen=True)
class EditRendererSpec(RendererSpec):
    """What a process needs to build its own renderer of edits."""

    guidance_scale: float = 3.0
    """Guidance scale of unedited images."""
    scheduler: str = DDIM

    def build(self) -> "EditRenderer":
        """Build the renderer."""
        return EditRenderer(self)


class EditRenderer:
    """Generate groups; the inversions and subjects of the last group are cached, as all methods follow each other."""

    def __init__(self, spec: EditRendererSpec) -> None:
        self.spec = spec
        self._loaded: PromptNetPipeline | None = None
        self._of: Group | None = None
        self._inverted: InvertedImages | None = None
        self._subjects: list[Subject] = []

    def __call__(self, group: Group, edit_method: EditMethod) -> list[Image.Image]:
        """Generate one image for each of the group's prompts; the same group and method give the same images."""
        if group != self._of:
            self._of, self._inverted, self._subjects = group, None, []
        if edit_method.kind == "ledits":
            return self._baseline(group, edit_method)
        if group.source == "renders":
            return self._redrawn(group, edit_method)
        return self._generated(group, edit_method)

    def _generated(self, group: Group, edit_method: EditMethod) -> list[Image.Image]:
        import torch

        pipe, subjects = self._pipe(), group.source == "subjects"
        shape = (pipe.unet.config["in_channels"], *[pipe.unet.config["sample_size"]] * 2)
        noise = torch.stack(
            [torch.randn(shape, generator=generator(eval_prompt.seed)) for eval_prompt in group.eval_prompts]
        )
        config: dict[str, Any] = {"num_inference_steps": self.spec.steps, "latents": noise}
        config |= {"guidance_rescale": 0.0, "guidance_interval": (0.0, 1.0), "eta": 0.0}
        if subjects:  # the other parameters are the base model's own
            config |= {"subject": self._group_subjects(group)}
        else:
            config |= {"guidance_scale": self.spec.guidance_scale}
        prompt = NEUTRAL_SUBJECT if subjects else NEUTRAL
        generators = [generator(eval_prompt.seed + 1) for eval_prompt in group.eval_prompts]
        edits = [edit_method.card] if edit_method.card is not None else []
        (images,) = pipe(
            [prompt] * len(group.eval_prompts), edits=edits, generator=generators, return_dict=False, **config
        )
        return images

    def _redrawn(self, group: Group, edit_method: EditMethod) -> list[Image.Image]:
        import torch

        from promptnet.inference.editing.edit_image import redrawn
        from promptnet.inference.references import decode_latents

        if edit_method.card is None:
            return group.renders(self.spec.size_px)
        pipe = self._pipe()
        if self._inverted is None:
            self._inverted = self._inversion(group)
        edited = redrawn(pipe, self._inverted, [edit_method.card], correction_end=edit_method.correction_end)
        with torch.no_grad():
            images: Any = pipe.image_processor.postprocess(decode_latents(pipe.vae, edited), output_type="pil")
        return images

    def _inversion(self, group: Group) -> "InvertedImages":
        import torch

        from promptnet.inference.editing.edit_image import invert_images
        from promptnet.inference.references import encode_pixels
        from promptnet.inference.sampling.requests import make_requests
        from promptnet.metrics.judge import to_pixels

        pipe = self._pipe()
        with torch.no_grad():
            latents = encode_pixels(pipe.vae, to_pixels(group.renders(self.spec.size_px)).to(pipe.device))
        how: dict[str, Any] = {"num_steps": self.spec.steps, "guidance_scale": self.spec.guidance_scale}
        return invert_images(pipe, latents, make_requests([NEUTRAL] * len(group.eval_prompts), None), **how)

    def _baseline(self, group: Group, edit_method: EditMethod) -> list[Image.Image]:
        from promptnet.evaluation.edits.ledits import edited_by_ledits

        assert edit_method.edit is not None
        given = group.source == "renders"
        sources = group.renders(self.spec.size_px) if given else self._generated(group, EditMethod("", "original"))
        noise, prompts = generator(group.eval_prompts[0].seed), (NEUTRAL, edit_method.edit.styled)
        return edited_by_ledits(self._pipe(), sources, *prompts, self.spec.steps, noise, edit_method.guidance_scale)

    def _group_subjects(self, group: Group) -> "list[Subject]":
        if not self._subjects:
            pipe = self._pipe()
            for eval_prompt, image in zip(group.eval_prompts, group.renders(self.spec.size_px), strict=True):
                how: dict[str, Any] = {"generator": generator(eval_prompt.seed), "progress_bar": False}
                self._subjects.append(pipe.customize(image, class_word="a person", allow_foreign=True, **how))
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
