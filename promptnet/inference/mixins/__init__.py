"""Parts of `PromptNetPipeline`, one topic a file."""
