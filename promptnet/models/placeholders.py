"""How prompts name their subjects; without torch, for programs that only look at prompts."""

import re

PLACEHOLDER = re.compile(r"(?<!\w)S\d*\*")


def find_placeholders(prompt: str) -> list[str]:
    """The placeholders of a prompt in order, repeated ones repeatedly: "S1* and S2*" gives ["S1*", "S2*"]."""
    return PLACEHOLDER.findall(prompt)
