"""Exports are read back by stock loaders in a fresh process; files that are wrong are found, with the layer's name."""

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptnet.export import (
    ExportError,
    Passport,
    StaticSubject,
    Verdict,
    mean_static,
    timed_words,
    verify,
    write_files,
)
from promptnet.export.verification import reader, run
from promptnet.export.verification.verdict import verdict_path
from tests.export.conftest import FAMILIES

ALL = ("kohya", "diffusers", "peft", "textual-inversion")
READERS = {("kohya", "diffusers"), ("kohya", "lycoris"), ("diffusers", "diffusers"), ("peft", "peft")}
READERS |= {("textual-inversion", "diffusers"), ("word-table", "diffusers")}
PROMPT = "a S*"


def checked(
    pipe: Any, base: Path, subject: Any, static: StaticSubject, paths: Mapping[str, Path]
) -> dict[tuple[str, str], Verdict]:
    found = verify(pipe, base, subject, static, paths, prompt=PROMPT)
    return {(verdict.format, verdict.reader): verdict for verdict in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_is_read_back_as_it_was_written(
    pipes: dict[str, Any],
    bases: dict[str, Path],
    make_subject: Callable[..., Any],
    make_static: Callable[..., StaticSubject],
    passport: Passport,
    tmp_path: Path,
    family: str,
) -> None:
    pipe = pipes[family]
    subject = make_subject(pipe)
    static = replace(make_static(pipe), timed=timed_words(pipe, subject, num_levels=2))
    paths = write_files(static, [*ALL, "word-table"], tmp_path, "me", passport)
    found = checked(pipe, bases[family], subject, static, paths)
    assert set(found) == READERS
    for (name, _), verdict in found.items():
        assert verdict.is_good, verdict
        assert all(values["relative"] <= 1e-6 for values in verdict.difference.values())
        assert verdict.loss["subject"]["relative"] > 1e-3  # other words, and a LoRA of noise
        if name != "textual-inversion":
            assert (verdict.found, verdict.matched) == (len(static.loras),) * 2
        if name in ("textual-inversion", "word-table"):  # which leave that row alone
            assert verdict.loss["unconditional"]["relative"] < 1e-6
        else:
            # SDXL's unconditional row is of zeros here, in which keys and values add nothing.
            assert (verdict.loss["unconditional"]["relative"] > 1e-3) == (family != "sdxl")
        record = json.loads(verdict_path(paths[name]).read_text("utf-8"))[0]
        assert record["is_good"]
        assert stat.S_IMODE(verdict_path(paths[name]).stat().st_mode) == 0o600


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader without a new process, which takes longest; what it reads is the same."""
    monkeypatch.setattr(run, "_run_reader", lambda job, passing: _read_here(job, passing))


def _read_here(job: dict[str, Any], passing: Path) -> None:
    (passing / "job.json").write_text(json.dumps(job), "utf-8")
    reader.main(passing / "job.json")


@pytest.fixture
def kohya(pipes: dict[str, Any], make_static: Any, passport: Passport, tmp_path: Path) -> dict[str, Path]:
    return write_files(make_static(pipes["sd"]), ["kohya"], tmp_path, "me", passport)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_float16_files_hold_half_as_much_and_are_read_back(
    in_this_process: None,
    pipes: dict[str, Any],
    bases: dict[str, Path],
    make_subject: Callable[..., Any],
    make_static: Callable[..., StaticSubject],
    passport: Passport,
    tmp_path: Path,
    family: str,
) -> None:
    pipe, static = pipes[family], make_static(pipes[family]).stored_as("float16")
    paths = write_files(static, ALL, tmp_path, "me", passport)
    numbers = [t for name, t in load_file(paths["kohya"]).items() if not name.endswith(".alpha")]
    assert {tensor.dtype for tensor in [*numbers, *load_file(paths["textual-inversion"]).values()]} == {torch.float16}
    for verdict in checked(pipe, bases[family], make_subject(pipe), static, paths).values():
        assert verdict.is_good, verdict


def altered(paths: dict[str, Path], change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(paths["kohya"])), paths["kohya"])


@pytest.fixture
def recheck(
    in_this_process: None, pipes: dict[str, Any], bases: dict[str, Path], make_subject: Any, make_static: Any
) -> Callable[..., Any]:
    def check(paths: dict[str, Path], family: str = "sd") -> dict[str, Verdict]:
        pipe = pipes[family]
        found = checked(pipe, bases[family], make_subject(pipe), make_static(pipe), paths)
        return {reader: verdict for (name, reader), verdict in found.items() if name == "kohya"}

    return check


LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v"


def test_a_layer_too_few(kohya: dict[str, Path], recheck: Callable[..., dict[str, Verdict]]) -> None:
    altered(kohya, lambda tensors: {key: t for key, t in tensors.items() if not key.startswith(KEY)})
    for verdict in recheck(kohya).values():
        assert verdict.missing == [LAYER]
        assert verdict.matched == verdict.found == 13
        assert f"{LAYER}: the file does not have this layer" in verdict.problems
        assert f"{LAYER}: the reader left this layer as it was" in verdict.problems


def test_a_wrong_alpha(kohya: dict[str, Path], recheck: Callable[..., dict[str, Verdict]]) -> None:
    altered(kohya, lambda tensors: {**tensors, f"{KEY}.alpha": torch.tensor(1.0)})
    found = recheck(kohya)
    for verdict in found.values():
        assert f"{LAYER}: its alpha is 1, and its rank 3" in verdict.problems
    assert any(problem.startswith(f"{LAYER}: the layer's change is wrong") for problem in found["lycoris"].problems)


def test_keys_of_another_base(kohya: dict[str, Path], recheck: Callable[..., dict[str, Verdict]]) -> None:
    other = KEY.replace("down_blocks_1", "down_blocks_7")
    altered(kohya, lambda tensors: {key.replace(KEY, other): tensor for key, tensor in tensors.items()})
    for verdict in recheck(kohya).values():
        assert verdict.unmatched == [other]
        assert f"{other}: the base model has no such layer" in verdict.problems


def test_a_file_of_another_family(
    pipes: dict[str, Any], make_static: Any, passport: Passport, tmp_path: Path, recheck: Callable[..., Any]
) -> None:
    paths = write_files(make_static(pipes["sdxl"]), ["kohya"], tmp_path, "me", passport)
    found = recheck(paths, "sd")
    assert not any(verdict.is_good for verdict in found.values())
    assert any(LAYER in problem for problem in found["lycoris"].problems)


def test_a_truncated_file(kohya: dict[str, Path], recheck: Callable[..., dict[str, Verdict]]) -> None:
    kohya["kohya"].write_bytes(kohya["kohya"].read_bytes()[:-100])
    for verdict in recheck(kohya).values():
        assert "cut short" in verdict.problems[0]
        assert "It ends before lora_unet_" in verdict.problems[0]


def test_a_lora_that_does_nothing(kohya: dict[str, Path], recheck: Callable[..., dict[str, Verdict]]) -> None:
    altered(kohya, lambda tensors: {k: t * 0 if k.endswith("lora_up.weight") else t for k, t in tensors.items()})
    for verdict in recheck(kohya).values():
        assert "no layer of the U-Net was changed: the file does nothing" in verdict.problems
        assert f"{LAYER}: the reader left this layer as it was" in verdict.problems


def test_words_that_were_altered(
    in_this_process: None,
    pipes: dict[str, Any],
    bases: dict[str, Path],
    make_subject: Any,
    kohya: dict[str, Path],
    make_static: Any,
) -> None:
    words = kohya["textual-inversion"]
    save_file({key: tensor * 1.1 for key, tensor in load_file(words).items()}, words)
    found = checked(pipes["sd"], bases["sd"], make_subject(pipes["sd"]), make_static(pipes["sd"]), kohya)
    verdict = found["textual-inversion", "diffusers"]
    assert "words: the file has others than were written" in verdict.problems
    assert any("the subject row differs" in problem for problem in verdict.problems)


def test_a_base_model_that_cannot_be_read_is_said(
    in_this_process: None,
    pipes: dict[str, Any],
    make_subject: Any,
    kohya: dict[str, Path],
    make_static: Any,
    tmp_path: Path,
) -> None:
    found = checked(pipes["sd"], tmp_path / "nowhere", make_subject(pipes["sd"]), make_static(pipes["sd"]), kohya)
    assert all("cannot load it" in verdict.problems[-1] for verdict in found.values())


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_mean_words_lie_among_the_subjects_own(pipes: dict[str, Any], make_subject: Any, family: str) -> None:
    pipe = pipes[family]
    static = mean_static(pipe, make_subject(pipe))
    assert static.words.shape == (4, sum(static.widths))
    assert set(static.loras) == set(make_subject(pipe).unet_loras)
    again = mean_static(pipe, make_subject(pipe), seed=1)
    assert float((static.words - again.words).norm() / static.words.norm()) < 0.5
    assert static.recipe["static"] == "mean"


def test_a_subject_with_published_positions_has_no_static_words(pipes: dict[str, Any], make_subject: Any) -> None:
    from promptnet import PromptNetPipeline

    pipe = PromptNetPipeline(**pipes["sd"].components, sampling={"word_positions": "published"})
    with pytest.raises(ExportError, match="word_positions='published'"):
        mean_static(pipe, make_subject(pipe))
