"""Blending of two people in one image: does what is one's appear on the other?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Fields = Mapping[str, str]


@dataclass(frozen=True)
class Blending:
    """What a judge found of two people in one image.

    Args:
        identity: share of each person's fields that are there, the mean of both.
        blended: of the fields in which the two differ, the share that has the other's value, the mean of both; 0 where
            they differ in none.
        swapped: whether the first was found where the second was asked for.
    """

    identity: float
    blended: float
    swapped: bool = False


def blending(found: Sequence[Fields], people: Sequence[Fields], *, free: bool = False) -> Blending:
    """Score two people in one image.

    Args:
        found: a judge's predictions at the place of the first and of the second.
        people: the true fields of the two.
        free: whether the two may also stand the other way round, where nothing said who is where; then the order with
            the better identity counts.

    Raises:
        ValueError: there are not two of each.
    """
    if len(found) != 2 or len(people) != 2:
        raise ValueError(f"blending is of two people, but there are {len(found)} places and {len(people)} people.")
    first = _in_order(found, people, swapped=False)
    if not free:
        return first
    second = _in_order(found[::-1], people, swapped=True)
    return second if second.identity > first.identity else first


def _in_order(found: Sequence[Fields], people: Sequence[Fields], *, swapped: bool) -> Blending:
    identity = [_share(seen, own, own) for seen, own in zip(found, people, strict=True)]
    differing = [field for field in people[0] if field in people[1] and people[0][field] != people[1][field]]
    blended = [_share(seen, other, differing) for seen, other in zip(found, people[::-1], strict=True)]
    return Blending(sum(identity) / 2, sum(blended) / 2, swapped)


def _share(seen: Fields, wanted: Fields, fields: Sequence[str] | Fields) -> float:
    """The share of these fields in which `seen` has the wanted value."""
    return sum(seen.get(field) == wanted[field] for field in fields) / len(fields) if fields else 0.0
