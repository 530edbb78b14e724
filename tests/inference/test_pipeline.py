import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from promptnet import PromptNetPipeline, Subject
from promptnet.inference import SamplingConfig

PROMPT = "a photo of S* wearing a hat"
FEW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe: Any, prompt: Any = PROMPT, **more: Any) -> Any:
    given = {**FEW, "generator": torch.Generator().manual_seed(0), "class_scale": 2.0, **more}
    return pipe(prompt, **given).images


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, which depends on the batch and on where weights lie in memory."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def straightforward_loop() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "sampling.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_sampling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PublishedLoop


def stock_pipeline(pipe: Any) -> Any:
    """diffusers' own, of the same networks."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    parts: dict[str, Any] = {name: getattr(pipe, name) for name in names}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock = diffusers.StableDiffusionPipeline(**parts)
    stock.set_progress_bar_config(disable=True)
    return stock


@contextlib.contextmanager
def counted(pipe: Any) -> Iterator[dict[str, list[int]]]:
    """Rows of each network's calls."""
    rows: dict[str, list[int]] = {"unet": [], "promptnet": [], "text_encoder": []}

    def count(name: str) -> Any:
        return lambda module, args, output: rows[name].append(len(output[0]))

    handles = [getattr(pipe, name).register_forward_hook(count(name)) for name in rows]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("config", "tuned"),
    [
        ({"fusion_steps": 1, "class_scale": 2.0}, True),
        ({"fusion_steps": 1, "class_scale": 0.0}, False),
        ({"fusion_steps": 2, "class_scale": 1.0, "fusion_eta": 0.6, "pseudo_word_scale": 1.2}, True),
        ({"fusion_steps": 0, "class_scale": 2.0}, False),
    ],
)
def test_same_latents_as_a_straightforward_loop(
    pipe: Any, make_subject: Any, prediction: str, config: dict[str, Any], tuned: bool
):
    zero_snr = prediction == "v_prediction"
    change = {"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **change)
    subject, prompts = make_subject(pipe, tuned=tuned), [PROMPT, "a red chair with S*"]
    expected = straightforward_loop()(
        pipe, prompts, subject, SamplingConfig().replaced({"num_inference_steps": 5, **config})
    )(seeded(1, 2))
    found = draw(pipe, prompts, subject=subject, generator=seeded(1, 2), num_inference_steps=5, **config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_plain_prompts_are_drawn_as_diffusers_draws_them(pipe: Any, guidance_scale: float):
    stock = stock_pipeline(pipe)
    stock.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=1)
    asked: dict[str, Any] = {
        "prompt": ["a dog on a chair", ""],
        "negative_prompt": ["a hat", "red"],
        "num_images_per_prompt": 2,
        "guidance_scale": guidance_scale,
        "guidance_rescale": 0.5,
        "eta": 0.5,
        "num_inference_steps": 4,
        "output_type": "np",
    }
    ours = pipe(**asked, generator=seeded(1, 2, 3, 4)).images
    theirs: Any = stock(**asked, generator=seeded(1, 2, 3, 4))
    # Without guidance diffusers does not rescale either, and nor does a sum of one term change by it.
    np.testing.assert_allclose(ours, theirs.images, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "unet", "promptnet"),
    [
        ({"fusion_steps": 1, "class_scale": 2.0}, [2, 3], [1, 1]),
        ({"fusion_steps": 1, "class_scale": 0.0}, [2, 2], [1, 1]),
        ({"fusion_steps": 0, "class_scale": 2.0}, [3], [1]),
        ({"fusion_steps": 0, "class_scale": 0.0, "subject_scale": 1.0}, [1], [1]),
        ({"fusion_steps": 2, "class_scale": 2.0, "fusion_scale": 1.0}, [1, 1, 3], [1, 1, 1]),
        ({"fusion_steps": 0, "class_scale": 2.0, "subject_scale": 0.0}, [2], []),
    ],
)
def test_only_what_counts_is_evaluated(
    pipe: Any, make_subject: Any, config: dict[str, Any], unet: list[int], promptnet: list[int]
):
    with counted(pipe) as rows:
        draw(pipe, subject=make_subject(pipe, tuned=True), **config)
    plain = 2 if config["class_scale"] else 1
    assert rows == {"unet": unet * 3, "promptnet": promptnet * 3, "text_encoder": [plain, *promptnet * 3]}


@pytest.mark.parametrize(
    ("config", "unet", "promptnet"),
    [
        # Three steps; the words of steps 0 and 1 are made in the first evaluation, that of fusion.
        ({"fusion_steps": 1, "pseudo_word_every": 2}, [2, 3] * 3, [1, 1]),
        ({"fusion_steps": 0, "pseudo_word_every": 3}, [3] * 3, [1]),
        # Guided in the second step alone: the others leave the empty prompt out.
        ({"fusion_steps": 0, "guidance_interval": (0.3, 0.6)}, [2, 3, 2], [1, 1, 1]),
        ({"fusion_steps": 0, "class_scale": 0.0, "guidance_interval": (0.3, 0.6)}, [1, 2, 1], [1, 1, 1]),
    ],
)
def test_what_is_reused_or_left_out_is_not_evaluated(
    pipe: Any, make_subject: Any, config: dict[str, Any], unet: list[int], promptnet: list[int]
):
    with counted(pipe) as rows:
        draw(pipe, subject=make_subject(pipe, tuned=True), **config)
    assert (rows["unet"], rows["promptnet"]) == (unet, promptnet)


def test_words_made_once_are_those_of_the_first_evaluation(pipe: Any, make_subject: Any):
    subject, caught = make_subject(pipe), []
    pipe.promptnet.region_prompt_output.register_forward_hook(lambda module, args, output: caught.append(output))
    every_step = draw(pipe, subject=subject, fusion_steps=0)
    once = draw(pipe, subject=subject, fusion_steps=0, pseudo_word_every=9)
    assert len(caught) == 4
    assert torch.equal(caught[3], caught[0])
    assert not torch.equal(once, every_step)
    assert torch.equal(draw(pipe, subject=subject, fusion_steps=0, pseudo_word_every=1), every_step)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_fused_images_of_multistep_solvers_are_the_same_alone_and_in_a_batch(pipe: Any, make_subject: Any, name: str):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    subject = make_subject(pipe)
    config: dict[str, Any] = {"num_inference_steps": 6, "fusion_steps": 1, "fusion_end": 0.5}
    together = draw(pipe, [PROMPT, "a dog"], subject=[subject, None], generator=seeded(1, 2), **config)
    alone = [
        draw(pipe, PROMPT, subject=subject, generator=seeded(1), **config),
        draw(pipe, "a dog", generator=seeded(2), **config),
    ]
    assert_same(together, torch.cat(alone))


def test_a_batch_calls_each_network_once_an_evaluation(pipe: Any, make_subject: Any):
    """Two users with three images between them, and somebody without a subject."""
    one, two = make_subject(pipe, 1, tuned=True), make_subject(pipe, 2, num_references=2)
    with counted(pipe) as rows:
        draw(pipe, [PROMPT, "a dog", "a hat on S*"], subject=[one, None, two])
    # Fusion: 2 unconditional and 3 subject items. Refinement: 3 unconditional, 1 prompt, 3 subject and 2 class items.
    assert rows["unet"] == [5, 9] * 3
    assert rows["promptnet"] == [3, 3] * 3
    assert rows["text_encoder"] == [4, *[3, 3] * 3]


# -- reproducibility --------------------------------------------------------------------------------------------------


def test_the_same_generator_draws_the_same_image(pipe: Any, make_subject: Any):
    subject = make_subject(pipe)
    first, again = (draw(pipe, subject=subject) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(pipe, subject=subject, generator=torch.Generator().manual_seed(1)))


def test_fusion_noise_comes_from_the_generator_alone(pipe: Any, make_subject: Any):
    subject, latents = make_subject(pipe), torch.randn(1, 4, 8, 8)
    torch.manual_seed(1)
    first = draw(pipe, subject=subject, latents=latents)
    torch.manual_seed(2)
    assert torch.equal(first, draw(pipe, subject=subject, latents=latents))
    other = draw(pipe, subject=subject, latents=latents, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_image_with_its_own_generator_does_not_depend_on_its_batch(pipe: Any, make_subject: Any, eta: float):
    one, two = make_subject(pipe, 1, tuned=True), make_subject(pipe, 2, num_references=2, tuned=True)
    prompts: Any = [PROMPT, "a dog", "a hat on S*", "S1* and S2*"]
    subjects: Any = [one, None, two, [one, two]]
    together = draw(pipe, prompts, subject=subjects, generator=seeded(1, 2, 3, 4), eta=eta)
    for row in range(4):
        asked = {"subject": [subjects[row]], "generator": seeded(row + 1), "eta": eta}
        alone = draw(pipe, [prompts[row]], **asked)
        assert_same(together[row : row + 1], alone)


def test_images_of_one_prompt_follow_each_other(pipe: Any, make_subject: Any):
    subject, prompts = make_subject(pipe), [PROMPT, "S* on a chair"]
    images = draw(pipe, prompts, subject=subject, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    repeated = draw(pipe, [p for p in prompts for _ in range(2)], subject=subject, generator=seeded(1, 2, 3, 4))
    assert torch.equal(images, repeated)


# -- subjects ---------------------------------------------------------------------------------------------------------


def test_the_subject_the_class_word_and_the_deltas_matter(pipe: Any, make_subject: Any):
    plain = draw(pipe, subject=make_subject(pipe, 1))
    for other in (
        draw(pipe, subject=make_subject(pipe, 2)),
        draw(pipe, subject=make_subject(pipe, 1, tuned=True)),
        draw(pipe, subject=make_subject(pipe, 1), class_word="dog"),
    ):
        assert (plain - other).abs().max() > 1e-3
    assert torch.equal(plain, draw(pipe, subject=make_subject(pipe, 1, class_word="dog"), class_word="person"))


def test_several_subjects_stand_where_they_are_named(pipe: Any, make_subject: Any):
    one, two = make_subject(pipe, 1), make_subject(pipe, 2)
    images = [draw(pipe, "a S1* and a S2*", subject=pair) for pair in ([one, two], [two, one])]
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert_same(draw(pipe, "a S2* and a S1*", subject=[two, one]), images[0])


def test_deltas_of_several_subjects_add_up(pipe: Any, make_subject: Any):
    one, two = make_subject(pipe, 1, tuned=True), make_subject(pipe, 2, tuned=True)
    both = draw(pipe, "S1* and S2*", subject=[one, two])
    for pair in ([one, make_subject(pipe, 2)], [make_subject(pipe, 1), two]):
        assert (both - draw(pipe, "S1* and S2*", subject=pair)).abs().max() > 1e-3


def test_equal_reference_images_count_as_one(pipe: Any, make_subject: Any):
    one = make_subject(pipe, 1)
    twice = Subject.combine([one, one], weights=[1, 3])
    assert_same(draw(pipe, subject=twice), draw(pipe, subject=one))


def test_the_weight_of_a_reference_image_matters(pipe: Any, make_subject: Any):
    one, two = make_subject(pipe, 1), make_subject(pipe, 2)
    even, uneven = (draw(pipe, subject=Subject.combine([one, two], weights=w)) for w in ([1, 1], [1, 9]))
    assert (even - uneven).abs().max() > 1e-3


def test_subjects_with_two_and_three_images_in_one_prompt_are_refused(pipe: Any, make_subject: Any):
    pair = [make_subject(pipe, 1, num_references=2), make_subject(pipe, 2, num_references=3)]
    with pytest.raises(ValueError, match="have 2, 3 reference images"):
        draw(pipe, "S1* and S2*", subject=pair)


def test_encode_is_customizing_without_tuning(pipe: Any):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    subject = pipe.encode([Image.fromarray(pixels)] * 2, class_word="dog", weights=[1, 3])
    assert (subject.class_word, subject.num_references, dict(subject.loras)) == ("dog", 2, {})
    assert subject.weights.tolist() == [0.25, 0.75]
    subject.check(pipe)
    assert draw(pipe, subject=subject).isfinite().all()


def test_a_subject_of_another_base_model_is_refused_by_name(pipe: Any, make_subject: Any):
    from dataclasses import replace

    subject = make_subject(pipe)
    stranger = replace(subject, fingerprint={**subject.fingerprint, "unet": "0" * 16}, base="some-model")
    with pytest.raises(ValueError, match=r"some-model.*unet"):
        draw(pipe, subject=stranger)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(24, 32), (8, 8), (16, 48)])
@pytest.mark.parametrize("encoder_input", ["strided", "reference"])
def test_promptnet_runs_at_its_trained_size(pipe: Any, make_subject: Any, height: int, width: int, encoder_input: str):
    seen: list[Tensor] = []
    handle = pipe.promptnet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["noisy_latents"]), with_kwargs=True
    )
    try:
        latents = draw(pipe, subject=make_subject(pipe), height=height, width=width, encoder_input=encoder_input)
    finally:
        handle.remove()
    assert latents.shape == (1, 4, height // 2, width // 2)
    assert latents.isfinite().all()
    assert {tuple(noisy.shape) for noisy in seen} == {(1, 4, 8, 8)}


def test_at_the_trained_size_promptnet_sees_the_latents_themselves(pipe: Any, make_subject: Any):
    subject = make_subject(pipe)
    assert torch.equal(draw(pipe, subject=subject, height=16, width=16), draw(pipe, subject=subject))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 18}, "height=18 pixels must be a multiple of 4.*nearest is 20|height=18.*nearest is 16"),
        ({"width": 17}, "width=17 pixels must be a multiple of 4 with this base model: the nearest is 16"),
        ({"width": 0}, "width=0.*the nearest is 4"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(pipe: Any, size: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        draw(pipe, "a dog", **size)


# -- schedulers -------------------------------------------------------------------------------------------------------


def test_euler_draws_a_fused_subject(pipe: Any, make_subject: Any):
    subject = make_subject(pipe)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert draw(pipe, subject=subject).isfinite().all()


def test_solvers_of_unknown_history_draw_without_fusion_only(pipe: Any, make_subject: Any):
    subject = make_subject(pipe)
    pipe.scheduler = diffusers.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    assert draw(pipe, subject=subject, fusion_steps=0).isfinite().all()
    assert draw(pipe, "a dog", fusion_steps=1).isfinite().all()
    with pytest.raises(ValueError, match="DEISMultistepScheduler"):
        draw(pipe, subject=subject, fusion_steps=1)


def test_eta_needs_a_scheduler_that_has_it(pipe: Any):
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"eta=0.5.*EulerDiscreteScheduler"):
        draw(pipe, "a dog", eta=0.5)


# -- a diffusers pipeline ---------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_draws_the_same(pipe: Any, make_subject: Any, tmp_path: Path):
    parts = pipe.components
    own = PromptNetPipeline(**parts, sampling={"class_scale": 1.5, "num_inference_steps": 2})
    own.set_progress_bar_config(disable=True)
    own.save_pretrained(tmp_path)
    loaded = PromptNetPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    subject = make_subject(pipe)
    asked: dict[str, Any] = {"subject": subject, "class_scale": None, "num_inference_steps": None}
    assert_same(draw(loaded, **asked), draw(own, **asked))
    assert torch.equal(draw(own, **asked), draw(pipe, subject=subject, class_scale=1.5, num_inference_steps=2))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_stock_checkpoint_draws_plain_prompts_and_refuses_subjects(pipe: Any, make_subject: Any, tmp_path: Path):
    stock_pipeline(pipe).save_pretrained(tmp_path)
    loaded = PromptNetPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert_same(draw(loaded, "a dog"), draw(pipe, "a dog"))
    for ask in (lambda: draw(loaded, subject=make_subject(pipe)), lambda: loaded.encode("me.png")):
        with pytest.raises(ValueError, match=r"no promptnet, image_encoder, feature_extractor.*promptnet=\.\.\."):
            ask()


def test_a_stock_checkpoint_takes_an_encoder_from_a_folder(pipe: Any, make_subject: Any, tmp_path: Path):
    stock_pipeline(pipe).save_pretrained(tmp_path / "stock")
    pipe.promptnet.save_pretrained(tmp_path / "encoder")
    loaded = PromptNetPipeline.from_pretrained(
        tmp_path / "stock",
        promptnet=tmp_path / "encoder",
        image_encoder=pipe.image_encoder,
        feature_extractor=pipe.feature_extractor,
    )
    loaded.set_progress_bar_config(disable=True)
    subject = make_subject(pipe)
    assert_same(draw(loaded, subject=subject), draw(pipe, subject=subject))


def test_a_checkpoint_without_its_tokenizer_is_refused(pipe: Any, tmp_path: Path):
    """transformers makes a tokenizer without words where there is none; every prompt would be unknown to it."""
    stock_pipeline(pipe).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, the text encoder|tokenizer"):
        PromptNetPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_a_checkpoint_with_a_broken_weights_file_is_refused_with_a_value_error(pipe: Any, tmp_path: Path, part: str):
    stock_pipeline(pipe).save_pretrained(tmp_path)
    file = tmp_path / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises((ValueError, OSError), match=r"broken|header|nable to load|safetensors"):
        PromptNetPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", ["no/such/folder", "nobody/no-such-model", "nowhere"])
def test_a_base_model_that_does_not_exist_is_refused_by_name(path: str):
    with pytest.raises(ValueError, match=path):
        PromptNetPipeline.from_pretrained(path)


@pytest.mark.parametrize("kind", ["sampling", "tuning"])
def test_a_knob_that_does_not_exist_is_refused_in_a_checkpoint(pipe: Any, kind: str):
    parts: dict[str, Any] = {**pipe.components, kind: {"stepz": 1}}
    with pytest.raises(ValueError, match=f"{kind} parameter stepz"):
        PromptNetPipeline(**parts)


def test_base_models_of_another_kind_are_refused(pipe: Any):
    for config, message in (({"addition_embed_type": "text_time"}, "SDXL"), ({"in_channels": 9}, "9 channels")):
        unet = SimpleNamespace(config={**pipe.unet.config, **config})
        with pytest.raises(ValueError, match=message):
            PromptNetPipeline(**{**pipe.components, "unet": unet})


def test_another_encoder_takes_the_place_of_the_first(pipe: Any, make_subject: Any):
    """`from_pipe` shares networks and keeps the parameters measured for the checkpoint."""
    own = PromptNetPipeline(**pipe.components, sampling={"class_scale": 1.5}, tuning={"steps": 7})
    other = type(pipe.promptnet).from_unet(
        pipe.unet, vision_dim=24, prompt_channel=32, region_proj_channel=8, region_kernel_size=1
    )
    swapped = PromptNetPipeline.from_pipe(own, promptnet=other)
    assert swapped.promptnet is other
    assert swapped.unet is pipe.unet
    assert swapped.sampling_defaults.class_scale == 1.5
    assert dict(swapped.config)["tuning"] == {"steps": 7}


def test_customize_gives_a_tuned_subject_that_can_be_drawn(pipe: Any):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    subject = pipe.customize(
        Image.fromarray(pixels),
        "dog",
        steps=2,
        num_views=2,
        batch_size=1,
        rank=1,
        progress_bar=False,
        generator=generator,
    )
    assert subject.class_word == "dog"
    assert draw(pipe, subject=subject).isfinite().all()


@pytest.mark.parametrize(
    ("output_type", "kind", "shape"),
    [("pil", list, None), ("np", np.ndarray, (2, 16, 16, 3)), ("pt", Tensor, (2, 3, 16, 16))],
)
def test_output_types(pipe: Any, output_type: str, kind: type, shape: Any):
    (images,) = pipe(["a dog", "a hat"], num_inference_steps=1, output_type=output_type, return_dict=False)
    assert isinstance(images, kind)
    if shape is None:
        assert [image.size for image in images] == [(16, 16)] * 2
    else:
        assert tuple(images.shape) == shape


def test_callbacks_see_and_change_the_latents(pipe: Any):
    seen: list[tuple[int, int]] = []

    def callback(running: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        assert running is pipe
        assert running.num_timesteps == 3
        seen.append((index, int(timestep)))
        return {"latents": values["latents"] * 0 + 7} if index == 2 else values

    assert (draw(pipe, "a dog", callback_on_step_end=callback) == 7).all()
    assert [index for index, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 999
    with pytest.raises(ValueError, match="prompt_embeds"):
        draw(pipe, "a dog", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_may_stop_the_drawing(pipe: Any):
    def callback(running: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        running._interrupt = index == 0
        return values

    with counted(pipe) as rows:
        draw(pipe, "a dog", callback_on_step_end=callback)
    assert len(rows["unet"]) == 1
    with counted(pipe) as rows:
        draw(pipe, "a dog")
    assert len(rows["unet"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "jpeg"}, "jpeg"),
        ({"generator": seeded(1, 2)}, "2 generators for 1 images"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, r"\(2, 4, 8, 8\).*\(1, 4, 8, 8\)"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"fusion_end": 3.0}, "fusion_end=3.0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(pipe: Any, arguments: dict[str, Any], message: str):
    with counted(pipe) as rows, pytest.raises(ValueError, match=message):
        draw(pipe, "a dog", **arguments)
    assert rows["unet"] == []


def test_half_precision_goes_through(pipe: Any, networks: dict[str, Any]):
    """As a user would: torch_dtype in, finite images out, on the same shared code path."""
    import copy

    half = PromptNetPipeline(**{name: copy.deepcopy(part) for name, part in networks.items()}).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    subject = half.encode(Image.fromarray(pixels))
    latents = draw(half, subject=subject, num_images_per_prompt=2)
    assert latents.dtype == torch.bfloat16
    assert latents.isfinite().all()
    assert half(PROMPT, subject=subject, num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
