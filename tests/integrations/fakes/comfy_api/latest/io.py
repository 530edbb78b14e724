"""Inputs, outputs and schemas, with the arguments that the real ones take; an unknown one is a TypeError."""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(kw_only=True)
class _Plain:
    io_type: ClassVar[str] = ""
    has_widget: ClassVar[bool] = False

    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict[str, Any] | None = None
    raw_link: bool | None = None
    advanced: bool | None = None


@dataclass
class _Input(_Plain):
    id: str


@dataclass
class _Widget(_Input):
    has_widget: ClassVar[bool] = True

    default: Any = field(default=None, kw_only=True)
    socketless: bool | None = field(default=None, kw_only=True)
    force_input: bool | None = field(default=None, kw_only=True)


@dataclass
class _Number(_Widget):
    min: Any = field(default=None, kw_only=True)
    max: Any = field(default=None, kw_only=True)
    step: Any = field(default=None, kw_only=True)


@dataclass
class _Int(_Number):
    control_after_generate: bool | None = field(default=None, kw_only=True)


@dataclass
class _Float(_Number):
    round: float | None = field(default=None, kw_only=True)


@dataclass
class _String(_Widget):
    multiline: bool = field(default=False, kw_only=True)
    placeholder: str | None = field(default=None, kw_only=True)
    dynamic_prompts: bool | None = field(default=None, kw_only=True)


@dataclass
class _Combo(_Widget):
    options: list[Any] = field(default_factory=list, kw_only=True)


@dataclass
class _Boolean(_Widget):
    label_on: str | None = field(default=None, kw_only=True)
    label_off: str | None = field(default=None, kw_only=True)


@dataclass
class _Output:
    io_type: ClassVar[str] = ""

    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False


def _kind(io_type: str, of_input: type[_Input]) -> Any:
    """A type of links with its `Input` and `Output`."""
    members = {"io_type": io_type}
    return type(
        io_type, (), {"Input": type("Input", (of_input,), members), "Output": type("Output", (_Output,), members)}
    )


def Custom(io_type: str) -> Any:
    return _kind(io_type, _Input)


Int, Float, String = _kind("INT", _Int), _kind("FLOAT", _Float), _kind("STRING", _String)
Boolean, Combo = _kind("BOOLEAN", _Boolean), _kind("COMBO", _Combo)
Image, Conditioning, Clip = (_kind(name, _Input) for name in ("IMAGE", "CONDITIONING", "CLIP"))


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    execute: Any
    fingerprint_inputs: Any
    validate_inputs: Any


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args = args
