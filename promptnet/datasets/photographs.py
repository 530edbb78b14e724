"""Photographs that come with Python packages: images that a model of drawn portraits cannot know."""

from importlib.resources import files
from pathlib import Path

_PLACES = {
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    "skimage": tuple(
        f"data/{name}"
        for name in (
            "astronaut.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "hubble_deep_field.jpg",
            "moon.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        )
    ),
}


def package_photographs() -> list[Path]:
    """Return the photographs in the packages that are installed: one of matplotlib's, ten of scikit-image's."""
    return [path for package, names in _PLACES.items() for path in _found(package, names)]


def _found(package: str, names: tuple[str, ...]) -> list[Path]:
    try:
        folder = Path(str(files(package)))
    except ModuleNotFoundError:
        return []
    return [folder / name for name in names if (folder / name).is_file()]
