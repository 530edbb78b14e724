"""A word table on ComfyUI's stock conditioning, beside a fake of its CLIP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.test_comfyui import acting, timesteps_of

Run = Callable[..., Any]
LENGTH = 77


class Clip:
    """Tokens by stream, as [[(id or vector, weight), ...]]; states hold vectors where they are put, and ids elsewhere.

    Args:
        widths: of each stream's text encoder.
    """

    def __init__(self, **widths: int) -> None:
        self.widths = widths

    def tokenize(self, text: str) -> dict[str, Any]:
        ids = [1000 + sum(map(ord, word)) for word in text.split()]
        row = [(1, 1.0), *((number, 1.0) for number in ids), (2, 1.0)]
        return {stream: [[*row, *[(2, 1.0)] * (LENGTH - len(row))][:LENGTH]] for stream in self.widths}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> Any:
        states = [self._states(tokens[stream][0], width) for stream, width in self.widths.items()]
        return [[torch.cat(states, dim=1)[None], {"pooled_output": torch.ones(1, 6)}]]

    def _states(self, row: Any, width: int) -> Tensor:
        rows = [token if isinstance(token, Tensor) else torch.full((width,), float(token)) for token, _ in row]
        return torch.stack(rows)


@pytest.fixture
def written(models_dir: Path, nodes: dict[str, Any]) -> Callable[..., Any]:
    """Write a table of two words, whose numbers are timesteps, and maybe a LoRA."""
    from dataclasses import replace

    from promptnet.export import Passport, StaticSubject, TimedWords, write_files
    from promptnet.inference.subject.lora import LoRALayer

    def write(*widths: int, tuned: bool = True) -> tuple[str, TimedWords]:
        timesteps = torch.tensor([0.0, 300.0, 999.0])
        words = timesteps[:, None, None] + torch.tensor([0.0, 0.25])[None, :, None].expand(3, 2, sum(widths))
        layer = {"mid_block.attn2.to_k": LoRALayer(torch.ones(1, 4), torch.ones(3, 1))}
        timed = TimedWords(words, timesteps, widths, layer if tuned else {})
        static = replace(StaticSubject(words[0], widths), timed=timed)
        paths = write_files(static, ["word-table"], models_dir / "promptnet" / "words", "me", Passport({}))
        return paths["word-table"].name, timed

    return write


@pytest.mark.parametrize("streams", [{"l": 8}, {"h": 8}, {"l": 8, "g": 6}], ids=str)
@pytest.mark.parametrize("scheduler", ["normal", "simple", "ddim_uniform"])
def test_each_step_has_the_words_of_its_noise_level(run: Run, written: Any, streams: Any, scheduler: str) -> None:
    file, timed = written(*streams.values())
    entries = run("PromptNetWordsConditioning", file=file, clip=Clip(**streams), prompt="a photo of S* there", steps=20)
    assert len(entries) == 20
    for step, timestep in enumerate(timesteps_of(scheduler, 20)):
        (found,) = acting(entries, timestep)
        middle = 999 * (1 - (step + 0.5) / 20)
        torch.testing.assert_close(found[0][0, 4:6], timed.at(middle))  # behind the start, "a photo of"
        assert abs(middle - timestep) <= 999 / 20
        assert found[0].shape == (1, LENGTH, sum(streams.values()))
        assert found[1]["pooled_output"].shape == (1, 6)


def test_the_lora_acts_in_this_conditioning_alone(run: Run, written: Any) -> None:
    file, _ = written(8)
    entries = run("PromptNetWordsConditioning", file=file, clip=Clip(l=8), prompt="S*", steps=2, lora_strength=0.5)
    for _, about in entries:
        assert about["hooks"].strengths == (0.5, 0.0)
        assert {key.rpartition(".")[0] for key in about["hooks"].lora if "lora" in key.split(".")[1]} == {
            "lora_unet_mid_block_attn2_to_k.lora_down",
            "lora_unet_mid_block_attn2_to_k.lora_up",
        }
    for options in ({"lora_strength": 0.0}, {"file": written(8, tuned=False)[0]}):
        plain = run("PromptNetWordsConditioning", **{"file": file, "clip": Clip(l=8), "prompt": "S*", **options})
        assert not any("hooks" in about for _, about in plain)


def test_a_prompt_may_name_the_subject_twice(run: Run, written: Any) -> None:
    file, timed = written(8)
    ((states, _),) = run("PromptNetWordsConditioning", file=file, clip=Clip(l=8), prompt="S*, a S*", steps=1)
    words = timed.at(999 / 2)
    assert torch.equal(states[0, 1:3], words)
    assert torch.equal(states[0, 5:7], words)  # "," and "a" between them


@pytest.mark.parametrize(
    ("clip", "prompt", "message"),
    [
        ({"l": 8}, "a photo", r"does not mention S\*"),
        ({"l": 8}, "sks and S*", "has the word 'sks'"),
        ({"l": 8}, " ".join(["word"] * 75) + " S*", "holds 1 of the subject's 2 words"),
        ({"l": 6}, "S*", "states have 6 numbers"),
        ({"l": 4, "g": 4}, "S*", "text encoders l, g, and the word table is for 1"),
    ],
    ids=["no subject", "stand-in", "long", "narrow", "family"],
)
def test_what_cannot_be_encoded_is_refused(run: Run, written: Any, clip: Any, prompt: str, message: str) -> None:
    file, _ = written(8)

    class Forgiving(Clip):
        """As ComfyUI: vectors of another width are left out, with a line in the log."""

        def _states(self, row: Any, width: int) -> Tensor:
            kept = [
                (7 if isinstance(token, Tensor) and len(token) != width else token, weight) for token, weight in row
            ]
            return super()._states(kept, width)

    with pytest.raises(ValueError, match=message):
        run("PromptNetWordsConditioning", file=file, clip=Forgiving(**clip), prompt=prompt)
    if clip == {"l": 8}:
        with pytest.raises(ValueError, match="no file 'nobody"):
            run("PromptNetWordsConditioning", file="nobody.safetensors", clip=Forgiving(**clip), prompt="S*")
