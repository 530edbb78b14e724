"""The node pack, loaded as ComfyUI loads one: by its folder's path, beside fakes of what ComfyUI offers."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
FAKES = Path(__file__).parent / "fakes"
OF_COMFY = ("comfy", "comfy_api", "folder_paths")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the embedded base model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "diffusers").mkdir()
    (folder / "diffusers" / "tiny").symlink_to(ROOT / "checkpoints" / "tiny")
    return folder


@pytest.fixture(scope="module")
def nodes(models_dir: Path) -> Iterator[dict[str, Any]]:
    """Node classes by their ids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAKES)
        import folder_paths

        folder_paths.models_dir = str(models_dir)
        folder_paths.folder_names_and_paths = {"diffusers": ([str(models_dir / "diffusers")], {"folder"})}
        name = str(PACK)  # what ComfyUI calls the module
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        listed = asyncio.run(_nodes_of(module))
        yield {node.define_schema().node_id: node for node in listed}
        for loaded in [key for key in sys.modules if key.split(".")[0] in OF_COMFY or key.startswith(f"{name}.")]:
            del sys.modules[loaded]


async def _nodes_of(module: Any) -> list[Any]:
    extension = await module.comfy_entrypoint()
    return await extension.get_node_list()


@pytest.fixture
def run(nodes: dict[str, Any]) -> Callable[..., Any]:
    """Execute a node as ComfyUI does: in inference mode, with its schema's defaults. One output comes as it is."""

    def execute(node_id: str, **given: Any) -> Any:
        schema = nodes[node_id].define_schema()
        defaults = {each.id: each.default for each in schema.inputs if each.has_widget and each.default is not None}
        assert set(given) <= {each.id for each in schema.inputs}
        with torch.inference_mode():
            found = nodes[node_id].execute(**{**defaults, **given}).args
        assert len(found) == len(schema.outputs)
        return found[0] if len(found) == 1 else found

    return execute


@pytest.fixture
def comfy(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The fakes' state, empty."""
    from types import SimpleNamespace

    import comfy.model_management
    import comfy.utils

    monkeypatch.setattr(comfy.model_management, "num_checks", 0)
    monkeypatch.setattr(comfy.model_management, "stop_after", None)
    comfy.model_management.freed.clear()
    comfy.utils.shown.clear()
    return SimpleNamespace(management=comfy.model_management, utils=comfy.utils)


@pytest.fixture(scope="module")
def pipeline(nodes: dict[str, Any]) -> Any:
    """The embedded model's pipeline, as the node loads it."""
    with torch.inference_mode():
        return nodes["PromptNetLoadBase"].execute("tiny").args[0]


@pytest.fixture(scope="module")
def subject(pipeline: Any) -> Any:
    """Somebody, not tuned."""
    return pipeline.encode(image_of_noise(), registration="never", allow_foreign=True)


def image_of_noise() -> Any:
    from PIL import Image

    pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def noise_batch(count: int = 1, channels: int = 3) -> torch.Tensor:
    """An IMAGE."""
    return torch.rand(count, 64, 64, channels, generator=torch.Generator().manual_seed(0))
