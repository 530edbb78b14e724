"""What stands in the files: names, ranks, alphas, metadata, modes; and what our own parser makes of them."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from promptnet.export import ExportError, StaticSubject, format_names, write_files
from promptnet.export.graphs.compile import COMPILERS
from promptnet.export.passport import Passport, is_intact
from promptnet.export.registry import FORMATS, check_word_positions, formats_named
from promptnet.export.tensor_file import read_tensors
from promptnet.inference.subject.lora import key_value_layers
from tests.export.conftest import FAMILIES

LORA = ("kohya", "diffusers", "peft")


def tensor_file(path: Path) -> Path:
    return path if path.is_file() else next(path.glob("*.safetensors"))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(tensor_file(path), "pt") as opened:
        return opened.metadata()


@pytest.fixture
def static(pipes: dict[str, Any], make_static: Callable[..., StaticSubject]) -> StaticSubject:
    return make_static(pipes["sd"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LORA)
def test_the_parser_finds_every_layer_as_it_was_written(
    pipes: dict[str, Any], make_static: Any, passport: Passport, tmp_path: Path, family: str, name: str
) -> None:
    static, layers = make_static(pipes[family]), list(key_value_layers(pipes[family].unet))
    path = write_files(static, [name], tmp_path, "me", passport)[name]
    content = FORMATS[name].parse(path, layers)
    assert not content.strangers
    assert not content.problems
    assert sorted(content.loras) == sorted(layers)
    for layer in layers:
        torch.testing.assert_close(content.loras[layer].matrix(), static.loras[layer].matrix())


@pytest.mark.parametrize(("name", "rank"), [("kohya", 3), ("diffusers", 3), ("peft", 8)])
def test_all_layers_have_one_rank(static: StaticSubject, passport: Passport, tmp_path: Path, name: str, rank: int):
    path = write_files(static, [name], tmp_path, "me", passport)[name]
    tensors = load_file(tensor_file(path))
    downs = [tensor for key, tensor in tensors.items() if key.endswith(("lora_down.weight", "lora_A.weight"))]
    assert {len(down) for down in downs} == {rank}


def test_kohya_has_diffusers_names_and_one_alpha(static: StaticSubject, passport: Passport, tmp_path: Path) -> None:
    path = write_files(static, ["kohya"], tmp_path, "me", passport)["kohya"]
    tensors = load_file(path)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= set(tensors)
    assert len(tensors) == 3 * len(static.loras)
    alphas = [tensor for key, tensor in tensors.items() if key.endswith(".alpha")]
    assert [alpha.shape for alpha in alphas] == [torch.Size([])] * len(static.loras)
    assert {alpha.item() for alpha in alphas} == {3.0}
    assert "lora_adapter_metadata" not in metadata_of(path)


@pytest.mark.parametrize(
    ("widths", "version", "architecture"),
    [
        ((768,), "sd_v1", "stable-diffusion-v1/lora"),
        ((1024,), "sd_v2", "stable-diffusion-v2-512/lora"),
        ((768, 1280), "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_kohya_names_its_base_as_hosts_want_it(
    static: StaticSubject, passport: Passport, tmp_path: Path, widths: tuple[int, ...], version: str, architecture: str
) -> None:
    given = StaticSubject(torch.zeros(1, sum(widths)), widths, static.loras)
    found = metadata_of(write_files(given, ["kohya"], tmp_path, "me", passport)["kohya"])
    assert found["ss_base_model_version"] == version
    assert found["modelspec.architecture"] == architecture
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "3.0")
    assert found.get("ss_v2") == ("True" if version == "sd_v2" else None)


def test_diffusers_metadata_holds_fields_of_a_lora_config(
    static: StaticSubject, passport: Passport, tmp_path: Path
) -> None:
    from peft import LoraConfig

    path = write_files(static, ["diffusers"], tmp_path, "me", passport)["diffusers"]
    fields = json.loads(metadata_of(path)["lora_adapter_metadata"])
    config = LoraConfig(**{name.removeprefix("unet."): value for name, value in fields.items()})
    assert (config.r, config.lora_alpha) == (3, 3)
    assert set(config.target_modules or ()) == set(static.loras)


def test_words_have_one_key_or_one_for_each_encoder(
    pipes: dict[str, Any], make_static: Any, passport: Passport, tmp_path: Path
) -> None:
    one = write_files(make_static(pipes["sd"]), [], tmp_path, "one", passport)["textual-inversion"]
    two = write_files(make_static(pipes["sdxl"]), [], tmp_path, "two", passport)["textual-inversion"]
    assert {key: tuple(tensor.shape) for key, tensor in load_file(one).items()} == {"<one>": (2, 24)}
    assert {key: tuple(tensor.shape) for key, tensor in load_file(two).items()} == {
        "clip_l": (2, 24),
        "clip_g": (2, 32),
    }
    static = make_static(pipes["sdxl"])
    found = FORMATS["textual-inversion"].parse(two, ())
    assert torch.equal(torch.cat(list(found.words), dim=1), static.words)


def test_a_lora_is_never_written_without_its_words(static: StaticSubject, passport: Passport, tmp_path: Path) -> None:
    assert set(write_files(static, ["kohya"], tmp_path, "me", passport)) == {"kohya", "textual-inversion"}
    assert [found.name for found in formats_named(["peft", "kohya"])] == ["kohya", "peft", "textual-inversion"]


def test_every_export_is_private_and_has_a_passport(static: StaticSubject, passport: Passport, tmp_path: Path) -> None:
    for name, path in write_files(static, LORA, tmp_path, "me", passport).items():
        files = [path] if path.is_file() else list(path.iterdir())
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        tensors, metadata = read_tensors(tensor_file(path))
        assert metadata["promptnet.format"] == name
        assert metadata["promptnet.licence"] == "mit"
        assert metadata["promptnet.consent"] == "c0ffee"
        assert json.loads(metadata["promptnet.fingerprint"]) == {"unet": "abc"}
        assert not [key for key in tensors if "reference" in key or "latent" in key]
        assert is_intact(metadata, tensors)


def test_an_altered_export_is_not_intact(static: StaticSubject, passport: Passport, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(write_files(static, ["kohya"], tmp_path, "me", passport)["kohya"])
    key = next(iter(tensors))
    assert not is_intact(metadata, {**tensors, key: tensors[key] + 1})
    assert not is_intact({**metadata, "promptnet.licence": "none"}, tensors)


def test_a_wrong_alpha_is_a_problem_that_names_the_layer(
    static: StaticSubject, passport: Passport, tmp_path: Path
) -> None:
    path = write_files(static, ["kohya"], tmp_path, "me", passport)["kohya"]
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("attn2_to_v.alpha"))
    save_file({**tensors, key: torch.tensor(1.0)}, path)
    layer = next(name for name in static.loras if name.replace(".", "_") in key)
    problems = FORMATS["kohya"].parse(path, list(static.loras)).problems
    assert problems == [f"{layer}: its alpha is 1, and its rank 3"]


def test_a_file_cut_short_names_the_first_tensor_that_is_lost(
    static: StaticSubject, passport: Passport, tmp_path: Path
) -> None:
    path = write_files(static, ["kohya"], tmp_path, "me", passport)["kohya"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ExportError, match=r"cut short .*ends before lora_unet_\w+\.lora_(up|down)"):
        FORMATS["kohya"].parse(path, list(static.loras))


@pytest.mark.parametrize("name", LORA)
def test_an_untuned_subject_has_no_lora_file(passport: Passport, tmp_path: Path, name: str) -> None:
    static = StaticSubject(torch.zeros(1, 24), (24,))
    with pytest.raises(ExportError, match="not tuned"):
        write_files(static, [name], tmp_path, "me", passport)
    assert set(write_files(static, ["textual-inversion"], tmp_path, "me", passport)) == {"textual-inversion"}


def test_published_word_positions_have_no_file() -> None:
    check_word_positions("natural")
    with pytest.raises(ExportError, match="word_positions='published' has no file format"):
        check_word_positions("published")


def test_unknown_formats_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no file format 'gguf': choose from kohya, diffusers, peft, textual"):
        formats_named(["gguf"])


def test_words_of_another_width_are_refused() -> None:
    with pytest.raises(ExportError, match=r"\(L, 24\)"):
        StaticSubject(torch.zeros(1, 25), (24,))


def test_a_rank_too_large_to_pad_is_refused(static: StaticSubject) -> None:
    with pytest.raises(ExportError, match="rank 3, which rank=2"):
        static.padded(2)


def test_the_names_that_commands_check_are_the_registrys() -> None:
    assert tuple(FORMATS) == format_names.FILES
    assert tuple(COMPILERS) == format_names.GRAPHS


def test_numbers_too_large_for_float16_are_refused(pipes: dict[str, Any], make_static: Any) -> None:
    static = make_static(pipes["sd"])
    assert static.stored_as("float16").words.dtype == torch.float16
    with pytest.raises(ExportError, match="words holds numbers that are too large for float16"):
        replace(static, words=static.words * 1e6).stored_as("float16")
