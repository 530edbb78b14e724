"""The kinds of links between these nodes."""

from comfy_api.latest import io

CATEGORY = "promptnet"

Pipeline = io.Custom("PROMPTNET_PIPELINE")
"""A `promptnet.PromptNetPipeline`."""

Subject = io.Custom("PROMPTNET_SUBJECT")
"""A `promptnet.Subject`."""

Edits = io.Custom("PROMPTNET_EDITS")
"""A list of `promptnet.inference.editing.EditCard`."""

SamplingSettings = io.Custom("PROMPTNET_SETTINGS")
"""Arguments of the pipeline's call, by name."""
