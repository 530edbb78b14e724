"""Settings derived from the network, its trained size, the asked size and the number of steps.

What the published settings have in common, as a few lines: deeper blocks take larger factors, up to the ratio of the
sides; larger pictures need them for longer; four-fold ones need them progressively and with noise damping. Unlike
those, height and width have factors of their own, and self-attention is scaled.
"""

import math

from promptnet.inference.resolution.settings import ResolutionSettings

# A side this much longer or shorter is far from the trained one; nearer sizes are drawn well as they are.
FAR_RATIO = 1.25
# From this ratio on, the published settings are progressive and damped.
DAMPED_RATIO = 3.0
# Up to this ratio, the published settings for three blocks (SDXL) leave all but the deepest plain.
DEEPEST_ONLY_RATIO = 2.5


def automatic_settings(
    num_blocks: int,
    trained_size_px: tuple[float, float],
    size_px: tuple[int, int],
    num_inference_steps: int | None = None,
) -> ResolutionSettings:
    """Settings for a size, plain if it is near the trained one.

    Args:
        num_blocks: how many down blocks the network has.
        trained_size_px: height and width of the pictures that it was trained on.
        size_px: height and width wanted.
        num_inference_steps: length of the drawing.
    """
    vertical, horizontal = (size / trained for size, trained in zip(size_px, trained_size_px, strict=True))
    num_steps = num_inference_steps or 50
    name = f"auto for {size_px[1]}x{size_px[0]}"
    if not (is_far(vertical) or is_far(horizontal)):
        return ResolutionSettings(name, attention=False, num_steps=num_steps)
    largest = max(vertical, horizontal)
    if not largest >= FAR_RATIO:
        return ResolutionSettings(name, attention=True, num_steps=num_steps)  # smaller: Attn-SF alone
    active_steps = round(active_share(largest) * num_steps)
    damped = largest >= DAMPED_RATIO
    return ResolutionSettings(
        name,
        factors=_by_block(num_blocks, (vertical, horizontal)),
        active_steps=active_steps,
        progressive="capped" if damped else "no",
        damped_factors=_damped_by_block(num_blocks, (vertical, horizontal)) if damped else {},
        damped_steps=active_steps if damped else 0,
        attention=True,
        num_steps=num_steps,
    )


def is_far(ratio: float) -> bool:
    """Whether a side of this many times the trained one is drawn badly by the plain network."""
    return ratio >= FAR_RATIO or ratio <= 1 / FAR_RATIO


def active_share(ratio: float) -> float:
    """The share of the steps in which factors act: 0.4 at the trained size, 0.6 at twice, 0.72 at four times."""
    if ratio <= 2:
        return 0.4 + 0.2 * (max(ratio, 1) - 1)
    return 0.6 + 0.12 * min((ratio - 2) / 2, 1)


def depth_factor(depth: int, num_blocks: int, ratio: float) -> float:
    """min(r, ceil(1 + depth (r-1) / deepest)), and 1 at the outermost depth and for sides not longer than trained."""
    deepest = num_blocks - 1
    shallowest = 2 if num_blocks == 3 and ratio <= DEEPEST_ONLY_RATIO else min(1, deepest)
    if ratio < FAR_RATIO or depth < shallowest:
        return 1.0
    return ratio if deepest == 0 else min(ratio, math.ceil(1 + depth * (ratio - 1) / deepest))


def _by_block(num_blocks: int, ratios: tuple[float, float]) -> dict[str, tuple[float, float]]:
    deepest = num_blocks - 1
    depths = {f"down_blocks.{index}": index for index in range(num_blocks)}
    depths |= {"mid_block": deepest}
    depths |= {f"up_blocks.{index}": deepest - index for index in range(num_blocks)}
    factors = {name: _pair(depth, num_blocks, ratios) for name, depth in depths.items()}
    return {name: pair for name, pair in factors.items() if pair != (1.0, 1.0)}


def _pair(depth: int, num_blocks: int, ratios: tuple[float, float]) -> tuple[float, float]:
    return depth_factor(depth, num_blocks, ratios[0]), depth_factor(depth, num_blocks, ratios[1])


def _damped_by_block(num_blocks: int, ratios: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """The same in the blocks of depth 2 and more; with three blocks or fewer, half of it in the deepest."""
    deepest = num_blocks - 1
    if num_blocks > 3:
        shallow = {"down_blocks.1", *(f"up_blocks.{index}" for index in range(num_blocks) if deepest - index < 2)}
        return {name: pair for name, pair in _by_block(num_blocks, ratios).items() if name not in shallow}
    vertical, horizontal = (max(1.0, ratio / 2) for ratio in ratios)
    return dict.fromkeys((f"down_blocks.{deepest}", "mid_block", "up_blocks.0"), (vertical, horizontal))
