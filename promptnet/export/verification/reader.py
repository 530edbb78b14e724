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

_NUM_COLUMNS = 8


def read_item(job: Mapping[str, Any], item: Mapping[str, Any], probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs after an export was loaded, and each layer's change."""
    pipe = stock_pipeline(job)
    layers = {name: pipe.unet.get_submodule(name) for name in job["layers"]}
    columns = {name: layer_columns(place, layer.in_features) for place, (name, layer) in enumerate(layers.items())}
    before = {name: layer(columns[name]) for name, layer in layers.items()}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if item["words"]:
            FORMATS["textual-inversion"].readers["diffusers"](pipe, Path(item["words"]))
        if item["format"] != "textual-inversion":
            FORMATS[item["format"]].readers[item["reader"]](pipe, Path(item["path"]))
    token = token_of(Path(item["words"])) if item["words"] else ""
    found = {"outputs": outputs(pipe, job, probes, token)}
    for name, columns_of_layer in columns.items():
        found[f"change.{name}"] = pipe.unet.get_submodule(name)(columns_of_layer) - before[name]
        found[f"before.{name}"] = before[name]
    return found


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
    return torch.randn(_NUM_COLUMNS, width, generator=generator)


def outputs(pipe: Any, job: Mapping[str, Any], probes: Mapping[str, Tensor], token: str) -> Tensor:
    """The U-Net's outputs (N, 2, C, h, w), without and with the subject in the prompt."""
    prompt = job["prompt"].replace("S*", token)
    options: dict[str, Any] = {"device": pipe.unet.device, "num_images_per_prompt": 1, "clip_skip": job["clip_skip"]}
    encoded = pipe.encode_prompt(prompt=prompt, do_classifier_free_guidance=True, **options)
    states = torch.cat([encoded[1], encoded[0]])
    found = []
    for x, timestep in zip(probes["x"], probes["timesteps"].tolist(), strict=True):
        batch = x[None].expand(2, -1, -1, -1)
        extra = _sdxl_conditions(pipe, encoded, x) if job["sdxl"] else {}
        found.append(pipe.unet(batch, timestep, encoder_hidden_states=states, **extra, return_dict=False)[0])
    return torch.stack(found)


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
