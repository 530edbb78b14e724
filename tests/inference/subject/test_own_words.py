"""Subjects with words of their own: no encoder is needed to make or to draw them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from promptnet import PromptNetPipeline, Subject
from promptnet.inference.subject.class_word import SubjectError
from promptnet.inference.subject.fingerprint import fingerprint


def without_encoder(pipe: Any) -> Any:
    names = ("promptnet", "image_encoder", "feature_extractor")
    pipe = PromptNetPipeline(**{**pipe.components, **dict.fromkeys(names)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own_words(pipe: Any, texts: str = "a hat", **more: Any) -> Subject:
    ids = pipe.tokenizer(texts, add_special_tokens=False).input_ids
    words = pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
    none = torch.zeros(1, 0, 0)
    return Subject(torch.randn(1, 4, 8, 8), none, torch.ones(1), "person", fingerprint(pipe), words=words, **more)


def draw(pipe: Any, prompt: str, subject: Any = None, **options: Any) -> torch.Tensor:
    options = {"guidance_scale": 3.0, "subject_scale": 3.0, "class_scale": 0.0, "fusion_steps": 0, **options}
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt, subject=subject, num_inference_steps=2, generator=generator, output_type="latent", **options
    ).images


def test_words_of_the_vocabulary_draw_what_the_prompt_in_plain_words_draws(pipe):
    bare = without_encoder(pipe)
    torch.testing.assert_close(
        draw(bare, "a photo of S* on a chair", own_words(bare)), draw(bare, "a photo of a hat on a chair")
    )


def test_they_stand_beside_a_person_that_the_encoder_reads(pipe, make_subject):
    read, own = make_subject(pipe), own_words(pipe)
    both = draw(pipe, "S1* and S2*", [read, own])
    torch.testing.assert_close(both, draw(pipe, "S* and a hat", read))
    assert not torch.equal(both, draw(pipe, "S2* and S1*", [read, own]))


def test_rows_of_one_batch_may_differ_in_their_number_of_words(pipe):
    one, two = own_words(pipe, "hat"), own_words(pipe, "a hat")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    options = {"num_inference_steps": 2, "output_type": "latent", "fusion_steps": 1}
    together = pipe(["a photo of S*"] * 2, subject=[one, two], generator=generators, **options).images
    alone = pipe("a photo of S*", subject=two, generator=torch.Generator().manual_seed(1), **options).images
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_it_saves_moves_and_loads(pipe, tmp_path):
    subject = own_words(pipe)
    subject.save(tmp_path / "me.safetensors")
    found = Subject.load(tmp_path / "me.safetensors")
    assert found.words is not None
    assert subject.words is not None
    assert torch.equal(found.words, subject.words)
    assert found.content_hash == subject.content_hash
    assert not found.needs_encoder
    half = subject.to(dtype=torch.float16).words
    assert half is not None
    assert half.dtype == torch.float16


def test_an_encoder_that_comes_or_goes_does_not_matter_but_the_base_model_does(pipe, new_pipe):
    subject = own_words(without_encoder(pipe))
    subject.check(pipe)
    with torch.no_grad():
        next(new_pipe.unet.parameters()).add_(1)
    with pytest.raises(SubjectError, match="unet"):
        subject.check(new_pipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": torch.zeros(0, 4)}, "words must be"),
        ({"words": torch.full((1, 4), float("nan"))}, "not finite"),
        ({"vision_states": torch.zeros(1, 2, 3)}, "no vision states"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, changes, message):
    with pytest.raises(SubjectError, match=message):
        replace(own_words(pipe), **changes)


def test_two_are_not_averaged(pipe):
    with pytest.raises(SubjectError, match="words of their own"):
        Subject.combine([own_words(pipe), own_words(pipe)])


def test_a_subject_that_the_encoder_reads_still_needs_it(pipe, make_subject):
    with pytest.raises(ValueError, match="has no promptnet"):
        draw(without_encoder(pipe), "S*", make_subject(pipe))
