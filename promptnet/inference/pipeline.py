"""PromptNetPipeline: a diffusers pipeline whose prompts may hold subjects.

This file connects: what a call asks for becomes requests (sampling/requests.py), requests become rules
(sampling/rules.py), and the one loop (sampling/loop.py) generates. Loading, subjects and state are in mixins/.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput, StableDiffusionMixin
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
)

from promptnet.images.crop import fitted
from promptnet.inference.editing.card import EditCard, listed_cards
from promptnet.inference.editing.measured import SEEDS, SUBJECTS, warn_of_losses
from promptnet.inference.editing.rule import check_request_lengths, learned_config, mixing_rule
from promptnet.inference.mixins.adapters import AdaptersMixin
from promptnet.inference.mixins.compiling import CompilingMixin
from promptnet.inference.mixins.loading import LoadingMixin
from promptnet.inference.mixins.state import StateMixin
from promptnet.inference.mixins.subjects import SubjectsMixin
from promptnet.inference.references import check_finite, decode_finite
from promptnet.inference.resolution.plan import Resolution, plan_size
from promptnet.inference.sampling.arguments import (
    check_base_model,
    check_output_type,
    check_text_encoders,
    check_text_layer,
    check_tokenizer,
    check_vision,
    check_words,
    chosen_size_px,
    kwargs_of_step,
    starting_noise,
    tensors_for_callback,
)
from promptnet.inference.sampling.conditions import networks_of
from promptnet.inference.sampling.config import SamplingConfig
from promptnet.inference.sampling.given_states import GivenStates, check_given, check_rows, given_states
from promptnet.inference.sampling.loop import sample
from promptnet.inference.sampling.own_call import OwnCall, own_call
from promptnet.inference.sampling.regions import Region
from promptnet.inference.sampling.requests import (
    SubjectsOfPrompt,
    make_requests,
    moved,
)
from promptnet.inference.sampling.rules import Generators, build_rules
from promptnet.inference.sampling.schedule import Step, from_timestep, plan, prediction_type
from promptnet.inference.tuning.config import TuningConfig
from promptnet.inference.values import generators, refuse_unknown
from promptnet.io.renamed import renamed_arguments
from promptnet.models.promptnet import PromptNetModel
from promptnet.models.text_encoders import text_encoders_of

StepCallback = Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any] | None]


class PromptNetPipeline(
    LoadingMixin, AdaptersMixin, CompilingMixin, SubjectsMixin, StateMixin, DiffusionPipeline, StableDiffusionMixin
):
    """Draws prompts, with one person or several in them as `S*`.

    Made of a Stable Diffusion base model (1, 2 or XL) and, for subjects, of PromptNet and the image encoder it was
    trained with. Without those three, prompts of plain words work as in diffusers' own pipelines.

    Args:
        vae: the base model's autoencoder.
        text_encoder: its CLIP text encoder.
        tokenizer: and that encoder's tokenizer.
        unet: its U-Net.
        scheduler: a diffusers scheduler; Fusion Sampling needs DDIM, Euler, DPM-Solver++ or UniPC.
        promptnet: the image-to-word encoder.
        image_encoder: the CLIP image encoder whose states PromptNet reads.
        feature_extractor: that encoder's preprocessing.
        sampling: parameters of `SamplingConfig` that were measured for this checkpoint; kept in the pipeline's config.
        tuning: the same for `customize`, parameters of `TuningConfig`.
        text_encoder_2: SDXL's second text encoder, with a projection; None for base models with one.
        tokenizer_2: that encoder's tokenizer.
        force_zeros_for_empty_prompt: whether SDXL's U-Net gets zeros for a negative prompt that is not given; kept in
            the pipeline's config. Base models with one text encoder get an empty prompt in any case.
        text_layer: which states of the one text encoder the U-Net reads, behind the final norm; kept in the pipeline's
            config. None is "last", which a complete encoder of Stable Diffusion 2 is refused with: it, as in the
            published pipeline of ProFusion, is read at "penultimate".

    Raises:
        ValueError: the parts are not those of a base model that this pipeline draws with (SDXL's refiner, inpainting,
            upscaling), a part is missing, the encoder makes words for other text encoders, or a parameter does not
            exist.
    """

    # PromptNet and the text encoders are called at every step, between calls of the U-Net: they stay where they are.
    model_cpu_offload_seq = "image_encoder->unet->vae"
    # diffusers' convention. The first text encoder is among them for SDXL's refiner to be refused by name.
    _optional_components = [  # noqa: RUF012
        *("promptnet", "image_encoder", "feature_extractor"),
        *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ]
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Any
    promptnet: PromptNetModel | None
    image_encoder: CLIPVisionModel | None
    feature_extractor: CLIPImageProcessor | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer_2: CLIPTokenizer | None

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Any,
        promptnet: PromptNetModel | None = None,
        image_encoder: CLIPVisionModel | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        sampling: Mapping[str, Any] | None = None,
        tuning: Mapping[str, Any] | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = True,
        text_layer: str | None = None,
    ) -> None:
        super().__init__()
        check_base_model(unet.config, vae.config)
        text_encoders = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        check_text_encoders(
            unet.config, {**text_encoders, "text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2}
        )
        SamplingConfig().replaced(sampling or {})
        TuningConfig().replaced(tuning or {})
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            promptnet=promptnet,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        if text_layer is not None:
            self.register_to_config(text_layer=text_layer)
        check_text_layer(text_layer, [encoder.network.config for encoder in text_encoders_of(self).text_encoders])
        for encoder in text_encoders_of(self).text_encoders:
            check_tokenizer(encoder.tokenizer, encoder.network.config)
        if promptnet is not None:
            check_words(promptnet.config["prompt_channel"], text_encoders_of(self))
            check_vision(promptnet.config, getattr(image_encoder, "config", None), vae.config)
        self.register_to_config(sampling=dict(sampling or {}), tuning=dict(tuning or {}))
        if text_encoder_2 is not None:
            self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._num_timesteps = 0

    @renamed_arguments(fusion_until="fusion_end")
    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] = "",
        *,
        subject: SubjectsOfPrompt | Sequence[SubjectsOfPrompt] = None,
        regions: str | Sequence[Region] | None = None,
        edits: EditCard | Sequence[EditCard] = (),
        negative_prompt: str | list[str] | None = None,
        class_word: str | None = None,
        height: int | None = None,
        width: int | None = None,
        resolution: Resolution = "auto",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float | None = None,
        subject_scale: float | None = None,
        class_scale: float | None = None,
        fusion_steps: int | None = None,
        fusion_scale: float | None = None,
        fusion_eta: float | None = None,
        fusion_end: float | None = None,
        pseudo_word_scale: float | None = None,
        pseudo_word_every: int | None = None,
        word_positions: str | None = None,
        encoder_input: str | None = None,
        reference_weights: str | None = None,
        eta: float | None = None,
        start_timestep: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        **unknown: Any,
    ) -> Any:
        """Draw images.

        Parameters that are left at None are those of `sampling_defaults`; their ranges are in `SamplingConfig`, and
        `promptnet.inference.PUBLISHED` holds the paper's.

        Args:
            prompt: what to draw, one text or several. "" draws anything.
            subject: who `S*` is: one subject, in every prompt. With one prompt, a list is `S1*`, `S2*`, ...; with a
                list of prompts, a list has an entry for each: a subject, a list of subjects, or None.
            regions: where each of several subjects is, so that they do not blend: "halves" for columns from left to
                right, or for each subject a box (left, top, right, bottom) in fractions of the image, or a mask, an
                image or (H, W) in [0, 1]. None has all of them everywhere.
            edits: mixing weights of one edit or several, acting on every prompt; number of steps and guidance scale
                are theirs unless given, guidance_rescale and eta 0, and all steps are guided.
            negative_prompt: what to move away from, one for all or one for each prompt. None is an empty text, and
                zeros where SDXL's `force_zeros_for_empty_prompt` is on, as in diffusers.
            class_word: what stands in place of `S*` in the reference prompt; default the subject's own.
            height: in pixels, default as trained.
            width: in pixels, default as trained.
            resolution: "auto" adapts the U-Net where the size is far from the trained one, "off" never; or settings, as
                in `promptnet.inference.resolution.load_settings`. PromptNet itself stays plain, at its trained size.
                "auto" may draw at another size and resize the image: much smaller ones, and with base models of few
                latents all others. With `latents` or output_type="latent" it draws at the size asked. SDXL's U-Net is
                always told the size that it draws, as original and as target size, and that nothing is cropped: the
                numbers describe what leaves the network, and of a smaller image than it draws it would make one that
                looks enlarged. To be asked for another size than drawn does not change that.
            num_inference_steps: denoising steps.
            guidance_scale: w, for prompts without a subject.
            guidance_interval: (start, end), the share of the steps, from the noisiest on, that are guided.
            guidance_rescale: how far guidance is kept from raising the contrast.
            subject_scale: w_s, weight of the prediction under S*.
            class_scale: w_c, weight of the prediction under the class word.
            fusion_steps: m, fusion iterations before each step.
            fusion_scale: w_f, guidance in the fusion stage.
            fusion_eta: how much noise a fusion iteration exchanges.
            fusion_end: the share of the steps, from the noisiest on, that are fused.
            pseudo_word_scale: gamma, how strongly the subject speaks in the fusion stage.
            pseudo_word_every: for how many steps S* is made at once.
            word_positions: position embeddings of pseudo-words.
            encoder_input: what PromptNet sees of an image drawn at another size.
            reference_weights: what several reference images weigh.
            eta: noise of DDIM's own steps.
            start_timestep: the noisiest timestep that is executed.
            num_images_per_prompt: images of one prompt follow each other.
            generator: one for all, or one for each image; an image with its own generator does not depend on the
                others in the batch. The fusion's noise is drawn from it too.
            latents: (B, 4, H, W) to start from, standard normal, in place of the generator's.
            prompt_embeds: (B, T, D), states of prompts in place of their texts, for prompts without a subject or edits.
            negative_prompt_embeds: (B, T, D), the same of negative prompts; beside a subject, too.
            pooled_prompt_embeds: (B, P), SDXL's pooled states beside `prompt_embeds`.
            negative_pooled_prompt_embeds: (B, P), the same of negative prompts.
            clip_skip: how many layers before their usual one the text encoders are read; as in diffusers, not for
                negative prompts.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: if false, a tuple (images,).
            callback_on_step_end: (pipe, index, timestep, {"latents": ...}) -> the same dict, as in diffusers. The
                call's timesteps are in a copy of the scheduler, so that calls in other threads do not meet them.
            callback_on_step_end_tensor_inputs: names for that dict; only "latents".

        Returns:
            `ImagePipelineOutput`, whose `.images` is a list of images, an array (B, H, W, 3) in [0, 1], a tensor
            (B, 3, H, W) in [0, 1], or latents (B, 4, h, w); or a tuple (images,).

        Raises:
            ValueError: an argument is out of range, prompts and subjects do not match, a subject was made for another
                base model, or the scheduler is not supported. Nothing is drawn then. Or an image turned out to hold
                values that are not finite.
            TypeError: there is no such argument.
        """
        refuse_unknown("PromptNetPipeline", unknown, signature(type(self).__call__).parameters)
        cards = listed_cards(edits)
        config = self.sampling_defaults.replaced(learned_config(cards)).replaced(
            {
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
                "guidance_rescale": guidance_rescale,
                "subject_scale": subject_scale,
                "class_scale": class_scale,
                "fusion_steps": fusion_steps,
                "fusion_scale": fusion_scale,
                "fusion_eta": fusion_eta,
                "fusion_end": fusion_end,
                "pseudo_word_scale": pseudo_word_scale,
                "pseudo_word_every": pseudo_word_every,
                "word_positions": word_positions,
                "encoder_input": encoder_input,
                "reference_weights": reference_weights,
                "eta": eta,
                "start_timestep": start_timestep,
            }
        )
        check_output_type(output_type)
        names = tensors_for_callback(
            callback_on_step_end, callback_on_step_end_tensor_inputs, known=self._callback_tensor_inputs
        )
        size_px = chosen_size_px((height, width), self.trained_size_px, self.size_multiple_px)
        given = self._given_states(
            prompt=prompt_embeds,
            negative=negative_prompt_embeds,
            pooled=pooled_prompt_embeds,
            negative_pooled=negative_pooled_prompt_embeds,
        )
        check_given(given, prompt, negative_prompt, subject, cards)
        if given.prompt is not None:
            prompt = [""] * len(given.prompt.hidden)
        rows = make_requests(prompt, subject, negative_prompt, class_word, num_images_per_prompt, regions)
        generator = generators(generator, len(rows))
        given = given.repeated(num_images_per_prompt)
        check_rows(given, rows)
        encoder_hash = self._check_rows(rows, config)
        for card in cards:
            card.check(self, config.num_inference_steps)
        warn_of_losses(cards, SEEDS if subject is None else SUBJECTS)
        step_kwargs = kwargs_of_step(self.scheduler, eta=config.eta, generator=generator)

        device = self._execution_device
        networks = replace(networks_of(self, clip_skip), encoder_hash=encoder_hash)
        if cards:
            check_request_lengths(rows, networks)
        sizing = plan_size(
            self.unet,
            resolution,
            trained_size_px=self.trained_size_px,
            size_px=size_px,
            num_inference_steps=config.num_inference_steps,
            multiple_px=None if latents is not None or output_type == "latent" else self.size_multiple_px,
        )
        height, width = (side // self.vae_scale_factor for side in sizing.sampled_px)
        shape = (len(rows), self.unet.config["in_channels"], height, width)
        x = starting_noise(shape, generator, latents, device, self.unet.dtype)
        with own_call(self) as call:
            call.scheduler.set_timesteps(config.num_inference_steps, device=device)
            steps = from_timestep(plan(call.scheduler), config.start_timestep, call.scheduler)
            self._num_timesteps = call.num_timesteps = len(steps)
            rules = build_rules(
                moved(rows, device),
                config,
                networks,
                prediction=prediction_type(self.scheduler),
                generator=generator,
                given=given,
                timesteps=[step.timestep for step in steps],
                latent_size=(height, width),
            )
            if cards:
                rules.append(mixing_rule(cards, networks))
            rules += sizing.rules
            progress_bar: Any = self.progress_bar
            with self._compiled_calls(), progress_bar(total=len(steps)) as bar:

                def on_step_end(x: Tensor, step: Step) -> Tensor:
                    bar.update()
                    return self._call_back(callback_on_step_end, names, x, step)

                x = sample(
                    self.unet,
                    call.scheduler,
                    x * call.scheduler.init_noise_sigma,
                    rules,
                    steps=_until_interrupted(call, steps),
                    step_kwargs=step_kwargs,
                    on_step_end=on_step_end,
                )
        images = self._finish(x, output_type, size_px)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _given_states(self, **tensors: Tensor | None) -> GivenStates:
        pooled_width = None if self.text_encoder_2 is None else self.text_encoder_2.config.projection_dim
        return given_states(text_encoders_of(self).width, pooled_width, **tensors)

    def _call_back(self, callback: StepCallback | None, names: Sequence[str], x: Tensor, step: Step) -> Tensor:
        if callback is None:
            return x
        given = callback(self, step.index, step.timestep, dict.fromkeys(names, x))
        return (given or {}).get("latents", x)

    def _finish(self, latents: Tensor, output_type: str, size_px: tuple[int, int]) -> Any:
        """Latents as the images that were asked for."""
        if output_type == "latent":
            check_finite(latents)
            return latents
        pixels = fitted(decode_finite(self.vae, latents), size_px)
        return self.image_processor.postprocess(pixels, output_type=output_type)


def _until_interrupted(call: OwnCall, steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        if call.interrupted:
            return
        yield step
