"""Compiled graphs compute what the networks compute, at another batch size, for whoever is in the batch."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from promptnet.export import ExportError, write_files
from promptnet.export.format_names import PARTS
from promptnet.export.graphs import verification
from promptnet.export.graphs.compile import EXPORTED_BATCH, traced
from promptnet.export.graphs.folder import read_graphs, write_graphs
from promptnet.export.graphs.parts import Graph, graphs_of
from promptnet.export.graphs.reader import main
from promptnet.export.graphs.runners import AotiGraph, OnnxGraph
from promptnet.export.graphs.verification import VERIFIED_BATCH, verify_graphs, without_loras
from promptnet.export.inspection import inspect_file
from promptnet.export.verification.verdict import verdict_path
from promptnet.inference.subject.lora import apply_loras
from promptnet.models.text_encoders import text_encoders_of
from tests.export.conftest import FAMILIES

ROOT = Path(__file__).parents[2]
TINY = ROOT / "checkpoints" / "tiny"
SMALL = ("vae_decoder", "text_encoder")


@pytest.fixture(scope="module")
def graphs(pipes: dict[str, Any]) -> dict[str, Graph]:
    return {graph.name: graph for graph in graphs_of(pipes["sd"], rank=3)}


@pytest.fixture(scope="module")
def onnx(pipes: dict[str, Any], graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graphs(pipes["sd"], list(graphs.values()), "onnx", tmp_path_factory.mktemp("graphs") / "onnx")


@pytest.fixture(scope="module")
def aoti(pipes: dict[str, Any], graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graphs(pipes["sd"], [graphs["text_encoder"]], "aoti", tmp_path_factory.mktemp("graphs") / "aoti")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader without a new process; what it computes is the same."""

    def read(job: dict[str, Any], passing: Path) -> None:
        (passing / "job.json").write_text(json.dumps(job), "utf-8")
        main(passing / "job.json")

    monkeypatch.setattr(verification, "_run_reader", read)


def rows_of(graph: Graph, values: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1] for name, value in values.items()}


# -- the graphs themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_has_a_graph_for_each_network(pipes: dict[str, Any], family: str) -> None:
    found = [graph.name for graph in graphs_of(pipes[family])]
    assert found == [name for name in PARTS if name != "text_encoder_2" or family == "sdxl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unets_graph_has_a_lora_in_its_own_row_alone(pipes: dict[str, Any], make_subject: Any, family: str) -> None:
    pipe = pipes[family]
    (graph,) = graphs_of(pipe, ["unet"], rank=2)
    loras = make_subject(pipe).unet_loras
    values = without_loras(graph, graph.drawn(2, 0))
    for name, lora in loras.items():
        values[f"lora.{name}.A"][1], values[f"lora.{name}.B"][1] = lora.A, lora.B
    extra = {"text_embeds": values["text_embeds"], "time_ids": values["time_ids"]} if family == "sdxl" else None
    with torch.no_grad(), apply_loras(pipe.unet, [None, loras]):
        expected = pipe.unet(
            values["sample"], values["timestep"], values["encoder_hidden_states"], added_cond_kwargs=extra
        ).sample
    found = graph(values)["prediction"]
    torch.testing.assert_close(found, expected)
    plain = graph(without_loras(graph, values))["prediction"]
    torch.testing.assert_close(found[0], plain[0])
    assert not torch.allclose(found[1], plain[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_encoders_graphs_read_words_as_the_pipeline_does(pipes: dict[str, Any], family: str) -> None:
    encoders = text_encoders_of(pipes[family])
    words = torch.randn(2, encoders.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoders.encode(["a S* b"], [{"S*": words}])
    tokens = encoders.tokenize(["a S* b"], [{"S*": 2}])
    names = ["text_encoder", "text_encoder_2"][: len(encoders.text_encoders)]
    states = []
    parts = words.split([encoder.width for encoder in encoders.text_encoders], dim=1)
    for graph, of_encoder, part in zip(graphs_of(pipes[family], names), tokens, parts, strict=True):
        place = of_encoder.places[0][0]
        values = {"input_ids": of_encoder.input_ids, "words": torch.zeros(1, 16, part.shape[1])}
        values["is_word"] = torch.zeros(1, 16, dtype=torch.bool)
        values["words"][0, place.start : place.start + 2] = part
        values["is_word"][0, place.start : place.start + 2] = True
        found = graph(values)
        states.append(found["hidden_states"])
    torch.testing.assert_close(torch.cat(states, dim=-1), expected.hidden_states)
    if family == "sdxl":
        torch.testing.assert_close(found["pooled"], expected.pooled)


def test_unknown_graphs_and_missing_networks_are_refused(pipes: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="no graph 'vae': choose from unet, vae_decoder"):
        graphs_of(pipes["sd"], ["vae"])
    with pytest.raises(ExportError, match="has no text_encoder_2"):
        graphs_of(pipes["sd"], ["unet", "text_encoder_2"])
    with pytest.raises(ExportError, match="rank=0 must be 1 or more"):
        graphs_of(pipes["sd"], rank=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_traced_graph_takes_any_batch(graphs: dict[str, Graph], name: str) -> None:
    module = traced(graphs[name]).module()
    for batch in (1, EXPORTED_BATCH, 5):
        values = graphs[name].drawn(batch, seed=batch)
        found = dict(zip(graphs[name].outputs, module(*values.values()), strict=True))
        for output, expected in graphs[name](values).items():
            torch.testing.assert_close(found[output], expected, rtol=1e-5, atol=1e-6)


# -- ONNX -------------------------------------------------------------------------------------------------------------


def test_onnx_graphs_are_verified_at_another_batch_size_in_a_fresh_process(
    onnx: Path, graphs: dict[str, Graph]
) -> None:
    assert VERIFIED_BATCH != EXPORTED_BATCH
    found = verify_graphs(list(graphs.values()), onnx)
    assert [verdict.file for verdict in found] == list(graphs)
    for verdict in found:
        assert verdict.is_good, verdict
        assert verdict.matched == verdict.found == len(graphs[verdict.file].inputs)
        assert all(values["relative"] <= 1e-5 for values in verdict.difference.values())
    records = json.loads(verdict_path(onnx).read_text("utf-8"))
    assert [record["is_good"] for record in records] == [True] * len(graphs)
    about = read_graphs(onnx)
    assert about["opset"] == 18
    assert about["graphs"]["unet"]["inputs"]["sample"] == {"shape": ["batch", 4, 16, 16], "dtype": "float32"}
    assert inspect_file(onnx).is_intact


def test_the_weights_of_another_network_are_found(
    onnx: Path, pipes: dict[str, Any], tmp_path: Path, in_this_process: None
) -> None:
    graphs = graphs_of(pipes["sd"], ["vae_decoder"])
    shutil.copytree(onnx, tmp_path / "onnx")
    bias = graphs[0].network.get_parameter("decoder.conv_out.bias")
    with torch.no_grad():
        bias += 1
        (verdict,) = verify_graphs(graphs, tmp_path / "onnx")
        bias -= 1
    assert re.match("vae_decoder: image differs by .* of itself from the network's", verdict.problems[0])


def test_a_graph_without_its_loras_is_found(
    onnx: Path, graphs: dict[str, Graph], tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(OnnxGraph):
        def __call__(self, values: Any) -> Any:
            return super().__call__({k: v * 0 if k.startswith("lora.") else v for k, v in values.items()})

    monkeypatch.setattr("promptnet.export.graphs.reader.OnnxGraph", Deaf)
    shutil.copytree(onnx, tmp_path / "onnx")
    (verdict,) = verify_graphs([graphs["promptnet"]], tmp_path / "onnx")
    assert "promptnet: LoRA layers make no difference" in verdict.problems


def test_an_altered_graph_is_not_run(onnx: Path, tmp_path: Path, graphs: dict[str, Graph]) -> None:
    copied = Path(shutil.copytree(onnx, tmp_path / "onnx"))
    file = copied / "vae_decoder.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ExportError, match=r"not as it was written: vae_decoder\.onnx"):
        OnnxGraph(copied, "vae_decoder")
    assert inspect_file(copied).is_intact is False
    with pytest.raises(ExportError, match="has no onnx graph 'vae'"):
        OnnxGraph(copied, "vae")
    (copied / "graphs.json").unlink()
    with pytest.raises(ExportError, match="is no folder of graphs"):
        OnnxGraph(copied, "vae_decoder")


def test_the_runner_of_the_documentation_runs(
    onnx: Path, pipes: dict[str, Any], make_static: Any, passport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "hosts" / "onnx.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def predict" in block]
    (tmp_path / "graphs").mkdir()
    shutil.copytree(onnx, tmp_path / "graphs" / "onnx")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "onnx.md", "exec"), found)

    pipe, static = pipes["sd"], make_static(pipes["sd"])
    paths = write_files(static, ["kohya"], tmp_path, "me", passport)
    encoders = text_encoders_of(pipe)
    tokens = encoders.tokenize(["a S*"], [{"S*": len(static.words)}])[0]
    place, ids = tokens.places[0][0].start, tokens.input_ids[0].numpy()
    person = found["encode"](ids, static.words.numpy(), place)
    plain = found["encode"](encoders.tokenize([""])[0].input_ids[0].numpy())
    sample = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    loras = found["stacks"](paths["kohya"], 1, 2)
    guided = found["predict"](sample.numpy(), 500, plain, person, loras, 3.0)

    with torch.no_grad(), apply_loras(pipe.unet, [None, static.loras]):
        states = torch.cat(
            [encoders.encode([""]).hidden_states, encoders.encode(["a S*"], [{"S*": static.words}]).hidden_states]
        )
        without, with_person = pipe.unet(sample.repeat(2, 1, 1, 1), 500, encoder_hidden_states=states).sample.split(1)
    torch.testing.assert_close(torch.from_numpy(guided), without + 3 * (with_person - without), rtol=1e-4, atol=1e-4)


# -- AOTInductor ------------------------------------------------------------------------------------------------------


def test_aoti_graphs_are_verified_in_a_fresh_process(aoti: Path, graphs: dict[str, Graph]) -> None:
    (verdict,) = verify_graphs([graphs["text_encoder"]], aoti)
    assert verdict.is_good, verdict
    assert verdict.difference["hidden_states"]["relative"] <= 1e-5


def test_machine_code_is_loaded_on_demand_and_unaltered_only(
    aoti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: loaded.append(path))
    with pytest.raises(ExportError, match="holds machine code"):
        AotiGraph(aoti, "text_encoder")
    copied = Path(shutil.copytree(aoti, tmp_path / "aoti"))
    (copied / "text_encoder.pt2").write_bytes(b"x" * 100)
    with pytest.raises(ExportError, match=r"not as it was written: text_encoder\.pt2"):
        AotiGraph(copied, "text_encoder", allow_native_code=True)
    manifest = json.loads((aoti / "graphs.json").read_text("utf-8"))
    shutil.copy(aoti / "text_encoder.pt2", copied)
    (copied / "graphs.json").write_text(json.dumps({**manifest, "torch": "1.0"}), "utf-8")
    with pytest.raises(ExportError, match=r"is for torch 1\.0"):
        AotiGraph(copied, "text_encoder", allow_native_code=True)
    assert loaded == []
    AotiGraph(aoti, "text_encoder", allow_native_code=True)
    assert len(loaded) == 1


# -- every family, and the embedded model -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "aoti"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_of_every_family(pipes: dict[str, Any], tmp_path: Path, family: str, kind: str) -> None:
    graphs = graphs_of(pipes[family])
    out = write_graphs(pipes[family], graphs, kind, tmp_path / kind)
    for verdict in verify_graphs(graphs, out):
        assert verdict.is_good, verdict


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["onnx", "aoti"])
def test_the_embedded_model(tmp_path: Path, kind: str) -> None:
    from promptnet import PromptNetPipeline

    pipe = PromptNetPipeline.from_pretrained(TINY, use_safetensors=True)
    graphs = graphs_of(pipe)
    for verdict in verify_graphs(graphs, write_graphs(pipe, graphs, kind, tmp_path / kind, base=str(TINY))):
        assert verdict.is_good, verdict
