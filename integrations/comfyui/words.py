"""Word tables: stock CONDITIONING with the words of each noise level, and the LoRA in that conditioning alone."""

from collections.abc import Sequence
from typing import Any

import comfy.hooks
from comfy_api.latest import io
from torch import Tensor

from . import conditioning, folders
from .links import CATEGORY

STAND_IN = "sks"
"""A word of one token, in whose places the subject's words are put."""
_STREAMS = {1: None, 2: ("l", "g")}  # by the number of text encoders; of one, whatever it is called


class WordsConditioning(io.ComfyNode):
    """A prompt with a subject in it for ComfyUI's own samplers, from a file of `promptnet export --to word-table`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetWordsConditioning",
            display_name="PromptNet Words Conditioning",
            category=CATEGORY,
            description=(
                "The subject's words change with the noise level; its LoRA acts in this conditioning alone. Needs the "
                "base model that the table was made with. Lost: words that depend on the image, and fusion steps."
            ),
            inputs=[
                io.Combo.Input("file", options=folders.files(folders.WORDS)),
                io.Clip.Input("clip"),
                io.String.Input("prompt", default="a photo of S*", multiline=True, dynamic_prompts=True),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Of the sampler: as many parts."),
                io.Float.Input("lora_strength", default=1.0, min=-10.0, max=10.0, step=0.05),
            ],
            outputs=[io.Conditioning.Output(display_name="positive")],
        )

    @classmethod
    def execute(cls, file: str, clip: Any, prompt: str, steps: int = 20, lora_strength: float = 1.0) -> io.NodeOutput:
        """One entry for each step, with the words in the middle of its part of the timesteps."""
        from promptnet.export import kohya_lora, load_words

        words = load_words(folders.file(folders.WORDS, file))
        entries: conditioning.Conditioning = []
        for step in range(steps):
            timestep = 999 * (1 - (step + 0.5) / steps)
            parts = words.at(timestep).split(list(words.widths), dim=1)
            encoded = clip.encode_from_tokens_scheduled(tokens_with_words(clip, prompt, parts))
            check_width(encoded, sum(words.widths))
            entries += conditioning.during(encoded, step, step + 1, steps)
        if words.loras and lora_strength:
            hooks = comfy.hooks.create_hook_lora(kohya_lora(words), lora_strength, 0.0)
            entries = comfy.hooks.set_hooks_for_conditioning(entries, hooks)
        return io.NodeOutput(entries)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """When the file was written: another file of the same name is loaded anew."""
        return folders.file(folders.WORDS, file).stat().st_mtime


def tokens_with_words(clip: Any, prompt: str, parts: Sequence[Tensor]) -> dict[str, Any]:
    """ComfyUI's tokens of a prompt with words (L, width) of each text encoder in place of S*.

    Raises:
        ValueError: the prompt does not mention S*, mentions the stand-in or is too long, or CLIP is of another family.
    """
    if "S*" not in prompt:
        raise ValueError(f"The prompt {prompt!r} does not mention S*: write S* where the subject should appear.")
    if STAND_IN in prompt.split():
        raise ValueError(f"The prompt {prompt!r} has the word {STAND_IN!r}, which is needed for S*: leave it out.")
    stands = " ".join([STAND_IN] * len(parts[0]))
    tokens, single = clip.tokenize(prompt.replace("S*", f" {stands} ")), clip.tokenize(STAND_IN)
    streams = _STREAMS[len(parts)] or tuple(tokens)
    if set(streams) != set(tokens) or len(streams) != len(parts):
        raise ValueError(
            f"CLIP has the text encoders {', '.join(tokens)}, and the word table is for {len(parts)}: link the CLIP of "
            "the base model that the table was made with."
        )
    expected = prompt.count("S*") * len(parts[0])
    return {
        stream: _replaced(tokens[stream], single[stream][0][1][0], part, expected)
        for stream, part in zip(streams, parts, strict=True)
    }


def check_width(encoded: conditioning.Conditioning, width: int) -> None:
    """Refuse a CLIP of another width, of which ComfyUI would leave the words out with a line in its log.

    Raises:
        ValueError: it is one.
    """
    for states, _ in encoded:
        if states.shape[-1] != width:
            raise ValueError(
                f"CLIP's states have {states.shape[-1]} numbers for each token, and the word table's {width}: link the "
                "CLIP of the base model that the table was made with."
            )


def _replaced(batches: Any, stand_in: int, part: Tensor, expected: int) -> Any:
    """The tokens (id, weight, ...) of one text encoder with the rows of `part` in the stand-in's places, in turn."""
    count, found = 0, []
    for batch in batches:
        row = []
        for token, *rest in batch:
            if not isinstance(token, Tensor) and token == stand_in:
                token, count = part[count % len(part)], count + 1
            row.append((token, *rest))
        found.append(row)
    if count != expected:
        raise ValueError(f"The prompt holds {count} of the subject's {expected} words: shorten it.")
    return found
