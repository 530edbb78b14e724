"""The parts of the GPU run, one function each: python benchmarks/gpu/parts.py NAME toy|true DEVICE FILE.

A part notes rows (what, value, unit) as it goes; the file is written after each, so that an end leaves those before.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from notes import Notes
from training import preemption, pretraining, sharding

__all__ = ["preemption", "pretraining", "sharding"]


def unit_tests(notes: Notes) -> None:
    """pytest -m gpu, in a process of its own."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    notes.add("pytest -m gpu", result.stdout.strip().rpartition("\n")[2].strip("= "))
    if result.returncode not in (0, 5):  # 5: all are deselected, where there is no GPU
        raise RuntimeError("tests failed, see the log")


def sampling(notes: Notes) -> None:
    """50 steps with one fusion iteration: the straightforward loop, ours, and ours with fewer evaluations."""
    from models import PROMPTS, make_pipeline, noise_image
    from sampling import PublishedLoop

    from promptnet.inference.sampling.config import SamplingConfig

    pipe = make_pipeline(notes.size, notes.device)
    subject = pipe.encode(noise_image())
    config = SamplingConfig(num_inference_steps=2 if notes.is_toy else 50, class_scale=2.0, word_positions="natural")
    fewer = {"DPMSolverMultistepScheduler": {"num_inference_steps": config.num_inference_steps // 2, "fusion_end": 0.3}}

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]

    def ours(**more: Any) -> Any:
        given = {"num_inference_steps": config.num_inference_steps, "class_scale": 2.0, "fusion_steps": 1, **more}
        return pipe(PROMPTS, subject=subject, generator=generators(), output_type="latent", **given).images

    published_s = notes.seconds(lambda: PublishedLoop(pipe, PROMPTS, subject, config)(generators()))
    ours_s = notes.seconds(ours)
    notes.add("straightforward loop, 4 images", published_s, "s")
    notes.add("ours, the same images", ours_s, "s")
    notes.add("ours against straightforward", ours_s / published_s, "of the time")
    for name, given in fewer.items():
        import diffusers

        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        less_s = notes.seconds(lambda given=given: ours(**given))
        notes.add(f"{name}, half of the steps, fused in 0.3 of them", less_s / published_s, "of the time")
    notes.add_peak("peak memory")


def customise(notes: Notes) -> None:
    """Per-user tuning with the defaults, to its last step."""
    from models import make_pipeline, noise_image

    pipe = make_pipeline(notes.size, notes.device)
    steps = 2 if notes.is_toy else 50
    start_s = notes.now_s()
    pipe.customize(noise_image(), steps=steps, patience=10**6, progress_bar=False)
    notes.add(f"customise, {steps} steps", notes.now_s() - start_s, "s")
    notes.add_peak("peak memory")


def compiled(notes: Notes) -> None:
    """`pipe.compile()`: time of a drawing, largest difference, and compilations for another subject."""
    from models import PROMPTS, make_pipeline, noise_image

    pipe = make_pipeline(notes.size, notes.device)
    one, other = (pipe.encode(noise_image(seed)) for seed in (0, 1))
    steps = 2 if notes.is_toy else 20

    def draw(subject: Any) -> Any:
        generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return pipe(
            PROMPTS, subject=subject, generator=generator, output_type="latent", num_inference_steps=steps
        ).images

    eager = draw(one)
    eager_s = notes.seconds(lambda: draw(one), 3)
    pipe.compile(backend="eager" if notes.is_toy else "inductor")
    start_s = notes.now_s()
    found = draw(one)
    notes.add("compiling", notes.now_s() - start_s, "s")
    notes.add("compiled against eager", notes.seconds(lambda: draw(one), 3) / eager_s, "of the time")
    notes.add("latents differ by at most", float((found - eager).abs().max()))
    before = pipe.num_compilations
    draw(other)
    notes.add("compilations for another subject", pipe.num_compilations - before)


def batched_users(notes: Notes) -> None:
    """Tuned users side by side in one batch, and one after the other."""
    from models import make_pipeline, noise_image

    pipe = make_pipeline(notes.size, notes.device)
    count, steps = (2, 2) if notes.is_toy else (8, 20)
    subject = pipe.customize(noise_image(), steps=1, progress_bar=False)
    prompt = "a photo of S*"

    def draw(num: int) -> None:
        generator = [torch.Generator().manual_seed(seed) for seed in range(num)]
        given = {"generator": generator, "output_type": "latent", "num_inference_steps": steps}
        pipe([prompt] * num, subject=[subject] * num, **given)

    together_s = notes.seconds(lambda: draw(count))
    alone_s = count * notes.seconds(lambda: draw(1))
    notes.add(f"{count} tuned users in one batch against one by one", together_s / alone_s, "of the time")
    notes.add_peak("peak memory")


def large_images(notes: Notes) -> None:
    """One call of SDXL's U-Net at twice and four times its side, unmodified and adapted."""
    from diffusers import UNet2DConditionModel
    from random_base import randomise

    from promptnet.inference.resolution import adapt_resolution
    from promptnet.models.base_model_shapes import BASES, SDXL
    from promptnet.models.tiny import build_unet

    dtype = torch.float16 if notes.device.startswith("cuda") else torch.float32
    if notes.is_toy:
        unet: Any = build_unet().eval()
        unet.to(notes.device)
    else:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**BASES[SDXL].unet)
        randomise(unet.eval(), torch.device(notes.device), dtype)
    extra = {}
    if not notes.is_toy:
        extra = {
            "added_cond_kwargs": {
                "text_embeds": torch.zeros(1, 1280, device=notes.device, dtype=dtype),
                "time_ids": torch.zeros(1, 6, device=notes.device, dtype=dtype),
            }
        }
    trained, width = unet.config["sample_size"], unet.config["cross_attention_dim"]
    states = torch.randn(1, 77, width, device=notes.device, dtype=unet.dtype)
    for ratio in (2, 4):
        x = torch.randn(1, 4, ratio * trained, ratio * trained, device=notes.device, dtype=unet.dtype)
        time_step = torch.tensor(981, device=notes.device)

        def call(x: Any = x, time_step: Any = time_step) -> None:
            with torch.no_grad():
                unet(x, time_step, encoder_hidden_states=states, **extra)

        plain_s = notes.seconds(call)
        notes.add_peak(f"{8 * ratio * trained} px unmodified: peak memory")
        side_px = 8 * ratio * trained
        with adapt_resolution(unet, side_px, side_px, trained_size=8 * trained, timesteps=[981, 1]):
            notes.add(f"{side_px} px adapted against unmodified", notes.seconds(call) / plain_s, "of the time")
        notes.add_peak(f"{8 * ratio * trained} px adapted: peak memory")


def mixing_weights(notes: Notes) -> None:
    """The gradient of mixing weights through a whole drawing and the decoder."""
    from mixing import Problem

    problem = Problem("tiny" if notes.is_toy else "sd15", None if notes.is_toy else 512, notes.device)
    steps = 2 if notes.is_toy else 50
    start_s = notes.now_s()
    problem.gradient(steps, checkpoint=True)
    notes.add(f"gradient through {steps} steps", notes.now_s() - start_s, "s")
    notes.add_peak("peak memory")


if __name__ == "__main__":
    name, size, device, path = sys.argv[1:]
    globals()[name](Notes(size, device, Path(path)))
