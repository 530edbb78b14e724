"""The measures of a run, each against something known."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from promptnet.datasets.avatars.module import AvatarDataModule
from promptnet.datasets.avatars.person import ATTRIBUTE_FIELDS, sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.metrics.clip_similarity import ClipPrompts, fields_read_right, load_clip_prompts, shared_projections
from promptnet.metrics.copying import angle_between, copy_paste
from promptnet.metrics.identity import FaceIdentity, JudgeIdentity, load_face_embedder
from promptnet.models.base_model import UnusableModelError
from promptnet.models.judge import AvatarJudge
from promptnet.training.callbacks import (
    CollapseAlarm,
    LogToWandb,
    Throughput,
    ValidationImages,
    ValidationMeasures,
)
from promptnet.training.callbacks.collapse_alarm import fall_from_best
from promptnet.training.callbacks.held_out_people import (
    EvalPrompt,
    HeldOutPerson,
    avatar_people,
    held_out_people,
)
from promptnet.training.callbacks.loss_curve import loss_curve, smoothed
from promptnet.training.callbacks.model_card import MARK, CardText, model_card
from promptnet.training.callbacks.people_sheet import people_sheet
from promptnet.training.callbacks.throughput import counting_flops, num_rows, peak_tflops, utilisation
from promptnet.training.callbacks.validation_images import GeneratedImage
from tests.datasets.image_sets import photograph

ROOT = Path(__file__).parents[3]


def colour(name: str, size_px: int = 64) -> Image.Image:
    return Image.new("RGB", (size_px, size_px), name)


# --- copying ------------------------------------------------------------------------------------------------------


def units(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_angles_are_exact_also_where_a_cosine_would_round():
    found = angle_between(units(0, 0, 0, 10), units(90, 180, 1e-5, 55))
    expected = torch.tensor([90, 180, 1e-5, 45], dtype=torch.float64).deg2rad()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_copy_scores_one_the_truth_minus_one_the_middle_nothing():
    reference, truth = units(0, 0, 0, 0), units(60, 60, 60, 0)
    scores = copy_paste(units(0, 60, 30, 20), reference, truth)
    torch.testing.assert_close(scores[:3], torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))
    assert scores[3].isnan()  # nothing can be told where reference and truth look the same


@given(st.lists(st.floats(-10, 10), min_size=9, max_size=9).filter(lambda v: max(map(abs, v)) > 0.1))
def test_copying_stays_in_its_range(values: list[float]):
    rows = F.normalize(torch.tensor(values, dtype=torch.float64).reshape(3, 3) + 1e-3, dim=1)
    score = copy_paste(*rows[:, None])
    assert score.isnan() or -1 <= score <= 1


# --- identity -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped_judge() -> AvatarJudge:
    judge: Any = AvatarJudge.from_pretrained(ROOT / "checkpoints/judges/validation", use_safetensors=True)
    return judge.float().eval()


def test_the_judges_identity_knows_the_person_whatever_they_wear(shipped_judge: AvatarJudge):
    people = avatar_people(6, 1)
    scorer = JudgeIdentity(shipped_judge)
    references = scorer.identity([person.reference for person in people])
    truths = scorer.identity([person.eval_prompts[0].truth for person in people])  # type: ignore[misc]
    similarity = references @ truths.T  # (6, 6)
    torch.testing.assert_close(references.norm(dim=1), torch.ones(6))
    assert (similarity.diagonal() > 0.9).all()
    others = similarity[~torch.eye(6, dtype=torch.bool)]
    assert others.mean() < 0.7
    assert ((similarity >= 0) & (similarity <= 1 + 1e-5)).all()


def test_appearance_tells_copies_from_answers(shipped_judge: AvatarJudge):
    people = avatar_people(4, 1)
    scorer = JudgeIdentity(shipped_judge)
    references = scorer.appearance([person.reference for person in people])
    truths = scorer.appearance([person.eval_prompts[0].truth for person in people])  # type: ignore[misc]
    assert (angle_between(references, truths) > 0.2).all()
    torch.testing.assert_close(copy_paste(references, references, truths), torch.ones(4))


def test_the_judge_reads_what_was_asked(shipped_judge: AvatarJudge):
    people = avatar_people(4, 2)
    eval_prompts = [eval_prompt for person in people for eval_prompt in person.eval_prompts]
    truths: Any = [eval_prompt.truth for eval_prompt in eval_prompts]
    assert fields_read_right(shipped_judge, truths, [eval_prompt.asked for eval_prompt in eval_prompts]) > 0.9
    copies = [person.reference for person in people for _ in person.eval_prompts]
    assert fields_read_right(shipped_judge, copies, [eval_prompt.asked for eval_prompt in eval_prompts]) < 0.2
    with pytest.raises(ValueError, match="no prompt requests"):
        fields_read_right(shipped_judge, copies, [{} for _ in eval_prompts])


class SmallNet(torch.nn.Module):
    """Stands for InceptionResnetV1: the same interface, few weights."""

    def __init__(self, pretrained: Any = None, classify: bool = False) -> None:
        assert pretrained is None, "would download"
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean(dim=(2, 3))


@pytest.mark.parametrize("end", ["pt", "safetensors"])
def test_the_face_embedder_comes_from_a_file_that_is_there(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", SimpleNamespace(InceptionResnetV1=SmallNet))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"put facenet-pytorch's 20180402-114759-vggface2\.pt"):
        load_face_embedder()
    weights = {**SmallNet().state_dict(), "logits.weight": torch.zeros(3, 2)}  # as published, with a classifier
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / f"20180402-114759-vggface2.{end}"
    torch.save(weights, place) if end == "pt" else save_file(weights, place)
    scorer = FaceIdentity(load_face_embedder(), detect=lambda _: [])
    rows = scorer.identity([colour("red", 200), colour("red", 90), colour("blue")])
    assert rows.shape == (3, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(rows[0], rows[1])
    assert rows[0] @ rows[2] < 0.999
    assert torch.equal(scorer.network.conv.weight, weights["conv.weight"])


def test_other_weights_and_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", SimpleNamespace(InceptionResnetV1=SmallNet))
    save_file({"something": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"lacks conv\.weight"):
        load_face_embedder(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"nowhere\.pt"):
        load_face_embedder(tmp_path / "nowhere.pt")


def test_the_real_face_embedder_has_the_interface_we_use():
    from facenet_pytorch import InceptionResnetV1

    embedder = InceptionResnetV1(pretrained=None, classify=False)
    assert FaceIdentity(embedder).identity([colour("green", 32)]).shape == (1, 512)


def test_the_face_is_found_wherever_it_is_and_whatever_is_beside_it():
    face = photograph("astronaut.png").crop((100, 0, 356, 256))
    images = [Image.new("RGB", (512, 512), ground) for ground in ("white", "black")]
    images[0].paste(face, (0, 0))
    images[1].paste(face.resize((384, 384)), (128, 128))
    seen: list[torch.Tensor] = []
    network = SmallNet()
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    FaceIdentity(network).identity(images)
    FaceIdentity(network, detect=lambda _: []).identity(images)
    found, whole = seen
    assert found.shape == (2, 3, 160, 160)
    assert (found[0] - found[1]).abs().mean() < 0.2  # resized once more, and boxes differ by a pixel
    assert (whole[0] - whole[1]).abs().mean() > 0.5


# --- prompts ------------------------------------------------------------------------------------------------------


def test_clip_similarity_is_that_of_the_whole_clip():
    from transformers import CLIPImageProcessor, CLIPTokenizer

    from promptnet.models.tiny import load_clip

    base = ROOT / "checkpoints/tiny"
    clip = load_clip(base)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    extractor = CLIPImageProcessor.from_pretrained(base / "feature_extractor")
    from transformers import CLIPTextModel, CLIPVisionModel

    text_encoders: Any = (CLIPTextModel, CLIPVisionModel)
    text, vision = (
        text_encoder.from_pretrained(base / part).float().eval()
        for text_encoder, part in zip(text_encoders, ("text_encoder", "image_encoder"), strict=True)
    )
    projections = shared_projections(base, text, vision)
    assert projections is not None
    people = avatar_people(3, 1)
    prompts = [person.eval_prompts[0].prompt for person in people]
    images: Any = [person.eval_prompts[0].truth for person in people]
    found = ClipPrompts(tokenizer, text, vision, extractor, *projections).similarity(prompts, images)
    words = tokenizer([p.replace("S*", "a person") for p in prompts], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        outputs = clip(**words, pixel_values=extractor(images=images, return_tensors="pt").pixel_values)
    expected = (outputs.text_embeds * outputs.image_embeds).sum(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    swapped = ClipPrompts(tokenizer, text, vision, extractor, *projections).similarity(prompts, images[::-1])
    assert found.mean() > swapped.mean()
    assert shared_projections(base, vision, text) is None
    assert shared_projections(base / "unet", text, vision) is None


def test_a_whole_clip_of_ones_own_is_moved_there_and_back_and_a_part_of_one_refused(tmp_path: Path):
    from transformers import CLIPImageProcessor, CLIPTokenizer

    from promptnet.models.tiny import load_clip

    base = ROOT / "checkpoints/tiny"
    clip = load_clip(base)
    clip.save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(base / "tokenizer").save_pretrained(tmp_path)
    CLIPImageProcessor.from_pretrained(base / "feature_extractor").save_pretrained(tmp_path)

    people = avatar_people(2, 1)
    images, measures = ValidationImages(2, 1), ValidationMeasures("none", clip=str(tmp_path))
    trainer: Any = SimpleNamespace(callbacks=[images, measures], strategy=None, global_step=3)
    trainer.datamodule = SimpleNamespace(held_out_people=lambda *_: people)
    stage: Any = SimpleNamespace(frozen={}, device=torch.device("cpu"))
    measures.setup(trainer, stage, "fit")
    images._last = GeneratedImage(3, people, [[person.eval_prompts[0].truth] for person in people], 0.0)  # type: ignore[list-item]
    figures = measures._figures(trainer, stage, images)

    own: Any = measures._prompts
    assert {weight.dtype for weight in own.text_encoder.parameters()} == {torch.float16}
    texts = [person.eval_prompts[0].prompt.replace("S*", "a person") for person in people]
    words = own.tokenizer(texts, padding="max_length", return_tensors="pt")
    seen = own.feature_extractor(
        images=[person.eval_prompts[0].truth for person in people], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        outputs = clip(**words, pixel_values=seen)
    expected = (outputs.text_embeds * outputs.image_embeds).sum(dim=1).mean()
    assert figures == {"val/prompt_clip": pytest.approx(float(expected), abs=2e-3)}
    with pytest.raises(ValueError, match=r"no whole CLIP, it lacks .*name one with both encoders"):
        load_clip_prompts(str(base / "image_encoder"))


def test_the_clip_of_vision_id_is_that_of_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One setting for the encoder's image encoder and for the CLIP that compares images with prompts."""
    from transformers import CLIPVisionModel

    from promptnet.models.tiny import load_clip
    from promptnet.training.callbacks import validation_measures

    clip = load_clip(ROOT / "checkpoints/tiny")
    clip.save_pretrained(tmp_path / "whole")
    CLIPVisionModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "vision")
    loaded: list[str] = []
    monkeypatch.setattr(validation_measures, "load_clip_prompts", loaded.append)

    def measured(vision: str | None, base: str = "nowhere") -> Any:
        stage: Any = SimpleNamespace(hparams={"base_dir": base, "vision_id": vision}, frozen={})
        stage.frozen = {"text_encoder": clip.text_model, "image_encoder": clip.vision_model}
        return validation_measures._clip_prompts(stage)

    measured(str(tmp_path / "whole"))
    measured("somebody/clip")
    assert loaded == [str(tmp_path / "whole"), "somebody/clip"]
    for vision in (str(tmp_path / "vision"), None):
        with pytest.warns(UserWarning, match="is no whole CLIP"):
            assert measured(vision) is None
    assert len(loaded) == 2


@pytest.mark.parametrize("missing", ["tokenizer", "everything"])
def test_a_local_clip_that_is_not_whole_is_named_without_asking_any_hub(missing: str, tmp_path: Path):
    from promptnet.models.tiny import load_clip

    if missing == "tokenizer":
        load_clip(ROOT / "checkpoints/tiny").save_pretrained(tmp_path)
    with pytest.raises(UnusableModelError, match=f"'{tmp_path}', which CLIP.* could be loaded from; it is a folder of"):
        load_clip_prompts(str(tmp_path))


def test_a_base_model_without_a_clip_of_its_own_asks_for_one(tmp_path: Path):
    from promptnet.models.tiny import load_clip

    with pytest.raises(ValueError, match=r"brings no CLIP of its own .*--clip or clip_dir"):
        load_clip(tmp_path)


# --- people -------------------------------------------------------------------------------------------------------


def test_portraits_are_asked_for_what_their_reference_lacks_and_are_the_same_every_time():
    people, again = avatar_people(3, 2, seed=4), avatar_people(3, 2, seed=4)
    assert [person.eval_prompts[0].seed for person in people] == [person.eval_prompts[0].seed for person in again]
    assert people[0].reference.tobytes() == again[0].reference.tobytes()
    assert len({person.reference.tobytes() for person in people}) == 3
    for person in people:
        assert person.compared() == [eval_prompt.truth for eval_prompt in person.eval_prompts]
        for eval_prompt in person.eval_prompts:
            assert "S*" in eval_prompt.prompt
            assert set(eval_prompt.asked) <= set(ATTRIBUTE_FIELDS)
            assert eval_prompt.truth is not None
            assert eval_prompt.truth.tobytes() != person.reference.tobytes()
    assert [ask.seed for ask in avatar_people(3, 2, seed=5)[0].eval_prompts] != [
        ask.seed for ask in people[0].eval_prompts
    ]


def test_avatars_of_a_run_are_those_of_its_stream_and_may_be_asked_for_by_given_prompts():
    module = AvatarDataModule(seed=7, size_px=32)
    asked = held_out_people(module, 2, 1, seed=0)
    assert [person.reference.tobytes() for person in asked] == [
        render_avatar(sample_avatar(7, place, "validation"), 32).tobytes() for place in range(2)
    ]
    given = held_out_people(module, 2, 1, seed=0, prompts=["S* in a hat", "a photo of S*"])
    for person, same in zip(given, asked, strict=True):
        assert person.reference.tobytes() == same.reference.tobytes()
        assert [(ask.prompt, ask.truth, ask.asked) for ask in person.eval_prompts] == [("S* in a hat", None, {})]
        assert person.other is not None
        assert person.compared() == [person.other]
        assert person.other.tobytes() != person.reference.tobytes()
    assert given[0].eval_prompts[0].seed != given[1].eval_prompts[0].seed


def test_faces_are_taken_from_the_fixed_validation_pairs():
    images = {3: colour("red", 8), 5: colour("green", 8), 6: colour("blue", 8)}
    pairs = SimpleNamespace(
        fixed=[3, 5, 6],
        partners=SimpleNamespace(of=lambda row: {5: [6], 6: [5]}.get(row, [])),
        sizes=SimpleNamespace(square=(8, 8)),
        image=lambda row, flipped, size, sample: images[row],
    )
    prompts = ["a photo of S*", "S* in a hat"]
    first, second = held_out_people(SimpleNamespace(validation=pairs), 4, 2, 0, prompts)
    assert (first.reference, first.other) == (images[5], images[6]), "people with two images come first"
    assert (second.reference, second.other) == (images[3], None)
    assert (first.compared(), second.compared()) == ([images[6]] * 2, [None, None])
    assert [ask.prompt for ask in second.eval_prompts] == prompts
    assert len({ask.seed for person in (first, second) for ask in person.eval_prompts}) == 4
    with pytest.raises(ValueError, match="nobody to draw"):
        held_out_people(SimpleNamespace(validation=None), 4, 1, 0)


def test_the_sheet_shows_the_truth_where_it_is_known():
    generated = [[colour("red", 8), colour("blue", 8)]]
    known = HeldOutPerson(colour("white"), (EvalPrompt("S*", 0, colour("lime")), EvalPrompt("S*", 1, colour("lime"))))
    unknown = HeldOutPerson(colour("white"), (EvalPrompt("S*", 0), EvalPrompt("S*", 1)))
    assert people_sheet([known], generated).size == (76, 20)
    assert people_sheet([known], generated).getpixel((66, 10)) == (0, 255, 0)
    assert people_sheet([unknown], generated).size == (48, 20)


# --- alarm --------------------------------------------------------------------------------------------------------


def test_the_fall_is_from_the_best_of_the_last_values():
    assert fall_from_best([0.2, 0.9, 0.5], 10) == pytest.approx(0.4)
    assert fall_from_best([0.9, 0.2, 0.5, 0.5], 2) == 0
    assert fall_from_best([0.9, math.nan], 10) == math.inf
    assert math.isnan(fall_from_best([math.nan], 10))


def trainer_with(**metrics: float) -> Any:
    lines: list[dict[str, float]] = []
    logger = SimpleNamespace(log_metrics=lambda scalars, step: lines.append(scalars), save=lambda: None)
    values = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        sanity_checking=False,
        callback_metrics=values,
        loggers=[logger],
        lines=lines,
        global_step=7,
        should_stop=False,
        world_size=1,
    )


def after(alarm: CollapseAlarm, *values: float) -> Any:
    trainer: Any = None
    for value in values:
        trainer = trainer_with(val_identity=value)
        alarm.on_validation_end(trainer, None)  # type: ignore[arg-type]
    return trainer


def test_the_alarm_warns_logs_and_stops_only_when_asked():
    with pytest.warns(UserWarning, match=r"step 7: val/identity has collapsed to 0\.500, 0\.400 below"):
        trainer = after(CollapseAlarm({"val/identity": 0.3}), 0.5, 0.9, 0.5)
    assert trainer.lines == [{"alarm/val/identity": 1.0}]
    assert not trainer.should_stop
    with pytest.warns(UserWarning, match="the run stops"):
        assert after(CollapseAlarm({"val/identity": 0.3}, stop=True), 0.9, 0.5).should_stop
    with pytest.warns(UserWarning, match="collapsed"):
        assert after(CollapseAlarm({"val/identity": 0.3}, stop=True), 0.9, math.nan).should_stop


def test_ranks_stop_together():
    alarm, asked = CollapseAlarm({"val/identity": 0.3}, stop=True), []

    def another_rank_stops(stop: bool, all: bool) -> bool:
        asked.append((stop, all))
        return True

    trainer = trainer_with(val_identity=0.9)
    trainer.world_size, trainer.strategy = 2, SimpleNamespace(reduce_boolean_decision=another_rank_stops)
    alarm.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.should_stop
    assert asked == [(False, False)], "every rank has to ask, whatever it saw itself"


@pytest.mark.filterwarnings("error")
def test_the_alarm_is_silent_below_its_threshold_and_until_its_patience_ends():
    assert after(CollapseAlarm({"val/identity": 0.3}), 0.9, 0.7).lines == [{"alarm/val/identity": 0.0}]
    assert (
        after(CollapseAlarm({"val/identity": 0.3}, patience=2), 0.9, 0.5, 0.9, 0.5).lines[-1]["alarm/val/identity"] == 0
    )


def test_the_alarm_remembers_over_a_checkpoint_and_refuses_what_is_not_logged():
    before = CollapseAlarm({"val/identity": 0.3})
    after(before, 0.9)
    resumed = CollapseAlarm({"val/identity": 0.3})
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    with pytest.warns(UserWarning, match="collapsed"):
        after(resumed, 0.5)
    with pytest.raises(ValueError, match="watches val/beauty, but this run logs val/identity"):
        after(CollapseAlarm({"val/beauty": 0.1}), 0.5)
    with pytest.warns(UserWarning, match="nothing to watch"):
        CollapseAlarm().on_validation_end(trainer_with(val_loss=1.0), None)  # type: ignore[arg-type]


# --- speed --------------------------------------------------------------------------------------------------------


def test_flops_of_a_linear_layer_and_its_backward():
    layer, x = torch.nn.Linear(8, 4), torch.randn(3, 8)
    with counting_flops([layer]) as count:
        layer(x).sum().backward()
    assert count.total == 2 * (2 * 3 * 8 * 4)  # forward and the weight's gradient; the input wants none


def test_flops_are_counted_as_pytorch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.SiLU(), torch.nn.Upsample(scale_factor=2))
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with counting_flops([network]) as count:
        network(x).square().sum().backward()
    with FlopCounterMode(display=False) as reference:
        network(x).square().sum().backward()
    assert count.total == reference.get_total_flops() > 0


def test_what_gradient_checkpointing_computes_again_is_counted_apart():
    from torch.utils.checkpoint import checkpoint

    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 8), torch.nn.SiLU())
    x = torch.randn(3, 8, requires_grad=True)
    with counting_flops([network]) as plain:
        network(x).square().sum().backward()
    with counting_flops([network]) as twice:
        checkpoint(network, x, use_reentrant=False).square().sum().backward()  # type: ignore[union-attr]
    assert plain.checkpointed == 0
    assert twice.checkpointed == 2 * (2 * 3 * 8 * 16) == plain.total / 3
    assert twice.total - twice.checkpointed == plain.total


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", "bf16-mixed", 989.0),
        ("NVIDIA H100 PCIe", "16-mixed", 756.0),
        ("NVIDIA H100 80GB HBM3", "bf16-true", 989.0),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5),
        ("NVIDIA GeForce RTX 4090", "16-mixed", 165.2),
        ("NVIDIA A10G", "16-mixed", None),
        ("a card of the future", "16-mixed", None),
    ],
)
def test_peaks_by_name(name: str, precision: str, expected: float | None):
    assert peak_tflops(name, precision) == expected


def test_tensor_cores_count_for_float32_where_they_are_used():
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "32-true", has_tf32=True) == 156.0
    assert utilisation(flop_per_image=5e11, images_per_s=100, tflops=100) == pytest.approx(0.5)


def test_rows_of_a_batch():
    assert num_rows({"prompt": ["a", "b"], "sample": torch.zeros(2)}) == 2
    assert num_rows([torch.tensor(3), torch.zeros(4, 2)]) == 4
    with pytest.raises(ValueError, match="neither a tensor nor a list"):
        num_rows({"a": 3})
    with pytest.raises(ValueError, match="peak_tflops=0"):
        Throughput(peak_tflops=0)


# --- the card -----------------------------------------------------------------------------------------------------

TEXT = CardText("Mine", "faces of\nfriends", "with consent", "openrail++", "it's | mine", "Not for strangers.")


def test_the_card_tells_last_and_best_and_the_owners_words():
    import yaml

    entries = [
        {"step": 10, "val/loss": 0.3, "val/identity": 0.9, "speed/images_per_s": 5.0, "train/loss": 0.4},
        {"step": 20, "val/loss": 0.2, "val/identity": 0.8, "speed/images_per_s": 7.0, "val/images_seconds": 3.0},
    ]
    card = model_card(TEXT, "sd2", {"lr": 1e-4}, entries, "loss.png")
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["base_model"]) == ("it's | mine", "sd2")
    assert "| `val/identity` | 0.8 | 0.9 (10) |" in card
    assert "| `val/loss` | 0.2 | 0.2 (20) |" in card
    assert "| this encoder | it's \\| mine |" in card
    assert "val/images_seconds" not in card
    assert MARK in card
    assert "Nothing was validated" in model_card(TEXT, "sd2", {}, [], None)


def test_a_card_of_somebody_elses_is_left_alone(tmp_path: Path):
    from promptnet.training.callbacks.model_card import _card_place

    assert _card_place(tmp_path).name == "README.md"
    (tmp_path / "README.md").write_text(f"{MARK}\nours")
    assert _card_place(tmp_path).name == "README.md"
    (tmp_path / "README.md").write_text("theirs")
    with pytest.warns(UserWarning, match="not ours to replace"):
        assert _card_place(tmp_path).name == "MODEL_CARD.md"


def test_the_curve_is_a_image_of_the_losses():
    assert loss_curve([{"step": 1, "other": 1.0}]) is None
    png = loss_curve([{"step": step, "train/loss": 1 / (step + 1), "val/loss": 0.5} for step in range(5)])
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert smoothed([2.0] * 30) == pytest.approx([2.0] * 30)  # no pull towards zero at the start


def test_wandb_joins_the_other_loggers_once(monkeypatch: pytest.MonkeyPatch):
    import lightning.pytorch.loggers as loggers

    class Recorded:
        def __init__(self, **options: Any) -> None:
            self.options = options

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    monkeypatch.setattr(loggers, "WandbLogger", Recorded)
    trainer: Any = SimpleNamespace(loggers=["tensorboard"], default_root_dir="run")
    callback = LogToWandb("faces", {"offline": True})
    for _ in range(2):
        callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert trainer.loggers[0] == "tensorboard"
    assert [logger.options for logger in trainer.loggers[1:]] == [
        {"project": "faces", "save_dir": "run", "offline": True}
    ]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    from promptnet.training.callbacks.loss_curve import check_matplotlib

    for name in ("wandb", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"promptnet\[wandb\]"):
        LogToWandb()
    with pytest.raises(ValueError, match=r"promptnet\[eval\]"):
        check_matplotlib()
