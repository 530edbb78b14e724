"""Measure the baselines on held-out avatars: seconds, peak memory, identity and attributes, beside PromptNet's.

    python benchmarks/baselines.py --people 8 --methods textual-inversion dreambooth-lora

Identity is the share of a person's fields that the judge reads in the images of prompts for other attributes;
attributes are the share of what prompts ask for. `encode` is PromptNet without tuning, `promptnet` with its tuning.
"""

import argparse
import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptnet import PromptNetPipeline
from promptnet.baselines import dreambooth_lora_subject, load_config, textual_inversion_subject
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.tasks import make_people
from promptnet.metrics.judge import load_judge, read_images

METHODS = ("encode", "promptnet", "textual-inversion", "dreambooth-lora")


def subject_of(method: str, pipe: Any, image: Any, seed: int, given: dict[str, Any], cache: Path) -> Any:
    draws = torch.Generator().manual_seed(seed)
    if method == "encode":
        return pipe.encode(image)
    if method == "promptnet":
        return pipe.customize(image, generator=draws, progress_bar=False)
    config: Any = load_config(method, **given)
    if method == "textual-inversion":
        return textual_inversion_subject(pipe, image, "person", config, generator=draws, progress_bar=False)
    return dreambooth_lora_subject(pipe, image, "person", config, cache=cache, generator=draws, progress_bar=False)


def share(record: Mapping[str, str], wanted: Mapping[str, str]) -> float:
    return sum(record.get(field) == value for field, value in wanted.items()) / len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="checkpoints/tiny")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cache", type=Path, default=Path("outputs/prior"))
    parser.add_argument("--given", type=json.loads, default={}, help="parameters of the baselines, as JSON")
    asked = parser.parse_args()
    pipe = PromptNetPipeline.from_pretrained(asked.base)
    pipe.set_progress_bar_config(disable=True)
    judge = load_judge(judge_folder(asked.base, asked.split))
    tuned_with = (pipe.config["tuning"] or {}).get("prompts")
    print(f"{asked.people} people of the {asked.split} split, {asked.prompts} prompts each, {asked.steps} steps")
    for method in asked.methods:
        seconds, identity, attributes = [], [], []
        for person in make_people(asked.split, asked.people, asked.prompts):
            given = {"prompts": tuned_with, **asked.given}
            start_s = time.perf_counter()
            subject = subject_of(method, pipe, person.reference_image(64), person.seed % 2**31, given, asked.cache)
            seconds.append(time.perf_counter() - start_s)
            draws = [torch.Generator().manual_seed(prompt.seed) for prompt in person.eval_prompts]
            texts = [prompt.prompt for prompt in person.eval_prompts]
            images = pipe(texts, subject=subject, num_inference_steps=asked.steps, generator=draws).images
            for record, prompt in zip(read_images(judge, images).records, person.eval_prompts, strict=True):
                identity.append(share(record, person.identity.record()))
                attributes.append(share(record, prompt.asked()))
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        means = [sum(values) / len(values) for values in (seconds, identity, attributes)]
        print(
            f"{method:>18}: {means[0]:6.1f} s a person, identity {means[1]:.3f}, attributes {means[2]:.3f}, "
            f"peak so far {memory_mb:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
