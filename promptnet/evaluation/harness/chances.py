"""What guessing gets: the best constant answers about people and about what is asked of them.

Distributions are counted over sampled people, for a split has no end.
"""

import functools
import random
from collections import Counter

from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, FIELDS, World, sample_attributes, sample_identity
from promptnet.evaluation.harness.tasks import Split
from promptnet.metrics.scores import best_constant_guess

NUM_SAMPLED = 4000
"""People that a distribution is counted over."""
_SEED = 20_000  # people of no other stream


@functools.cache
def identity_chances(split: Split, world: World = "known") -> dict[str, dict[str, float]]:
    """Return the accuracy of the best constant guess of identity fields, given the style, over the split's people."""
    people = (sample_identity(_SEED, index, split, world) for index in range(NUM_SAMPLED))
    return best_constant_guess((who.style, who.record()) for who in people)


@functools.cache
def attribute_chances() -> dict[str, dict[str, float]]:
    """Return the accuracy of the best constant guess of requested fields; the style tells nothing about them.

    A requested value is any other than the reference's: of references with probabilities p, value v is requested with
    p_v * sum over r != v of p_r / (1 - p_r). All fields but the colour of clothes are uniform.
    """
    chances = {field: 1 / len(FIELDS[field]) for field in ATTRIBUTE_FIELDS} | {"clothes_color": _clothes_color_chance()}
    return dict.fromkeys(FIELDS["style"], chances)


def _clothes_color_chance() -> float:
    rng = random.Random("promptnet clothes")
    style = FIELDS["style"][0]
    drawn = Counter(sample_attributes(style, rng).record()["clothes_color"] for _ in range(NUM_SAMPLED))
    p = {word: count / NUM_SAMPLED for word, count in drawn.items()}
    return max(p[v] * sum(p[r] / (1 - p[r]) for r in p if r != v) for v in p)
