"""LoRAs that act in one conditioning."""

from typing import Any


class HookGroup:
    def __init__(self, lora: dict[str, Any], strength_model: float, strength_clip: float) -> None:
        self.lora, self.strengths = lora, (strength_model, strength_clip)


def create_hook_lora(lora: dict[str, Any], strength_model: float, strength_clip: float) -> HookGroup:
    return HookGroup(lora, strength_model, strength_clip)


def set_hooks_for_conditioning(cond: Any, hooks: HookGroup, append_hooks: bool = True, cache: Any = None) -> Any:
    return [[states, {**about, "hooks": hooks}] for states, about in cond]
