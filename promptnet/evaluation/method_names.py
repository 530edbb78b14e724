"""Names of what evaluations compare, apart from the modules that run them, so that commands can check names at once."""

STYLED, SWITCH, ONE, EIGHT, LEDITS = "styled-prompt", "fixed-switch", "one-seed", "eight-seeds", "ledits++"
EDIT_METHODS = (STYLED, SWITCH, ONE, EIGHT, LEDITS)
"""In printing order: weights 0, weights 1 then 0, learned on one seed, learned on several, a baseline."""

LADDER = ("direct", "attention", "redilation", "+dispersion", "+damping", "adapted", "auto")
"""The plain network; Attn-SF alone; ScaleCrafter's re-dilation alone, with dispersed kernels, with damped guidance
(each added to re-dilation alone); what `auto` makes of all at the requested size, as `adapt_resolution` does in any
pipeline; and what it does in `PromptNetPipeline`, which may generate at another size and resize the image."""

EXPORT_METHODS = ("defaults", "exact", "stock", "table", "distilled", "mean", "words")
"""Our pipeline with its defaults and with plain guidance; `in_stock_pipeline`; a word table; kohya with
textual-inversion, distilled and with mean words; textual-inversion alone, mean words."""

PROFUSION_ROWS = (
    *("prompt-only", "textual-inversion", "dreambooth", "dreambooth-lora", "e4t", "profusion"),
    *("untuned", "no-fusion", "no-refinement", "no-augmentation"),
)
"""Rows of ProFusion's table: the base model alone, four baselines, ours, and ours without one of its parts."""
PROFUSION_PATTERNS = (r"fusion-steps-(\d+)", r"guidance-(\d+(?:\.\d+)?)")
"""Ours with another number of fusion steps, and with another weight of the subject."""

SEGA, LEARNED = "sega", "disentanglement"
PAPER_EDIT_ROWS = (STYLED, SWITCH, LEARNED, LEDITS, SEGA)

SCALES = ("0.25x", "0.5x", "2x", "4x", "6.25x", "8x", "16x")
"""Numbers of pixels over the trained number."""
SIZE_ROWS = ("direct", "attn-sf", "scalecrafter", "auto")
