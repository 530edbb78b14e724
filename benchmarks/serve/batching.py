"""Many users in one batch: what it costs against one user's images, PEFT's adapters, and one user after another.

    python benchmarks/serve/batching.py --users 8 --rounds 20 --orders 1000

One evaluation of the U-Net holds a row of each of N people, with LoRA layers of their own. Timed in turn, in random
order, are

    together    N people, stacks in fixed buffers (`promptnet.inference.sampling.together`)
    one user    N rows of one person, the layers given once
    peft        N people as N adapters, `adapter_names` for each row
    in turn     N people, one call each

Printed are medians of the ratios to `together` within a round, the time that bringing in a person takes (decrypting and
checking the first time, copying into the buffers each time), and the largest difference of a row over random orders and
with NaN in a neighbour's layers.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=HERE / "checkpoints" / "tiny")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    from promptnet import PromptNetPipeline

    pipe = PromptNetPipeline.from_pretrained(asked.base, use_safetensors=True).to(asked.device)
    people = [person(pipe, seed, asked.rank) for seed in range(asked.users)]
    with torch.no_grad():
        times(pipe, people, asked.rounds)
        bringing_in(pipe, people)
        orders(pipe, people, asked.orders)


def person(pipe: Any, seed: int, rank: int) -> dict[str, Any]:
    """Random layers, as large as tuned ones."""
    from promptnet.inference.subject.lora import LoRALayer, initial_loras, key_value_layers

    generator = torch.Generator().manual_seed(seed)
    loras = initial_loras(key_value_layers(pipe.unet), rank, generator)
    return {
        name: LoRALayer(lora.A, 0.1 * torch.randn(lora.B.shape, generator=generator).to(lora.A))
        for name, lora in loras.items()
    }


def evaluation(pipe: Any, loras: Any, seed: int) -> Any:
    """A row of one drawing, at a step of its own."""
    from promptnet.inference.sampling.loop import UNetInputs
    from promptnet.inference.sampling.schedule import Step
    from promptnet.inference.sampling.together import _Asked
    from promptnet.inference.subject.lora import RowLoRAs

    generator, unet = torch.Generator().manual_seed(seed), pipe.unet
    side, width = unet.config["sample_size"], unet.config["cross_attention_dim"]
    x = torch.randn(1, unet.config["in_channels"], side, side, generator=generator).to(unet.device)
    length = pipe.tokenizer.model_max_length
    states = torch.randn(1, length, width, generator=generator).to(unet.device)
    step = Step(0, 1, torch.tensor(37 * seed % 1000), 0.5, 0.6)
    return _Asked(unet, x, step, UNetInputs(states, loras=RowLoRAs((loras,))), None, str(seed), 0.0)


def times(pipe: Any, people: Sequence[Any], rounds: int) -> None:
    from promptnet.inference.sampling.together import Together

    shared = Together(pipe.unet)
    asked = [evaluation(pipe, loras, seed) for seed, loras in enumerate(people)]
    same = [evaluation(pipe, people[0], seed) for seed in range(len(people))]
    kinds: dict[str, Callable[[], Any]] = {
        "together": lambda: shared._evaluated(asked),
        "one user": lambda: one_user(pipe, same, people[0]),
        "in turn": lambda: [one_user(pipe, [one], loras) for one, loras in zip(asked, people, strict=True)],
        "peft": with_peft(pipe, asked, people),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(rounds + 1):
        for kind in random.sample(list(kinds), len(kinds)):
            start_s = time.perf_counter()
            kinds[kind]()
            if pipe.unet.device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                found[kind].append(time.perf_counter() - start_s)
    for kind, seconds in found.items():
        ratios = [own / other for own, other in zip(found["together"], seconds, strict=True)]
        share = statistics.median(ratios)
        print(f"{kind:9} {1000 * statistics.median(seconds):8.1f} ms; together takes {share:.2f} of it")


def one_user(pipe: Any, asked: Sequence[Any], loras: Any) -> Tensor:
    from promptnet.inference.subject.lora import apply_loras

    with apply_loras(pipe.unet, [loras] * len(asked)):
        return call(pipe.unet, asked)


def call(unet: Any, asked: Sequence[Any]) -> Tensor:
    timesteps = torch.stack([one.step.timestep for one in asked])
    states = torch.cat([one.inputs.encoder_hidden_states for one in asked])
    x = torch.cat([one.x for one in asked])
    return unet(x, timesteps.to(x.device), encoder_hidden_states=states, return_dict=False)[0]


def with_peft(pipe: Any, asked: Sequence[Any], people: Sequence[Any]) -> Callable[[], Tensor]:
    """A copy of the U-Net with an adapter for each person, and the name of each row's."""
    import copy

    from peft import LoraConfig, PeftModel, get_peft_model

    rank = next(iter(people[0].values())).rank
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(people[0]))
    model: PeftModel = get_peft_model(copy.deepcopy(pipe.unet), config, adapter_name="p0")  # type: ignore[assignment]
    for number in range(1, len(people)):
        model.add_adapter(f"p{number}", config)
    inner: Any = model.base_model.model
    for number, loras in enumerate(people):
        for name, lora in loras.items():
            layer: Any = inner.get_submodule(name)
            layer.lora_A[f"p{number}"].weight.copy_(lora.A)
            layer.lora_B[f"p{number}"].weight.copy_(lora.B)
    names = [f"p{number}" for number in range(len(people))]
    model.eval()
    hooks: list[Any] = []

    def named(_layer: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "adapter_names": names}

    def mixed() -> Tensor:
        for name in people[0]:
            layer: Any = inner.get_submodule(name)
            hooks.append(layer.register_forward_pre_hook(named, with_kwargs=True))
        try:
            return call(inner, asked)
        finally:
            while hooks:
                hooks.pop().remove()

    expected = torch.cat([one_user(pipe, [one], loras) for one, loras in zip(asked, people, strict=True)])
    torch.testing.assert_close(mixed(), expected, rtol=1e-3, atol=1e-3)
    return mixed


def bringing_in(pipe: Any, people: Sequence[Any]) -> None:
    """From the encrypted file to layers in a batch's buffers."""
    from promptnet import Subject
    from promptnet.inference.subject.fingerprint import fingerprint
    from promptnet.inference.subject.lora import key_value_layers
    from promptnet.inference.subject.lora_buffers import LoRABuffers
    from promptnet.serve.store import Store
    from promptnet.serve.vault import Vault

    side = pipe.unet.config["sample_size"]
    loras = {f"unet.{name}": lora.to("cpu") for name, lora in people[0].items()}
    tensors = torch.randn(1, 4, side, side), torch.randn(1, 17, 64), torch.ones(1)
    subject = Subject(*tensors, "person", fingerprint(pipe), loras)
    buffers = LoRABuffers(key_value_layers(pipe.unet), 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), Vault(Path(folder) / "keys"))
        store.put("user_a", "subjects", "sub_a", subject.to_bytes())
        first, again = [], []
        for _ in range(200):
            start_s = time.perf_counter()
            found = Subject.from_bytes(store.get("user_a", "subjects", "sub_a")).to(pipe.unet.device)
            first.append(time.perf_counter() - start_s)
            unet_loras = found.unet_loras
            start_s = time.perf_counter()
            buffers.filled([unet_loras])
            again.append(time.perf_counter() - start_s)
    for kind, seconds in (("from the cache into a batch", again), ("from the encrypted file into the cache", first)):
        milliseconds = sorted(1000 * one for one in seconds)
        print(f"a person {kind}: median {milliseconds[100]:.2f} ms, p99 {milliseconds[197]:.2f} ms")


def orders(pipe: Any, people: Sequence[Any], count: int) -> None:
    from promptnet.inference.sampling.together import Together
    from promptnet.inference.subject.lora import LoRALayer

    shared = Together(pipe.unet)
    asked = [evaluation(pipe, loras, seed) for seed, loras in enumerate(people)]
    alone = [shared._evaluated([one])[0] for one in asked]
    most, draws = 0.0, random.Random(0)
    for _ in range(count):
        order = draws.sample(range(len(asked)), len(asked))
        for place, result in zip(order, shared._evaluated([asked[place] for place in order]), strict=True):
            most = max(most, float((result - alone[place]).abs().max()))
    scale = max(float(one.abs().max()) for one in alone)
    print(f"{count} orders: largest difference of a row {most:.1e}, of outputs up to {scale:.1f}")
    nan = {name: LoRALayer(lora.A, torch.full_like(lora.B, float("nan"))) for name, lora in people[1].items()}
    broken = replace(asked[1], inputs=replace(asked[1].inputs, loras=[nan]))
    results = shared._evaluated([asked[0], broken, *asked[2:]])
    kept = [float((result - alone[place]).abs().max()) for place, result in enumerate(results) if place != 1]
    assert results[1].isnan().all()
    print(f"NaN in one user's layers: largest difference of another row {max(kept):.1e}")


if __name__ == "__main__":
    main()
