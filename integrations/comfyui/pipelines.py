"""Load a base model with its encoder."""

from comfy_api.latest import io

from . import folders, running
from .links import CATEGORY, Pipeline


class LoadBase(io.ComfyNode):
    """A base model in diffusers' layout, loaded by promptnet: ComfyUI's own MODEL is not used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Say what the node takes and gives."""
        return io.Schema(
            node_id="PromptNetLoadBase",
            display_name="PromptNet Load Base Model",
            category=CATEGORY,
            description="A folder of models/diffusers with a base model and PromptNet's encoder.",
            inputs=[
                io.Combo.Input("base", options=folders.bases()),
                io.Combo.Input("dtype", options=["auto", "float32", "float16", "bfloat16"], default="auto"),
            ],
            outputs=[Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, base: str, dtype: str = "auto") -> io.NodeOutput:
        """Load it; the networks stay on the CPU until they are used."""
        from promptnet import PromptNetPipeline

        folder = folders.base(base)
        with running.with_gradients():
            pipe = PromptNetPipeline.from_pretrained(
                folder, use_safetensors=True, dtype=running.dtype_of(dtype), local_files_only=True
            )
        pipe.set_progress_bar_config(disable=True)  # ComfyUI has its own
        return io.NodeOutput(pipe)
