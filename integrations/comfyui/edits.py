"""Edit cards: for PromptNet's sampler, and as stock CONDITIONING whose entries hold for parts of the sampling."""

from itertools import groupby
from typing import Any

from comfy_api.latest import io

from . import conditioning, folders
from .links import CATEGORY, Edits


class LoadEdit(io.ComfyNode):
    """An edit card of `promptnet learn-edit`; several in a row act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetLoadEdit",
            display_name="PromptNet Load Edit Card",
            category=CATEGORY,
            description="An edit card of models/promptnet/edits. Link another one's edits to have both.",
            inputs=[
                io.Combo.Input("file", options=folders.files(folders.EDITS)),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="0: nothing; 1: as learned."
                ),
                Edits.Input("edits", optional=True),
            ],
            outputs=[Edits.Output(display_name="edits")],
        )

    @classmethod
    def execute(cls, file: str, strength: float = 1.0, edits: list[Any] | None = None) -> io.NodeOutput:
        """Load it, behind those given."""
        from promptnet.inference.editing import EditCard

        return io.NodeOutput([*(edits or []), EditCard.load(folders.file(folders.EDITS, file)).scaled(strength)])

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """When the file was written: another file of the same name is loaded anew."""
        return folders.file(folders.EDITS, file).stat().st_mtime


class EditConditioning(io.ComfyNode):
    """An edit card for ComfyUI's own samplers: c + (1 - w_i) (styled - neutral) in step i."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetEditConditioning",
            display_name="PromptNet Edit Conditioning",
            category=CATEGORY,
            description=(
                "A card's weights on stock conditioning, by timestep ranges. Exact with the card's number of steps and "
                "scheduler normal, simple or ddim_uniform; with others each noise level has its nearest weight."
            ),
            inputs=[
                Edits.Input("edits", tooltip="One card; encode its two prompts as neutral and styled."),
                io.Conditioning.Input("positive", tooltip="What is drawn; for the plain edit the neutral prompt, too."),
                io.Conditioning.Input("neutral"),
                io.Conditioning.Input("styled"),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.String.Output(display_name="neutral prompt"),
                io.String.Output(display_name="styled prompt"),
            ],
        )

    @classmethod
    def execute(cls, edits: list[Any], positive: Any, neutral: Any, styled: Any) -> io.NodeOutput:
        """One entry for each run of equal weights."""
        if len(edits) != 1:
            raise ValueError(f"edits holds {len(edits)} cards, and this node takes 1: put several nodes in a row.")
        weights = edits[0].weights.tolist()
        runs = [(weight, len(list(places))) for weight, places in groupby(weights)]
        entries, start = [], 0
        for weight, count in runs:
            part = conditioning.shifted(positive, neutral, styled, 1 - weight)
            entries += conditioning.during(part, start, start + count, len(weights))
            start += count
        return io.NodeOutput(entries, edits[0].neutral, edits[0].styled)
