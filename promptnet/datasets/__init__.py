"""Where images come from: avatars, faces in shards, and their preparation."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.datasets.avatars.files import write_avatars
    from promptnet.datasets.avatars.module import AvatarDataModule, PairDataModule
    from promptnet.datasets.avatars.person import sample_avatar
    from promptnet.datasets.avatars.render import render_avatar
    from promptnet.datasets.faces.module import FaceDataModule
    from promptnet.datasets.prepare.options import PrepareOptions
    from promptnet.datasets.prepare.report import load_prepared
    from promptnet.datasets.prepare.run import Prepared, prepare_images

__all__ = [
    "AvatarDataModule",
    "FaceDataModule",
    "PairDataModule",
    "PrepareOptions",
    "Prepared",
    "load_prepared",
    "prepare_images",
    "render_avatar",
    "sample_avatar",
    "write_avatars",
]

_HOMES = {
    "AvatarDataModule": "promptnet.datasets.avatars.module",
    "FaceDataModule": "promptnet.datasets.faces.module",
    "PairDataModule": "promptnet.datasets.avatars.module",
    "PrepareOptions": "promptnet.datasets.prepare.options",
    "Prepared": "promptnet.datasets.prepare.run",
    "load_prepared": "promptnet.datasets.prepare.report",
    "prepare_images": "promptnet.datasets.prepare.run",
    "render_avatar": "promptnet.datasets.avatars.render",
    "sample_avatar": "promptnet.datasets.avatars.person",
    "write_avatars": "promptnet.datasets.avatars.files",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
