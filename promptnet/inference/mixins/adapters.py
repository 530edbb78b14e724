"""Style LoRAs and textual inversions beside subjects, loaded as diffusers' own pipelines load them."""

from typing import Any

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin


class AdaptersMixin(StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin):
    """`load_lora_weights`, `set_adapters`, `load_textual_inversion` and what belongs to them.

    A subject's own LoRA layers travel with the call and add up with a LoRA that is loaded. `fuse_lora` changes the base
    model's weights, so that subjects made before are refused until `unfuse_lora`.
    """

    text_encoder_2: Any
    _lora_loadable_modules = ["unet", "text_encoder", "text_encoder_2"]  # noqa: RUF012

    def load_lora_weights(self, source: Any, adapter_name: str | None = None, **options: Any) -> None:
        """Load a LoRA into the U-Net and the text encoders, of SDXL into both.

        Args:
            source: a file, folder, Hub id or state dict, as in diffusers.
            adapter_name: for `set_adapters`.
            options: of diffusers, such as `weight_name`.
        """
        is_xl = self.text_encoder_2 is not None
        kind: Any = StableDiffusionXLLoraLoaderMixin if is_xl else StableDiffusionLoraLoaderMixin
        kind.load_lora_weights(self, source, adapter_name=adapter_name, **options)
