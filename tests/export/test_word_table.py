"""Words for each noise level: the table, its file, and stock pipelines that draw with it."""

import copy
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from promptnet import PromptNetPipeline
from promptnet.export import (
    ExportError,
    Passport,
    StaticSubject,
    TimedWords,
    in_stock_pipeline,
    in_stock_with_words,
    inspect_file,
    kohya_lora,
    load_words,
    mean_static,
    timed_words,
    verify,
    write_files,
)
from promptnet.export.formats import kohya
from promptnet.export.registry import formats_named
from promptnet.export.tensor_file import read_tensors
from promptnet.export.verification import reader, run
from promptnet.inference.subject.lora import LoRALayer
from tests.export.conftest import FAMILIES

PROMPT = "a S* hat"
LEVELS = 28  # multiples of 37, among them 666, 333 and 0
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture
def blind(pipes: dict[str, Any]) -> Callable[[str], Any]:
    """A pipeline whose encoder does not look at the image that is drawn."""

    def build(family: str) -> Any:
        encoder = copy.deepcopy(pipes[family].promptnet)
        encoder.with_noise = False
        pipe: Any = PromptNetPipeline(**{**pipes[family].components, "promptnet": encoder})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture
def table(pipes: dict[str, Any], make_subject: Any) -> Callable[..., TimedWords]:
    return lambda family="sd", **more: timed_words(pipes[family], make_subject(pipes[family], **more), num_levels=4)


def numbers(*values: float) -> TimedWords:
    """A table of one word of width 1."""
    words = torch.tensor(values).reshape(-1, 1, 1)
    return TimedWords(words, torch.linspace(0, 100, len(values)), (1,))


@pytest.mark.parametrize(
    ("timestep", "word"), [(-5, 0.0), (0, 0.0), (25, 0.5), (50, 1.0), (90, 4.2), (100, 5), (999, 5)]
)
def test_between_two_levels_words_are_linear(timestep: float, word: float) -> None:
    assert float(numbers(0.0, 1.0, 5.0).at(timestep)) == pytest.approx(word)
    assert float(numbers(3.0).at(timestep)) == 3.0


def test_a_table_that_cannot_be_is_refused() -> None:
    with pytest.raises(ExportError, match=r"\(T, L, 3\) for T = 2"):
        TimedWords(torch.zeros(2, 1, 2), torch.arange(2.0), (1, 2))
    with pytest.raises(ExportError, match="must rise"):
        TimedWords(torch.zeros(2, 1, 1), torch.tensor([5.0, 5.0]), (1,))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_where_the_encoder_does_not_look_at_the_image_a_table_is_exact(
    blind: Callable[[str], Any], stock_of: Callable[[str], Any], make_subject: Any, family: str
) -> None:
    """The LoRA acts in the subject's rows alone, and every step's timestep is a level of the table."""
    pipe, stock = blind(family), stock_of(family)
    stock.scheduler = diffusers.DDIMScheduler.from_config(stock.scheduler.config, steps_offset=0)
    subject, noise = make_subject(pipe), torch.randn(2, 4, 16, 16)
    same: dict[str, Any] = {"num_inference_steps": 3, "num_images": 2}
    with in_stock_pipeline(
        stock, subject, PROMPT, promptnet=pipe.promptnet, subject_scale=4.0, latents=noise, **same
    ) as arguments:
        exact = stock(**arguments, output_type="latent").images
    words = timed_words(pipe, subject, num_levels=LEVELS)
    with in_stock_with_words(stock, words, PROMPT, guidance_scale=4.0, **same) as arguments:
        found = stock(**arguments, latents=noise, output_type="latent").images
    assert float((found - exact).norm() / exact.norm()) < 1e-5
    static = replace(words, words=words.words.mean(0, keepdim=True), timesteps=torch.zeros(1))
    with in_stock_with_words(stock, static, PROMPT, guidance_scale=4.0, **same) as arguments:
        other = stock(**arguments, latents=noise, output_type="latent").images
    assert float((other - exact).norm() / exact.norm()) > 1e-4


def test_an_encoder_that_looks_at_the_image_is_averaged_over_noise(pipes: dict[str, Any], make_subject: Any) -> None:
    pipe, subject = pipes["sd"], make_subject(pipes["sd"], num_references=2)
    one, other = (timed_words(pipe, subject, seed=seed, num_levels=2) for seed in (0, 1))
    assert one.words.shape == (2, 4, 24)
    assert one.timesteps.tolist() == [0.0, 999.0]
    assert 0 < float((one.words - other.words).norm() / one.words.norm()) < 0.5
    assert torch.equal(timed_words(pipe, subject, num_levels=2).words, one.words)


def test_a_subject_with_words_of_its_own_has_one_level(pipes: dict[str, Any], make_subject: Any) -> None:
    subject = make_subject(pipes["sd"], tuned=False)
    subject = replace(
        subject,
        words=torch.ones(2, 24),
        vision_states=torch.zeros(1, 0, 0),
        reference_latents=torch.zeros(1, 4, 16, 16),
    )
    found = timed_words(pipes["sd"], subject)
    assert torch.equal(found.at(500), torch.ones(2, 24))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("tuned", [True, False])
def test_the_file_holds_the_table(
    pipes: dict[str, Any], table: Any, make_static: Any, passport: Passport, tmp_path: Path, family: str, tuned: bool
) -> None:
    words = table(family, tuned=tuned)
    static = replace(make_static(pipes[family]), timed=words)
    paths = write_files(static, ["word-table"], tmp_path, "me", passport)
    assert set(paths) == {"word-table"}  # it needs no other words
    path = paths["word-table"]
    assert path.name == "me-word-table.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_words(path)
    assert torch.equal(found.words, words.words)
    assert torch.equal(found.timesteps, words.timesteps)
    assert found.widths == words.widths
    assert set(found.loras) == set(words.loras)
    assert bool(found.loras) == tuned
    assert all(torch.equal(found.loras[name].matrix(), lora.matrix()) for name, lora in words.loras.items())
    assert found.fingerprint == {"unet": "abc"}
    assert inspect_file(path).kind == "export, word-table"
    assert inspect_file(path).is_intact
    assert not [key for key in read_tensors(path)[0] if "reference" in key or "latent" in key]


def test_a_table_beside_other_formats_leaves_them_their_words() -> None:
    assert [kind.name for kind in formats_named(["word-table"])] == ["word-table"]
    assert [kind.name for kind in formats_named(["word-table", "kohya"])] == [
        "kohya",
        "textual-inversion",
        "word-table",
    ]


def test_the_lora_of_a_table_as_hosts_load_it(table: Any) -> None:
    words = table()
    tensors = kohya_lora(words)
    assert len(tensors) == 3 * len(words.loras)
    key = kohya.key_of(LAYER)
    matrix = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
    torch.testing.assert_close(matrix, words.loras[LAYER].matrix())
    assert kohya_lora(replace(words, loras={})) == {}


def test_files_that_are_no_table_are_refused(
    pipes: dict[str, Any], table: Any, make_static: Any, passport: Passport, tmp_path: Path
) -> None:
    static = replace(make_static(pipes["sd"]), timed=table())
    paths = write_files(static, ["kohya", "word-table"], tmp_path, "me", passport)
    with pytest.raises(ExportError, match="is no word table"):
        load_words(paths["kohya"])
    with pytest.raises(ExportError, match="does not exist"):
        load_words(tmp_path / "nobody.safetensors")
    tensors, metadata = read_tensors(paths["word-table"])
    del tensors[f"unet.{LAYER}.lora_B.weight"]
    save_file(tensors, paths["word-table"], metadata)
    with pytest.raises(ExportError, match=r"is incomplete .*lora_B"):
        load_words(paths["word-table"])
    paths["kohya"].write_bytes(paths["kohya"].read_bytes()[:-9])
    with pytest.raises(ExportError, match="cut short"):
        load_words(paths["kohya"])
    with pytest.raises(ExportError, match="static words alone"):
        write_files(make_static(pipes["sd"]), ["word-table"], tmp_path, "me", passport)


# --- verified ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(
    pipes: dict[str, Any], bases: dict[str, Path], make_subject: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Read files back in this process."""

    def read_here(job: dict[str, Any], passing: Path) -> None:
        (passing / "job.json").write_text(json.dumps(job), "utf-8")
        reader.main(passing / "job.json")

    monkeypatch.setattr(run, "_run_reader", read_here)

    def check(family: str, static: StaticSubject, paths: dict[str, Path], **more: Any) -> Any:
        subject = make_subject(pipes[family], **more)
        found = verify(pipes[family], bases[family], subject, static, paths, prompt=PROMPT)
        return next(verdict for verdict in found if verdict.format == "word-table")

    return check


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_is_read_back_as_it_was_written(
    pipes: dict[str, Any], table: Any, make_subject: Any, checked: Any, passport: Passport, tmp_path: Path, family: str
) -> None:
    static = replace(mean_static(pipes[family], make_subject(pipes[family])), timed=table(family))
    paths = write_files(static, ["word-table"], tmp_path, "me", passport)
    verdict = checked(family, static, paths)
    assert verdict.is_good, verdict
    assert (verdict.found, verdict.matched) == (len(static.loras),) * 2
    assert all(values["relative"] <= 1e-6 for values in verdict.difference.values())
    assert verdict.loss["unconditional"]["relative"] < 1e-6  # its LoRA acts in the subject's rows alone
    assert 1e-6 < verdict.loss["subject"]["relative"] < 1


def test_an_untuned_table_in_float16_is_good(
    pipes: dict[str, Any], table: Any, make_subject: Any, checked: Any, passport: Passport, tmp_path: Path
) -> None:
    subject = make_subject(pipes["sd"], tuned=False)
    static = replace(mean_static(pipes["sd"], subject), timed=table(tuned=False)).stored_as("float16")
    paths = write_files(static, ["word-table"], tmp_path, "me", passport)
    assert load_file(paths["word-table"])["words.0"].dtype == torch.float16
    verdict = checked("sd", static, paths, tuned=False)
    assert verdict.is_good, verdict
    assert (verdict.found, verdict.matched) == (1, 1)


@pytest.mark.parametrize(
    ("key", "factor", "problems"),
    [
        ("words.0", 1.1, ("words: the file has others", "the subject row differs")),
        (f"unet.{LAYER}.lora_B.weight", 0.0, (f"{LAYER}: the file has another matrix", f"{LAYER}: the reader left")),
    ],
)
def test_an_altered_table_is_found(
    pipes: dict[str, Any], table: Any, make_static: Any, checked: Any, passport: Passport, tmp_path: Path,
    key: str, factor: float, problems: tuple[str, str],
) -> None:  # fmt: skip
    static = replace(make_static(pipes["sd"]), timed=table())
    paths = write_files(static, ["word-table"], tmp_path, "me", passport)
    tensors, metadata = read_tensors(paths["word-table"])
    save_file({**tensors, key: tensors[key] * factor}, paths["word-table"], metadata)
    found = checked("sd", static, paths).problems
    for problem in problems:
        assert any(said.startswith(problem) for said in found), found


def test_a_layer_too_few_is_named(
    pipes: dict[str, Any], table: Any, make_static: Any, checked: Any, passport: Passport, tmp_path: Path
) -> None:
    words = table()
    static = replace(make_static(pipes["sd"]), timed=words)
    less = replace(words, loras={name: lora for name, lora in words.loras.items() if name != LAYER})
    paths = write_files(replace(static, timed=less), ["word-table"], tmp_path, "me", passport)
    verdict = checked("sd", static, paths)
    assert verdict.missing == [LAYER]
    assert f"{LAYER}: the file does not have this layer" in verdict.problems


# --- in stock pipelines ---------------------------------------------------------------------------------------------


def test_nothing_is_left_in_the_pipeline(table: Any, stock_of: Any) -> None:
    stock = stock_of("sd")
    call: dict[str, Any] = {"prompt": "hat", "num_inference_steps": 2, "output_type": "latent"}
    before = stock(**call, generator=torch.Generator().manual_seed(3)).images
    with in_stock_with_words(stock, table(), PROMPT, num_inference_steps=2, negative_prompt="dog") as arguments:
        stock(**arguments, output_type="latent")
    assert torch.equal(stock(**call, generator=torch.Generator().manual_seed(3)).images, before)


def test_what_cannot_be_drawn_is_refused(table: Any, stock_of: Any, pipes: dict[str, Any]) -> None:
    stock, words = stock_of("sd"), table()

    def drawn(pipe: Any, given: TimedWords, prompt: str = PROMPT, **more: Any) -> None:
        with in_stock_with_words(pipe, given, prompt, num_inference_steps=2) as arguments:
            pipe(**{**arguments, **more}, output_type="latent")

    with pytest.raises(ExportError, match=r"does not mention S\*"):
        drawn(stock, words, "a hat")
    with pytest.raises(ExportError, match="another base model: the weights of unet"):
        drawn(stock, replace(words, fingerprint={**words.fingerprint, "unet": "other"}))
    with pytest.raises(ExportError, match="draws in 3 steps"):
        drawn(stock, words, num_inference_steps=3)
    with pytest.raises(ExportError, match="draws subjects itself"):
        drawn(pipes["sd"], words)
    with pytest.raises(ValueError, match="has no layer nowhere"):
        drawn(stock, replace(words, loras={"nowhere": LoRALayer(torch.ones(1, 2), torch.ones(2, 1))}))
