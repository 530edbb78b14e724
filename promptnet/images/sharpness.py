"""How sharp a picture is, as one number."""

import numpy as np
from PIL import Image


def sharpness(image: Image.Image) -> float:
    """Variance of the grey picture's Laplacian (Pech-Pacheco et al., 2000): 0 for one colour, hundreds for detail.

    It depends on the size of the picture, so compare pictures of one size.
    """
    grey = np.asarray(image.convert("L"), np.float32)  # (H, W)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.var(around - 4 * grey[1:-1, 1:-1], dtype=np.float64))
