"""`promptnet evaluate`: measure quality on avatars whose true answers are known."""

from promptnet.commands.evaluate.edits import edits
from promptnet.commands.evaluate.exports import exports
from promptnet.commands.evaluate.paper import paper
from promptnet.commands.evaluate.people import identity, two_people
from promptnet.commands.evaluate.resolution import resolution
from promptnet.commands.evaluate.subjects import avatars, base_model, tune

__all__ = [
    "avatars",
    "base_model",
    "edits",
    "exports",
    "identity",
    "paper",
    "resolution",
    "tune",
    "two_people",
]
