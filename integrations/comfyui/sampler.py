"""Draw with Fusion Sampling, in promptnet's own loop."""

from typing import Any

import torch
from comfy_api.latest import io

from . import images, running
from .links import CATEGORY, Edits, Pipeline, SamplingSettings, Subject

_LARGEST_SEED = 2**64 - 1


class Settings(io.ComfyNode):
    """The parameters of Fusion Sampling and of guidance; without this node those measured for the base model hold."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives; the values shown are those of a base model without any of its own."""
        scale = {"min": 0.0, "max": 30.0, "step": 0.1}
        return io.Schema(
            node_id="PromptNetSettings",
            display_name="PromptNet Sampling Settings",
            category=CATEGORY,
            inputs=[
                io.Float.Input("subject_scale", default=5.0, tooltip="Weight of the prediction under S*.", **scale),
                io.Float.Input("class_scale", default=0.0, tooltip="Weight under the class word.", **scale),
                io.Int.Input("fusion_steps", default=1, min=0, max=100, tooltip="Fusion iterations before each step."),
                io.Float.Input("fusion_scale", default=3.0, tooltip="Guidance in the fusion stage.", **scale),
                io.Float.Input(
                    "fusion_end", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="Share of the steps that are fused."
                ),
                io.Float.Input("guidance_rescale", default=0.0, min=0.0, max=1.0, step=0.05),
            ],
            outputs=[SamplingSettings.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, **values: float) -> io.NodeOutput:
        """Hand them on; the pipeline checks their ranges."""
        return io.NodeOutput(dict(values))


class FusionSampler(io.ComfyNode):
    """Images of a prompt with one person or two in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        size = {
            "default": 0,
            "min": 0,
            "max": 8192,
            "step": 8,
            "tooltip": "In pixels; 0: as the base model was trained.",
        }
        return io.Schema(
            node_id="PromptNetFusionSampler",
            display_name="PromptNet Fusion Sampler",
            category=CATEGORY,
            description="ProFusion's Fusion Sampling. Write S* where the person should appear; with two, S1* and S2*.",
            inputs=[
                Pipeline.Input("pipeline"),
                Subject.Input("subject"),
                io.String.Input("prompt", default="a photo of S*", multiline=True, dynamic_prompts=True),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True),
                io.Int.Input("seed", default=0, min=0, max=_LARGEST_SEED, control_after_generate=True),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the base model's own, or the edits'."),
                io.Int.Input("width", **size),
                io.Int.Input("height", **size),
                io.Int.Input("batch_size", default=1, min=1, max=64),
                Subject.Input("second_subject", optional=True),
                SamplingSettings.Input("settings", optional=True),
                Edits.Input("edits", optional=True),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        subject: Any,
        prompt: str,
        negative: str = "",
        seed: int = 0,
        steps: int = 0,
        width: int = 0,
        height: int = 0,
        batch_size: int = 1,
        second_subject: Any = None,
        settings: dict[str, float] | None = None,
        edits: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Draw; each image has a seed of its own, the first the one given."""
        progress = running.Progress()
        generators = [
            torch.Generator().manual_seed((seed + place) % (_LARGEST_SEED + 1)) for place in range(batch_size)
        ]

        def on_step(pipe: Any, *_: Any) -> None:
            progress(pipe.num_timesteps)

        with running.with_gradients(), running.on_device(pipeline):
            drawn = pipeline(
                prompt,
                subject=subject if second_subject is None else [subject, second_subject],
                negative_prompt=negative or None,
                num_inference_steps=steps or None,
                width=width or None,
                height=height or None,
                num_images_per_prompt=batch_size,
                generator=generators,
                edits=edits or (),
                output_type="pt",
                callback_on_step_end=on_step,
                **(settings or {}),
            ).images
        return io.NodeOutput(images.to_comfy(drawn))
