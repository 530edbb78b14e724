"""Read exports as other software does: run in a process of its own, which knows nothing of how they were made.

    python -m promptnet.export.verification.reader JOB.json

For each item of the job the base model is loaded anew by diffusers, the export by the format's reader, and what the
U-Net then computes is written down. Errors are a result, too.
"""

import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptnet.export.formats.textual_inversion import token_of
from promptnet.export.registry import FORMATS
from promptnet.export.stock_words import in_stock_with_words
from promptnet.export.timed import TimedWords
from promptnet.inference.subject.lora import apply_loras

NUM_COLUMNS = 8


def read_item(job: Mapping[str, Any], item: Mapping[str, Any], probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs after an export was loaded, each layer's change, and images if there is a judge for them."""
    pipe, kind = stock_pipeline(job), FORMATS[item["format"]]
    layers = {name: pipe.unet.get_submodule(name) for name in job["layers"]}
    columns = {name: layer_columns(place, layer.in_features) for place, (name, layer) in enumerate(layers.items())}
    before = {name: layer(columns[name]) for name, layer in layers.items()}
    token, words = load_export(pipe, item)
    if kind.timed:
        found = {"outputs": timed_outputs(pipe, job, probes, words)}
    else:
        found = {"outputs": outputs(pipe, job, probes, token)}
    with apply_loras(pipe.unet, [words.loras] * NUM_COLUMNS if kind.timed and words.loras else ()):
        for name, inputs in columns.items():
            found[f"change.{name}"] = pipe.unet.get_submodule(name)(inputs) - before[name]
            found[f"before.{name}"] = before[name]
    if job["drawing"]:
        found["images"] = images(pipe, job, probes["latents"], token, words)
    return found


def load_export(pipe: Any, item: Mapping[str, Any]) -> tuple[str, Any]:
    """Load an export into a pipeline: what stands for the subject in prompts, and a timed format's words."""
    token, words, kind = "S*", None, FORMATS[item["format"]]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if item["words"] and not kind.timed:
            FORMATS["textual-inversion"].readers["diffusers"](pipe, Path(item["words"]))
            token = token_of(Path(item["words"]))
        if item["format"] != "textual-inversion":
            words = kind.readers[item["reader"]](pipe, Path(item["path"]))
    return token, words


def stock_pipeline(job: Mapping[str, Any]) -> Any:
    """diffusers' own pipeline of the base model, in float32."""
    import diffusers

    kind = diffusers.StableDiffusionXLPipeline if job["sdxl"] else diffusers.StableDiffusionPipeline
    unsafe = {} if job["sdxl"] else {"safety_checker": None, "requires_safety_checker": False}
    pipe = kind.from_pretrained(
        job["base"], use_safetensors=True, torch_dtype=torch.float32, feature_extractor=None, **unsafe
    )
    return pipe


def layer_columns(place: int, width: int) -> Tensor:
    """Random inputs (8, d_in) of a linear layer, the same in every process."""
    generator = torch.Generator().manual_seed(place)
    return torch.randn(NUM_COLUMNS, width, generator=generator)


def outputs(pipe: Any, job: Mapping[str, Any], probes: Mapping[str, Tensor], token: str) -> Tensor:
    """The U-Net's outputs (N, 2, C, h, w), without and with the subject in the prompt."""
    encoded = encode(pipe, job, token)
    return torch.stack([predict(pipe, job, encoded, x, timestep) for x, timestep in _each(probes)])


def timed_outputs(pipe: Any, job: Mapping[str, Any], probes: Mapping[str, Tensor], words: TimedWords) -> Tensor:
    """The same with a table: the words of each timestep are a textual inversion of their own, not encoded by us."""
    found = []
    for x, timestep in _each(probes):
        token = f"<level-{len(found)}>"
        add_words(pipe, words.at(timestep), words.widths, token)
        with apply_loras(pipe.unet, [None, words.loras] if words.loras else ()):
            found.append(predict(pipe, job, encode(pipe, job, token), x, timestep))
    return torch.stack(found)


def add_words(pipe: Any, words: Tensor, widths: Sequence[int], token: str) -> None:
    """Load words (L, D) as diffusers loads textual inversions, a part for each text encoder."""
    encoders = [(pipe.text_encoder, pipe.tokenizer)]
    if len(widths) == 2:
        encoders.append((pipe.text_encoder_2, pipe.tokenizer_2))
    for part, (text_encoder, tokenizer) in zip(words.split(list(widths), dim=1), encoders, strict=True):
        pipe.load_textual_inversion(part.contiguous(), token=token, text_encoder=text_encoder, tokenizer=tokenizer)


def encode(pipe: Any, job: Mapping[str, Any], token: str) -> Sequence[Tensor]:
    """What the pipeline's own `encode_prompt` gives for the prompt."""
    options: dict[str, Any] = {"device": pipe.unet.device, "num_images_per_prompt": 1, "clip_skip": job["clip_skip"]}
    prompt = job["prompt"].replace("S*", token)
    return pipe.encode_prompt(prompt=prompt, do_classifier_free_guidance=True, **options)


def predict(pipe: Any, job: Mapping[str, Any], encoded: Sequence[Tensor], x: Tensor, timestep: int) -> Tensor:
    """The U-Net's outputs (2, C, h, w) for the empty prompt and the encoded one."""
    extra = _sdxl_conditions(pipe, encoded, x) if job["sdxl"] else {}
    states, batch = torch.cat([encoded[1], encoded[0]]), x[None].expand(2, -1, -1, -1)
    return pipe.unet(batch, timestep, encoder_hidden_states=states, **extra, return_dict=False)[0]


def _each(probes: Mapping[str, Tensor]) -> list[tuple[Tensor, int]]:
    return list(zip(probes["x"], probes["timesteps"].tolist(), strict=True))


def images(pipe: Any, job: Mapping[str, Any], latents: Tensor, token: str, words: TimedWords | None) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of the subject, drawn as a user of diffusers draws."""
    pipe.scheduler = type(pipe.scheduler).from_pretrained(job["base"], subfolder="scheduler")  # as it is in the file
    pipe.set_progress_bar_config(disable=True)
    how = {"latents": latents, "output_type": "pt", **job["drawing"]}
    if words is None:
        prompt = job["prompt"].replace("S*", token)
        return pipe(prompt, num_images_per_prompt=len(latents), clip_skip=job["clip_skip"], **how).images.float()
    steps, scale = job["drawing"]["num_inference_steps"], job["drawing"]["guidance_scale"]
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "text_layer": job["text_layer"]}
    with in_stock_with_words(pipe, words, job["prompt"], num_images=len(latents), **options) as arguments:
        return pipe(**{**arguments, **how}).images.float()


def _sdxl_conditions(pipe: Any, encoded: Sequence[Tensor], x: Tensor) -> dict[str, Any]:
    height_px, width_px = (side * pipe.vae_scale_factor for side in x.shape[1:])
    sizes = torch.tensor([[height_px, width_px, 0, 0, height_px, width_px]] * 2, dtype=torch.float32)
    return {"added_cond_kwargs": {"text_embeds": torch.cat([encoded[3], encoded[2]]), "time_ids": sizes}}


def main(path: Path) -> None:
    """Do a job, and write one file for each item."""
    job = json.loads(path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    probes = load_file(job["probes"])
    for item in job["items"]:
        try:
            with torch.no_grad():
                found = read_item(job, item, probes)
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, item["out"])
        except Exception as error:
            Path(f"{item['out']}.error").write_text(f"{type(error).__name__}: {' '.join(str(error).split())}", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
