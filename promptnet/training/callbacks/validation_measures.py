"""Figures on the people that `ValidationImages` draws: is it them, is it what was asked, is it more than a copy?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from promptnet.metrics.clip_similarity import (
    ClipPrompts,
    fields_read_right,
    is_whole_clip,
    load_clip_prompts,
    shared_projections,
)
from promptnet.metrics.copying import copy_paste
from promptnet.metrics.identity import (
    FaceIdentity,
    IdentityScorer,
    JudgeIdentity,
    find_face_weights,
    load_face_embedder,
    load_validation_judge,
)
from promptnet.models.judge import AvatarJudge
from promptnet.training.callbacks.logs import check_after_averaging, log_scalars
from promptnet.training.callbacks.sampling import feature_extractor_of, undisturbed
from promptnet.training.callbacks.validation_images import GeneratedImage, ValidationImages


class ValidationMeasures(Callback):
    """Scores the drawn images. Needs `ValidationImages` beside it, in any order.

    Scalars, each a mean over the images:

    - `val/identity`: similarity of drawn image and reference in the scorer's identity space, 1 is the same person.
    - `val/copy_paste`: -1 the true answer, 1 the reference again (`measures.copying`), where the data has another
      image of the person.
    - `val/prompt_fields`: share of the asked attributes that the judge reads (avatars).
    - `val/prompt_clip`: CLIP similarity of image and prompt.

    Args:
        identity: "judge" for avatars, "face" for photographs, "none"; "auto" takes the judge where prompts ask for a
            avatar's fields, else the face embedder where its weights are at hand.
        judge: folder of the validation judge.
        face_weights: file of the face embedder's weights; None looks where facenet-pytorch keeps it.
        clip: folder or hub id of the whole CLIP that compares images and prompts; None takes the base model's own
            encoders, where they share a space (Stable Diffusion's do not), else the CLIP that the stage's `vision_id`
            names.
    """

    def __init__(
        self,
        identity: Literal["auto", "judge", "face", "none"] = "auto",
        judge: str = "checkpoints/judges/validation",
        face_weights: str | None = None,
        clip: str | None = None,
    ) -> None:
        self.identity, self.judge, self.face_weights, self.clip = identity, judge, face_weights, clip
        self._judge: AvatarJudge | None = None
        self._scorer: IdentityScorer | None = None
        self._prompts: ClipPrompts | None = None
        self._last_step = -1
        self._tried: dict[str, float] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the callback that draws, and what must be there before a long run begins.

        Raises:
            ValueError: `ValidationImages`, the judge's folder, the face embedder's weights or a CLIP are missing.
        """
        if stage != "fit":
            return
        check_after_averaging(trainer, self)
        eval_prompts = [
            eval_prompt for person in self._images(trainer).find_people(trainer) for eval_prompt in person.eval_prompts
        ]
        if self.identity == "judge" or (
            self.identity == "auto" and all(eval_prompt.asked for eval_prompt in eval_prompts)
        ):
            self._judge = load_validation_judge(self.judge)
            self._scorer = JudgeIdentity(self._judge)
        elif self.identity == "face":
            self._scorer = FaceIdentity(load_face_embedder(self.face_weights))
        elif self.identity == "auto":
            self._scorer = self._face_scorer()
        self._prompts = load_clip_prompts(self.clip) if self.clip else _clip_prompts(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score one image: what does not work is found now, not at the first validation."""
        self.tried(trainer, pl_module)

    def tried(self, trainer: Trainer, stage: Any) -> dict[str, float]:
        """The figures of one image that was drawn to try: which of them there will be, whatever they say."""
        if self._tried is None:
            self._tried = self._scored(stage, self._images(trainer).tried(trainer, stage))
        return self._tried

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score before the first batch, when the images are there or are drawn now."""
        images = self._images(trainer)
        if images.is_due(trainer) and batch_idx == dataloader_idx == 0:
            pl_module.log_dict(self._figures(trainer, pl_module, images), batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score what the run ends with, unless the last validation did."""
        if self._last_step != trainer.global_step:
            figures = self._figures(trainer, pl_module, self._images(trainer))
            if figures:
                log_scalars(trainer, figures)

    def _images(self, trainer: Trainer) -> ValidationImages:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found = [callback for callback in callbacks if isinstance(callback, ValidationImages)]
        if not found:
            raise ValueError("ValidationMeasures scores what ValidationImages draws: add it to trainer.callbacks")
        return found[0]

    def _figures(self, trainer: Trainer, stage: Any, images: ValidationImages) -> dict[str, float]:
        generated = images.generated(trainer, stage)
        if generated is not None:
            self._last_step = trainer.global_step
        return self._scored(stage, generated)

    def _scored(self, stage: Any, generated: GeneratedImage | None) -> dict[str, float]:
        if generated is None:
            return {}
        with undisturbed([*stage.frozen.values()]):
            if self._scorer is not None:
                self._scorer.to(stage.device)
            return {**self._identity_figures(generated), **self._prompt_figures(generated, stage.device)}

    def _face_scorer(self) -> FaceIdentity | None:
        if self.face_weights or find_face_weights():
            return FaceIdentity(load_face_embedder(self.face_weights))
        try:
            load_face_embedder()
        except ValueError as error:
            rank_zero_warn(f"identity similarity and copying are not measured in this run: {error}")
        return None

    def _identity_figures(self, generated: GeneratedImage) -> dict[str, float]:
        if self._scorer is None:
            return {}
        similarities, copies = [], []
        for person, images in zip(generated.people, generated.images, strict=True):
            who = self._scorer.identity([person.reference, *images])
            similarities += (who[1:] @ who[0]).tolist()
            others = [(other, one) for other, one in zip(person.compared(), images, strict=True) if other is not None]
            if others:
                rows = self._scorer.appearance([person.reference, *(image for pair in others for image in pair)])
                copies += copy_paste(rows[2::2], rows[:1].expand_as(rows[2::2]), rows[1::2]).tolist()
        known = torch.tensor(copies, dtype=torch.float64)
        known = known[~known.isnan()]
        figures = {"val/identity": sum(similarities) / len(similarities)}
        return {**figures, "val/copy_paste": float(known.mean())} if len(known) else figures

    def _prompt_figures(self, generated: GeneratedImage, device: torch.device) -> dict[str, float]:
        eval_prompts = [eval_prompt for person in generated.people for eval_prompt in person.eval_prompts]
        images = [image for row in generated.images for image in row]
        figures = {}
        if self._judge is not None and any(eval_prompt.asked for eval_prompt in eval_prompts):
            figures["val/prompt_fields"] = fields_read_right(
                self._judge, images, [eval_prompt.asked for eval_prompt in eval_prompts]
            )
        if self._prompts is not None:
            with self._prompts.on(device):
                similarity = self._prompts.similarity([eval_prompt.prompt for eval_prompt in eval_prompts], images)
            figures["val/prompt_clip"] = float(similarity.mean())
        return figures


def _clip_prompts(stage: Any) -> ClipPrompts | None:
    text_encoders = (stage.frozen["text_encoder"], stage.frozen["image_encoder"])
    projections = shared_projections(stage.hparams["base_dir"], *text_encoders)
    if projections is not None:
        return ClipPrompts(stage.tokenizer, *text_encoders, feature_extractor_of(stage), *projections)
    vision = stage.hparams.get("vision_id")
    if vision and is_whole_clip(vision):
        return load_clip_prompts(vision)
    rank_zero_warn(
        "val/prompt_clip is not measured: the base model's folder has no clip_projections.safetensors that joins "
        f"its text encoder and its image encoder in one space, and vision_id={vision} is no whole CLIP; name one with "
        "ValidationMeasures' clip"
    )
    return None
