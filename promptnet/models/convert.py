"""Published encoder folders to ours and back.

ProFusion's authors saved their encoder as a diffusers folder whose config carries keys of the U-Net that nobody
reads, and whose weights are a torch pickle. Here it becomes a folder with our config and safetensors; the other way
serves people who run the published code.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptnet.io.atomic import new_folder
from promptnet.models.promptnet import PUBLISHED_VISION_DIMS, PromptNetModel
from promptnet.models.trunk import per_block

CONFIG_NAME = "config.json"
SAFETENSORS_NAME = "diffusion_pytorch_model.safetensors"
PICKLE_NAME = "diffusion_pytorch_model.bin"

# What the published class and its forward pass read and ours has no use for, at the only values ours knows.
_PUBLISHED_ONLY: dict[str, Any] = {
    "_class_name": "PromptNetModel",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "num_class_embeds": None,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# What ours has and the published class lacks: key -> whether a value means what the published code does anyway.
_OURS_ONLY: dict[str, Callable[[Any], bool]] = {
    "dropout": lambda value: value == 0,
    "num_attention_heads": lambda value: value is None,
    "time_embedding_dim": lambda value: value is None,
    "transformer_layers_per_block": lambda value: set(value if isinstance(value, list | tuple) else [value]) == {1},
    "word_norm": lambda value: value is None,
}


def convert_from_published(source: str | Path, target: str | Path, *, use_res: bool = False) -> Path:
    """Write a published encoder folder as one of ours.

    Args:
        source: the folder with `config.json` and `diffusion_pytorch_model.safetensors` or `.bin`. The latter is a
            torch pickle; only tensors are read from it, and anything else in it is refused.
        target: the folder to write, which must not exist.
        use_res: keep the residual heads, which no computation uses. Without them the encoder is 23 million
            parameters smaller at full size.

    Returns:
        The written folder.

    Raises:
        ValueError: a file is missing or broken, weights are missing, unknown or of the wrong shape (all are named),
            or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    weights = _read_weights(source)
    if not use_res:
        weights = {name: weight for name, weight in weights.items() if not _is_residual_head(name)}
    model = _fill(_read_config(source), use_res, weights, source)
    with new_folder(target) as folder:
        model.save_pretrained(folder)
    return target


def convert_to_published(source: str | Path, target: str | Path) -> Path:
    """Write one of our encoder folders so that the published class reads it.

    Args:
        source: a folder that `PromptNetModel.save_pretrained` wrote.
        target: the folder to write, which must not exist. Its weights are safetensors, which the published code
            reads as well.

    Returns:
        The written folder.

    Raises:
        ValueError: the source is broken, or is an encoder that the published class cannot compute (the setting is
            named), or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    config, weights = _read_config(source), _read_weights(source)
    model = _fill(config, bool(config.get("use_res")), weights, source)
    published = published_config(model)
    with new_folder(target) as folder:
        (folder / CONFIG_NAME).write_text(json.dumps(published, indent=2, sort_keys=True) + "\n")
        save_file(weights, folder / SAFETENSORS_NAME, metadata={"format": "pt"})
    return target


def published_config(model: PromptNetModel) -> dict[str, Any]:
    """The `config.json` by which the published class builds this encoder.

    Raises:
        ValueError: names the settings that it does not have.
    """
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    lacking = [f"{key}={config[key]!r}" for key, fits in _OURS_ONLY.items() if not fits(config[key])]
    flags = {dim: flag for flag, dim in PUBLISHED_VISION_DIMS.items()}
    if config["vision_dim"] not in flags:
        lacking.append(f"vision_dim={config['vision_dim']} (it knows {' and '.join(map(str, sorted(flags)))})")
    if len(set(per_block(config, "layers_per_block"))) > 1:
        lacking.append(f"layers_per_block={config['layers_per_block']!r}")
    if lacking:
        raise ValueError(f"The published class cannot compute this encoder: it has no {', no '.join(lacking)}.")
    ours_only = {*_OURS_ONLY, "vision_dim"}
    return {
        **{key: value for key, value in config.items() if key not in ours_only},
        **_PUBLISHED_ONLY,
        "layers_per_block": per_block(config, "layers_per_block")[0],
        "res_block_out_channels": config["res_block_out_channels"] or config["block_out_channels"],
        "use_clip_vision_embeds": flags[config["vision_dim"]],
    }


def _fill(config: Mapping[str, Any], use_res: bool, weights: Mapping[str, Tensor], source: Path) -> PromptNetModel:
    """The model that the config describes, holding these very tensors."""
    with torch.device("meta"):
        model = PromptNetModel.from_config(dict(config), use_res=use_res)
    assert isinstance(model, PromptNetModel)
    _check_weights(model.state_dict(), weights, source)
    model.load_state_dict(weights, assign=True)
    return model


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """Refuse weights that are not exactly the model's, naming every difference."""
    wrong = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in found and found[name].shape != weight.shape
    ]
    problems = [
        _listed("missing", expected.keys() - found.keys()),
        _listed("unknown", found.keys() - expected.keys()),
        _listed("of the wrong shape", wrong),
    ]
    if any(problems):
        raise ValueError(f"The weights in {source} do not fit its config.json: {'; '.join(filter(None, problems))}.")


def _listed(kind: str, names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)} {kind} ({', '.join(names)})" if names else ""


def _is_residual_head(name: str) -> bool:
    return name.startswith(("residual_projections", "mid_residual_projection"))


def _read_config(source: Path) -> dict[str, Any]:
    path = source / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{source} has no {CONFIG_NAME}. Name the folder that holds the encoder itself.")
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict) or "block_out_channels" not in config:
        raise ValueError(f"{path} is not the config of an encoder: it does not say block_out_channels.")
    return config


def _read_weights(source: Path) -> dict[str, Tensor]:
    """The weights of a folder, from safetensors if it has them, else from its torch pickle."""
    for name, read in ((SAFETENSORS_NAME, load_file), (PICKLE_NAME, _read_pickle)):
        if (source / name).is_file():
            return _read_file(source / name, read)
    raise ValueError(f"{source} has neither {SAFETENSORS_NAME} nor {PICKLE_NAME}.")


def _read_file(path: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    try:
        weights = read(path)
    except UnpicklingError as error:
        raise ValueError(f"{path} is broken or holds more than tensors, which is never loaded: {error}") from error
    except (SafetensorError, BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is broken: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{path} does not hold a model's weights (names and tensors).")
    return {str(name): weight for name, weight in weights.items()}


def _read_pickle(path: Path) -> Any:
    """Only tensors; each in memory of its own, because a pickle may hold views of one buffer and safetensors cannot."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict):
        return weights
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in weights.items()}
