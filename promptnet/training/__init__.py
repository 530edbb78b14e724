"""Lightning modules and callbacks: pretraining, learning edits, the embedded model's stages."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.training.diffusion_stage import DiffusionStage
    from promptnet.training.editing.learn import learn_card
    from promptnet.training.editing.stage import EditStage
    from promptnet.training.embedded.clip import ClipStage
    from promptnet.training.embedded.judge import JudgeStage
    from promptnet.training.embedded.unet import BaseModelStage
    from promptnet.training.embedded.vae import AutoencoderStage
    from promptnet.training.pretrain.stage import PretrainStage
    from promptnet.training.stage import Stage

__all__ = [
    "AutoencoderStage",
    "BaseModelStage",
    "ClipStage",
    "DiffusionStage",
    "EditStage",
    "JudgeStage",
    "PretrainStage",
    "Stage",
    "learn_card",
]

_HOMES = {
    "AutoencoderStage": "promptnet.training.embedded.vae",
    "BaseModelStage": "promptnet.training.embedded.unet",
    "ClipStage": "promptnet.training.embedded.clip",
    "DiffusionStage": "diffusion_stage",
    "EditStage": "promptnet.training.editing.stage",
    "JudgeStage": "promptnet.training.embedded.judge",
    "PretrainStage": "promptnet.training.pretrain.stage",
    "Stage": "stage",
    "learn_card": "promptnet.training.editing.learn",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, {"DisentangleStage": "EditStage"})
