"""Subjects: from a file, from images, into a file."""

from typing import Any

import torch
from comfy_api.latest import io

from . import folders, images, running
from .links import CATEGORY, Pipeline, Subject


class LoadSubject(io.ComfyNode):
    """A subject file of `promptnet customize`, or of Save Subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetLoadSubject",
            display_name="PromptNet Load Subject",
            category=CATEGORY,
            description="A subject of models/promptnet/subjects.",
            inputs=[io.Combo.Input("file", options=folders.files(folders.SUBJECTS))],
            outputs=[Subject.Output(display_name="subject")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Load it; the file is checked before anything in it is believed."""
        from promptnet import Subject as SubjectFile

        with running.with_gradients():
            return io.NodeOutput(SubjectFile.load(folders.file(folders.SUBJECTS, file)))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        """When the file was written: another file of the same name is loaded anew."""
        return folders.file(folders.SUBJECTS, file).stat().st_mtime


class Encode(io.ComfyNode):
    """Images of one person to a subject, tuned to the person if wanted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetEncode",
            display_name="PromptNet Encode Subject",
            category=CATEGORY,
            description="A subject of an image of one person. The images of a batch are references of that one person.",
            inputs=[
                Pipeline.Input("pipeline"),
                io.Image.Input("image", tooltip="One image of the person, or a batch of images of the same person."),
                io.String.Input("class_word", default="person", tooltip="What the person is in a sentence."),
                io.Boolean.Input("tune", default=True, tooltip="Tune to this person, in seconds to minutes."),
                io.Int.Input("steps", default=0, min=0, max=10_000, tooltip="Of tuning; 0: the base model's own."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Combo.Input(
                    "registration",
                    options=["auto", "always", "never"],
                    default="auto",
                    tooltip="Search the frame that the encoder knows: where an image is doubtful, always, or never.",
                ),
                io.Boolean.Input(
                    "allow_foreign",
                    default=False,
                    tooltip="Let in images that the encoder does not know. The result may be nobody.",
                ),
            ],
            outputs=[Subject.Output(display_name="subject")],
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        image: torch.Tensor,
        class_word: str = "person",
        tune: bool = True,
        steps: int = 0,
        seed: int = 0,
        registration: Any = "auto",
        allow_foreign: bool = False,
    ) -> io.NodeOutput:
        """Encode, and tune."""
        references = images.to_pil(image)
        admission = {"registration": registration, "allow_foreign": allow_foreign}
        progress = running.Progress()
        with running.with_gradients(), running.on_device(pipeline):
            if not tune:
                return io.NodeOutput(pipeline.encode(references, class_word, **admission))
            subject = pipeline.customize(
                references,
                class_word,
                **admission,
                steps=steps or None,
                generator=torch.Generator().manual_seed(seed),
                progress_bar=False,
                callback=lambda done: progress(done.num_steps),
            )
        return io.NodeOutput(subject)


class SaveSubject(io.ComfyNode):
    """A subject to a file that only its owner can read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetSaveSubject",
            display_name="PromptNet Save Subject",
            category=CATEGORY,
            description="Writes models/promptnet/subjects/NAME.safetensors. The file is the face: treat it like one.",
            inputs=[Subject.Input("subject"), io.String.Input("name", default="me")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, subject: Any, name: str) -> io.NodeOutput:
        """Write it; no file is replaced."""
        subject.save(folders.new_subject(name))
        return io.NodeOutput()
