"""Names of what can be written, apart from the modules that write it, so that commands can check names at once."""

FILES = ("kohya", "diffusers", "peft", "textual-inversion", "word-table")
"""Of a subject."""

GRAPHS = ("onnx", "aoti")
"""Of the networks."""

ALONE = ("bundle", "prompt-schedule")
"""Of an encoder, and of an edit card."""

PARTS = ("unet", "vae_decoder", "text_encoder", "text_encoder_2", "promptnet")
"""The networks that have graphs."""
