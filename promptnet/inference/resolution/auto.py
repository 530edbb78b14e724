"""Settings derived from the network, its trained size, the asked size and the number of steps.

What the published settings have in common, as a few lines: the deeper a layer computes, and the fewer places its maps
had at the trained size, the larger its factor, up to the ratio of the sides; the outermost depth stays plain; larger
images need factors for longer; four-fold ones need them progressively and with noise damping.

Unlike those, self-attention is scaled; an upsampler counts as a layer of the depth that it computes at, as behind a
nearest-neighbour enlargement by two, and dilated by two, it would see nothing finer than it was given; and height and
width have factors of their own, the longer side's halfway between its ratio and the other's, so that what is drawn is
neither repeated along it nor stretched all over it. Networks of few latents have rules of their own, with dispersed
kernels; for the others the published settings disperse nothing, and so does this.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from promptnet.inference.resolution.settings import Factors, ResolutionSettings

# A side this much longer or shorter is far from the trained one; nearer sizes are drawn well as they are.
FAR_RATIO = 1.25
# From this ratio on, the published settings are progressive and damped.
DAMPED_RATIO = 3.0
# Up to this ratio, the published settings leave layers plain whose maps have more places a side at the trained size:
# Stable Diffusion's from depth 1 on have 32 and fewer, SDXL's from depth 2 on.
LARGEST_MAP, LARGEST_MAP_RATIO = 32, 2.5
# Networks trained on this few latents a side see the whole image from their outermost depth, and compose it anew in
# any plain step: in the embedded model (16), the last of 20 alone draws a second head. For those, the whole ratio acts
# at every depth, and to the end.
FEW_LATENTS = 32
# A dispersed 5x5 kernel under factor 2 is not dilated, and sees 5/3 as far as the plain one: more like 1.5 than like 2.
# Nearer to 1.5, few latents are drawn better with such kernels everywhere; from here on, only with those of the
# outermost depth, which would break the image into blocks of two latents if it were dilated.
OUTERMOST_RATIO = 1.75


def automatic_settings(
    num_blocks: int,
    trained_size_px: tuple[float, float],
    size_px: tuple[int, int],
    num_inference_steps: int | None = None,
    *,
    trained_latents: int = 64,
    multiple_px: int | None = None,
    has_mid_block: bool = True,
) -> ResolutionSettings:
    """Settings for a size, plain if it is near the trained one.

    Args:
        num_blocks: how many down blocks the network has.
        trained_size_px: height and width of the images that it was trained on.
        size_px: height and width wanted.
        num_inference_steps: length of the drawing.
        trained_latents: the longer side of the latents that it was trained on.
        multiple_px: what drawn sides must be multiples of, where the caller can draw at another size and resize the
            image; None where it cannot.
        has_mid_block: whether the network has one; small ones may not.
    """
    vertical, horizontal = _ratios(size_px, trained_size_px)
    num_steps = num_inference_steps or 50
    name = f"auto for {size_px[1]}x{size_px[0]}"
    if not (is_far(vertical) or is_far(horizontal)):
        return ResolutionSettings(name, attention=False, num_steps=num_steps)
    generated = sampled_size(trained_size_px, size_px, multiple_px, trained_latents) if multiple_px else size_px
    if generated != size_px:
        how: dict[str, Any] = {"trained_latents": trained_latents, "has_mid_block": has_mid_block}
        nearer = automatic_settings(num_blocks, trained_size_px, generated, num_steps, **how)
        return replace(nearer, name=name, drawn_size_px=generated)
    largest = max(vertical, horizontal)
    if largest < FAR_RATIO:  # smaller
        return ResolutionSettings(name, num_steps=num_steps)
    active_steps = round(active_fraction(largest, trained_latents) * num_steps)
    damped = largest >= DAMPED_RATIO and trained_latents > FEW_LATENTS
    ratios = in_proportion((vertical, horizontal), trained_latents)
    factors = redilation(num_blocks, ratios, trained_latents)
    damped_factors = _damped(num_blocks, ratios, factors) if damped else {}
    if not has_mid_block:
        factors, damped_factors = _without_mid_block(factors), _without_mid_block(damped_factors)
    outermost, dispersed = dispersal(num_blocks, ratios, factors, trained_latents)
    return ResolutionSettings(
        name,
        factors={**factors, **outermost},
        active_steps=active_steps,
        dispersed=dispersed,
        dispersed_steps=active_steps if dispersed else 0,
        progressive="capped" if damped else "no",
        damped_factors=damped_factors,
        damped_steps=active_steps if damped_factors else 0,
        attention=True,
        num_steps=num_steps,
    )


def _without_mid_block(factors: Factors) -> Factors:
    return {name: pair for name, pair in factors.items() if name != "mid_block"}


def sampled_size(
    trained_size_px: tuple[float, float], size_px: tuple[int, int], multiple_px: int, trained_latents: int = 64
) -> tuple[int, int]:
    """The size to draw at, (height, width) in multiples, where the image can be resized afterwards.

    Much smaller images are drawn in proportion, one side as trained: at half the side there are too few latents for
    what the network knows, and no factor and no attention scaling draws a face in them. Networks of few latents draw
    all other sizes with the shorter side as trained: in larger images they show no more, and lose some of it.
    """
    ratios = _ratios(size_px, trained_size_px)
    if trained_latents <= FEW_LATENTS and any(map(is_far, ratios)):
        enlargement = 1 / min(ratios)
    elif max(ratios) <= 1 / FAR_RATIO:
        enlargement = 1 / max(ratios)
    else:
        return size_px
    height, width = (max(1, math.ceil(side * enlargement / multiple_px - 1e-9)) * multiple_px for side in size_px)
    return height, width


def _ratios(size_px: tuple[float, float], trained_size_px: tuple[float, float]) -> tuple[float, float]:
    return size_px[0] / trained_size_px[0], size_px[1] / trained_size_px[1]


def is_far(ratio: float) -> bool:
    """Whether a side of this many times the trained one is drawn badly by the plain network."""
    return ratio >= FAR_RATIO or ratio <= 1 / FAR_RATIO


def in_proportion(ratios: tuple[float, float], trained_latents: int = 64) -> tuple[float, float]:
    """The ratios, of which the larger becomes the root of the area's ratio, in halves; at least 1.5 for few latents."""
    shorter, longer = sorted(ratios)
    if shorter == longer:
        return ratios
    shorter = max(shorter, 1.0)
    middle = max(shorter, round(2 * math.sqrt(shorter * longer)) / 2)
    if trained_latents <= FEW_LATENTS and longer >= FAR_RATIO:
        middle = max(middle, 1.5)
    vertical, horizontal = (middle if ratio == longer else ratio for ratio in ratios)
    return vertical, horizontal


def active_fraction(ratio: float, trained_latents: int = 64) -> float:
    """The share of the steps in which factors act: 0.4 at the trained size, 0.6 at twice, 0.72 at four times."""
    if trained_latents <= FEW_LATENTS:
        return 1.0
    if ratio <= 2:
        return 0.4 + 0.2 * (max(ratio, 1) - 1)
    return 0.6 + 0.12 * min((ratio - 2) / 2, 1)


def depth_factor(depth: int, num_blocks: int, ratio: float, trained_latents: int = 64) -> float:
    """min(r, ceil(1 + depth (r-1) / deepest)), and 1 at the outermost depth and for sides not longer than trained.

    For few latents, r in the deepest blocks, which lay the image out, and the nearest whole number in the others,
    where resizing would cost detail.
    """
    deepest = num_blocks - 1
    if ratio < FAR_RATIO or depth < _shallowest(deepest, ratio, trained_latents):
        return 1.0
    if depth == deepest:
        return ratio
    if trained_latents <= FEW_LATENTS:
        return max(1.0, math.floor(ratio + 0.5))
    return min(ratio, math.ceil(1 + depth * (ratio - 1) / deepest))


def _shallowest(deepest: int, ratio: float, trained_latents: int) -> int:
    """The depth from which layers are re-dilated."""
    if ratio > LARGEST_MAP_RATIO:
        return min(1, deepest)
    halvings = math.ceil(math.log2(max(1.0, trained_latents / LARGEST_MAP)))
    return min(max(1, halvings), deepest)


def redilation(num_blocks: int, ratios: tuple[float, float], trained_latents: int = 64) -> Factors:
    """Factors by block, and by upsampler where that computes at another depth than its block.

    Args:
        num_blocks: how many down blocks the network has.
        ratios: height and width over the trained ones.
        trained_latents: as above.
    """
    pairs = [
        (
            depth_factor(depth, num_blocks, ratios[0], trained_latents),
            depth_factor(depth, num_blocks, ratios[1], trained_latents),
        )
        for depth in range(num_blocks)
    ]
    factors = {name: pairs[depth] for name, depth in _block_depths(num_blocks)}
    for index in range(num_blocks - 1):
        inner, outer = pairs[num_blocks - 1 - index], pairs[num_blocks - 2 - index]
        if inner != outer:
            factors[f"up_blocks.{index}.upsamplers"] = outer
    return {name: pair for name, pair in factors.items() if pair != (1.0, 1.0) or "upsamplers" in name}


def dispersal(
    num_blocks: int, ratios: tuple[float, float], factors: Factors, trained_latents: int
) -> tuple[Factors, tuple[str, ...]]:
    """Further factors of the outermost depth, and the blocks whose kernels are dispersed.

    Nothing for more latents, where the outermost depth stays plain and sees enough; nor for wide and tall images,
    where neither way of dispersing was better.

    Args:
        num_blocks: how many down blocks the network has.
        ratios: height and width over the trained ones, in proportion.
        factors: of re-dilation.
        trained_latents: as above.
    """
    if trained_latents > FEW_LATENTS or ratios[0] != ratios[1] or num_blocks < 2:
        return {}, ()
    if ratios[0] < OUTERMOST_RATIO:
        return {}, tuple(factors)
    factor = depth_factor(1, num_blocks, ratios[0], trained_latents)
    outermost = ("down_blocks.0", f"up_blocks.{num_blocks - 1}")
    return dict.fromkeys(outermost, (factor, factor)), outermost


def _block_depths(num_blocks: int) -> Iterator[tuple[str, int]]:
    yield from ((f"down_blocks.{index}", index) for index in range(num_blocks))
    yield "mid_block", num_blocks - 1
    yield from ((f"up_blocks.{index}", num_blocks - 1 - index) for index in range(num_blocks))


def _damped(num_blocks: int, ratios: tuple[float, float], factors: Factors) -> Factors:
    """The same in the blocks of depth 2 and more; with three blocks or fewer, half of it in the deepest."""
    depths = dict(_block_depths(num_blocks))
    if num_blocks > 3:
        return {name: pair for name, pair in factors.items() if depths[name.removesuffix(".upsamplers")] >= 2}
    deepest = num_blocks - 1
    vertical, horizontal = (max(1.0, ratio / 2) for ratio in ratios)
    return {name: (vertical, horizontal) for name, depth in depths.items() if depth == deepest}
