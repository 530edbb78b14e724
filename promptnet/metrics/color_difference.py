"""How different two colours look: CIEDE2000 (Sharma, Wu, Dalal 2005, "The CIEDE2000 color-difference formula")."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def ciede2000(first: npt.ArrayLike, second: npt.ArrayLike) -> Array:
    """Return the CIEDE2000 distance of colours in CIELAB.

    Args:
        first: (..., 3), L*, a*, b*.
        second: the same shape.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    chroma = (np.hypot(one[..., 1], one[..., 2]) + np.hypot(other[..., 1], other[..., 2])) / 2
    gain = 1 + 0.5 * (1 - np.sqrt(chroma**7 / (chroma**7 + 25.0**7)))
    (l1, c1, h1), (l2, c2, h2) = _polar(one, gain), _polar(other, gain)
    dh = (h2 - h1 + 180) % 360 - 180
    dh = np.where(c1 * c2 == 0, 0.0, dh)
    d_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh) / 2)  # Delta H'
    lightness, c = (l1 + l2) / 2, (c1 + c2) / 2
    hue = _mean_hue(h1, h2, c1 * c2 == 0)
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    s_c, s_h = 1 + 0.045 * c, 1 + 0.015 * c * t
    turn = -2 * np.sqrt(c**7 / (c**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    light, colour, tint = (l2 - l1) / s_l, (c2 - c1) / s_c, d_hue / s_h
    return np.sqrt(light**2 + colour**2 + tint**2 + turn * colour * tint)


def _polar(color: Array, gain: Array) -> tuple[Array, Array, Array]:
    a, b = gain * color[..., 1], color[..., 2]
    return color[..., 0], np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360


def _mean_hue(h1: Array, h2: Array, is_grey: npt.NDArray[np.bool_]) -> Array:
    total = h1 + h2
    apart = np.abs(h1 - h2) > 180
    around = np.where(total < 360, total + 360, total - 360)
    return np.where(is_grey, total, np.where(apart, around, total) / 2)


def _cos(degrees: Array) -> Array:
    return np.cos(np.radians(degrees))
