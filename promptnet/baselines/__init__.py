"""Baselines: the methods that the papers compare with, for base models that have no encoder, too."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.baselines.config import (
        DreamBoothConfig,
        DreamBoothLoRAConfig,
        E4TConfig,
        TextualInversionConfig,
        load_config,
    )
    from promptnet.baselines.dreambooth import dreambooth_folder
    from promptnet.baselines.dreambooth_lora import dreambooth_lora_subject
    from promptnet.baselines.e4t import E4TPretraining, e4t_subject, pretrain_e4t
    from promptnet.baselines.textual_inversion import textual_inversion_subject

__all__ = [
    "DreamBoothConfig",
    "DreamBoothLoRAConfig",
    "E4TConfig",
    "E4TPretraining",
    "TextualInversionConfig",
    "dreambooth_folder",
    "dreambooth_lora_subject",
    "e4t_subject",
    "load_config",
    "pretrain_e4t",
    "textual_inversion_subject",
]

_HOMES = {
    "DreamBoothConfig": "promptnet.baselines.config",
    "DreamBoothLoRAConfig": "promptnet.baselines.config",
    "E4TConfig": "promptnet.baselines.config",
    "E4TPretraining": "promptnet.baselines.e4t",
    "TextualInversionConfig": "promptnet.baselines.config",
    "dreambooth_folder": "promptnet.baselines.dreambooth",
    "dreambooth_lora_subject": "promptnet.baselines.dreambooth_lora",
    "e4t_subject": "promptnet.baselines.e4t",
    "load_config": "promptnet.baselines.config",
    "pretrain_e4t": "promptnet.baselines.e4t",
    "textual_inversion_subject": "promptnet.baselines.textual_inversion",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
