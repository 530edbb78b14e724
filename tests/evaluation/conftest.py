"""A judge and a renderer with known answers, so that comparisons have exact results."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from promptnet.datasets.avatars.person import FIELDS, Attributes, Avatar, Identity, sample_identity
from promptnet.datasets.avatars.render import render
from promptnet.datasets.avatars.vectors import codes_of, exact_of
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.tasks import EvalPrompt, Person
from promptnet.models.judge import JudgeReading

SIZE_PX = 64

Policy = Callable[[Person, EvalPrompt], tuple[Identity, Attributes]]


class FakeJudge:
    """Predict exactly what the image was rendered from; knows only its own renders."""

    def __init__(self):
        self.known: dict[bytes, Avatar] = {}
        self.rendered: dict[str, Image.Image] = {}

    def render(self, identity: Identity, attributes: Attributes) -> Image.Image:
        key = repr((identity, attributes))  # an identity has no hash
        if key not in self.rendered:
            self.rendered[key] = render(identity, attributes, SIZE_PX)
            self.known[self.rendered[key].tobytes()] = Avatar(identity, attributes)
        return self.rendered[key]

    def learn(self, people: list[Person]) -> None:
        for person in people:
            for attributes in (person.reference, *(eval_prompt.attributes for eval_prompt in person.eval_prompts)):
                self.render(person.identity, attributes)

    def read(self, pixels: torch.Tensor) -> list[dict[str, str]]:
        return [avatar.record() for avatar in self._avatars(pixels)]

    def look(self, pixels: torch.Tensor) -> JudgeReading:
        """Return exact values, and a shape for each geometry."""
        avatars = self._avatars(pixels)
        codes = torch.stack([codes_of(avatar.record()) for avatar in avatars])
        words = {field: torch.eye(len(FIELDS[field]))[codes[:, place]] for place, field in enumerate(FIELDS)}
        shapes = torch.tensor([[*avatar.identity.geometry, 0.1] for avatar in avatars])
        exact = torch.stack([exact_of(avatar) for avatar in avatars])
        return JudgeReading(words, exact, torch.nn.functional.normalize(shapes, dim=1))

    def _avatars(self, pixels: torch.Tensor) -> list[Avatar]:
        bytes_ = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return [self.known[image.numpy().tobytes()] for image in bytes_]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels + 1, 16).flatten(1)


class FakeRenderer:
    """Generate what a policy says for each method, and record the calls."""

    def __init__(self, judge: FakeJudge, policies: dict[str, Policy]):
        self.judge, self.policies = judge, policies
        self.generated: list[tuple[int, str]] = []
        self.seen: list[Person] = []

    def __call__(self, person: Person, method: Method) -> list[Image.Image]:
        self.generated.append((person.index, method.name))
        self.seen.append(person)
        policy = self.policies.get(method.name, truth)
        return [self.judge.render(*policy(person, eval_prompt)) for eval_prompt in person.eval_prompts]


def truth(person: Person, eval_prompt: EvalPrompt) -> tuple[Identity, Attributes]:
    return person.identity, eval_prompt.attributes


def copied(person: Person, eval_prompt: EvalPrompt) -> tuple[Identity, Attributes]:
    return person.identity, person.reference


def stranger(person: Person, eval_prompt: EvalPrompt) -> tuple[Identity, Attributes]:
    """Return somebody of the same style who shares no word with the person."""
    who = person.identity.record()
    for index in itertools.count():
        other = sample_identity(99, index, "judge")
        alike = [field for field, word in other.record().items() if who[field] == word]
        if alike == ["style"] or (alike == [] and person.identity.style == "adventurer"):
            return other, eval_prompt.attributes
    raise AssertionError("the stream has no end")


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def renderer(judge: FakeJudge) -> FakeRenderer:
    """Return a renderer that copies with plain guidance, shows a stranger with prompt-only, and is right otherwise."""
    return FakeRenderer(judge, {"plain-guidance": copied, "prompt-only": stranger})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Write the parts of a base model's folder that are read without loading it, with judges and the second encoder."""
    folder = tmp_path / "models" / "tiny"
    contents = {
        "tiny/unet/config.json": {"sample_size": 16},
        "tiny/vae/config.json": {"block_out_channels": [8, 8, 8]},
        "tiny/promptnet/config.json": {},
        "tiny/promptnet-published/config.json": {},
        "judges/validation/config.json": {},
        "judges/test/config.json": {},
    }
    for name, content in contents.items():
        path = folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder
