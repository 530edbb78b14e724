"""A subject is data: what it holds, how it is written, and what is refused when it is read."""

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from promptnet.inference.subject import subject as subject_file
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.lora import LoRALayer
from promptnet.inference.subject.subject import Subject, SubjectError, hash_content
from promptnet.io import atomic as private_file

KEY_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def make_subject(num_references: int = 2, seed: int = 0, **changes) -> Subject:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    fields = {
        "reference_latents": randn(num_references, 4, 8, 8),
        "vision_states": randn(num_references, 5, 6),
        "weights": torch.ones(num_references),
        "class_word": "woman",
        "fingerprint": {"unet": "0123456789abcdef", "vae": "fedcba9876543210"},
        "loras": {
            KEY_LAYER: LoRALayer(randn(2, 6), randn(4, 2)),
            "promptnet.region_prompt_output": LoRALayer(randn(3, 16), randn(6, 3)),
        },
        "base": "checkpoints/tiny",
    }
    return Subject(**{**fields, **changes})


def assert_same(one: Subject, other: Subject) -> None:
    assert one.content_hash == other.content_hash
    assert one.texts() == other.texts()
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "me.safetensors"
    make_subject().save(path)
    return path


# -- what it holds ----------------------------------------------------------------------------------------------------


def test_deltas_are_found_by_component():
    subject = make_subject()
    assert set(subject.unet_loras) == {KEY_LAYER.removeprefix("unet.")}
    assert set(subject.promptnet_loras) == {"region_prompt_output"}
    assert subject.unet_loras[KEY_LAYER.removeprefix("unet.")] is subject.loras[KEY_LAYER]


def test_weights_are_scaled_to_sum_to_one():
    subject = make_subject(3, weights=torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(subject.weights, torch.tensor([0.125, 0.25, 0.625]))


def test_repr_shows_no_data():
    shown = repr(make_subject())
    assert shown == "Subject('woman', references=2, loras=2, base='checkpoints/tiny', device='cpu')"
    assert "tensor" not in shown


def test_moving_and_casting():
    subject = make_subject()
    half = subject.to(dtype=torch.float16)
    assert {name for name, tensor in half.tensors().items() if tensor.dtype != torch.float16} == {"weights"}
    assert half.content_hash != subject.content_hash
    assert_same(subject.to("cpu"), subject)
    assert subject.reference_latents.dtype == torch.float32


def test_the_content_hash_sees_every_part():
    subject = make_subject()
    changed = [
        replace(subject, class_word="man"),
        replace(subject, base="other"),
        replace(subject, fingerprint={**subject.fingerprint, "vae": "0" * 16}),
        replace(subject, weights=torch.tensor([1.0, 2.0])),
        replace(subject, loras={}),
    ]
    for name in ("reference_latents", "vision_states"):
        tensor = getattr(subject, name).clone()
        tensor.view(-1)[3] += 1e-6
        changed.append(replace(subject, **{name: tensor}))
    hashes = {other.content_hash for other in [subject, *changed]}
    assert len(hashes) == len(changed) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_latents": torch.zeros(4, 8, 8)}, "reference_latents must have 4 dimensions"),
        (
            {"reference_latents": torch.zeros(2, 4, 0, 8)},
            "reference_latents must have 4 dimensions, none of them empty",
        ),
        ({"vision_states": torch.zeros(3, 5, 6)}, "as many of each"),
        ({"weights": torch.ones(1)}, "as many of each"),
        ({"weights": torch.tensor([1.0, 0.0])}, "weights must be above 0"),
        ({"weights": torch.tensor([1.0, -2.0])}, "weights must be above 0"),
        ({"weights": torch.tensor([1, 1])}, r"weights must be float32.*not torch\.int64"),
        ({"vision_states": torch.full((2, 5, 6), float("nan"))}, "vision_states has values that are not finite"),
        ({"loras": {"unet.a": LoRALayer(torch.ones(1, 2), torch.full((2, 1), float("inf")))}}, "not finite"),
        ({"loras": {"vae.a": LoRALayer(torch.ones(1, 2), torch.ones(2, 1))}}, "belongs to the unet or the promptnet"),
        ({"class_word": ""}, "class_word='' must be a short word"),
        ({"class_word": "x" * 201}, "must be a short word"),
        ({"class_word": "a\nb"}, "must be a short word"),
        ({"class_word": "S*"}, r"class_word='S\*' holds a placeholder"),
        ({"fingerprint": {"unet": 3}}, "fingerprint must hold a hash"),
        ({"base": None}, "base=None"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(SubjectError, match=message):
        make_subject(**changes)


# -- one base model ---------------------------------------------------------------------------------------------------


def make_pipe(seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    parts = {name: nn.Linear(4, 4) for name in ("unet", "text_encoder", "vae", "promptnet", "image_encoder")}
    return SimpleNamespace(**parts, name_or_path="org/model")


def test_its_own_base_model_is_accepted_also_in_half_precision():
    pipe = make_pipe()
    subject = make_subject(fingerprint=fingerprint(pipe))
    subject.check(pipe)
    for name in ("unet", "text_encoder", "vae", "promptnet", "image_encoder"):
        getattr(pipe, name).half()
    subject.check(pipe)


def test_another_base_model_is_refused_by_name():
    pipe = make_pipe()
    subject = make_subject(fingerprint=fingerprint(pipe))
    pipe.unet.weight.data += 1
    pipe.image_encoder = None
    with pytest.raises(SubjectError, match=r"\(checkpoints/tiny\).*\(org/model\): the weights of unet, image_encoder"):
        subject.check(pipe)
    pipe = make_pipe()
    pipe.text_encoder_2 = nn.Linear(4, 4)
    with pytest.raises(SubjectError, match="the weights of text_encoder_2 differ"):
        subject.check(pipe)


def test_another_encoder_is_not_called_another_base_model():
    pipe = make_pipe()
    subject = make_subject(fingerprint=fingerprint(pipe))
    pipe.promptnet.weight.data += 1
    with pytest.raises(SubjectError, match=r"another encoder .*promptnet=.*the weights of promptnet differ"):
        subject.check(pipe)


def test_a_bfloat16_copy_is_known_but_not_to_subjects_of_earlier_versions():
    pipe = make_pipe()
    found = fingerprint(pipe)
    subject = make_subject(fingerprint={name: text.split(".")[0] for name, text in found.items()})
    subject.check(pipe)
    pipe.unet = pipe.unet.bfloat16()
    pipe.unet.dtype = torch.bfloat16
    make_subject(fingerprint=found).check(pipe)
    with pytest.raises(SubjectError, match="load it as float32 or float16"):
        subject.check(pipe)


# -- several ----------------------------------------------------------------------------------------------------------


def test_combining_keeps_all_images_and_averages_the_deltas():
    one, two = make_subject(2, seed=1), make_subject(1, seed=2)
    two = replace(two, loras={KEY_LAYER: two.loras[KEY_LAYER]})
    both = Subject.combine([one, two], [3.0, 1.0])
    assert both.num_references == 3
    torch.testing.assert_close(both.weights, torch.tensor([0.375, 0.375, 0.25]))
    assert torch.equal(both.reference_latents[2], two.reference_latents[0])
    expected = 0.75 * one.loras[KEY_LAYER].matrix() + 0.25 * two.loras[KEY_LAYER].matrix()
    torch.testing.assert_close(both.loras[KEY_LAYER].matrix(), expected)
    name = "promptnet.region_prompt_output"
    torch.testing.assert_close(both.loras[name].matrix(), 0.75 * one.loras[name].matrix())


def test_combining_one_changes_nothing():
    subject = make_subject()
    assert_same(Subject.combine([subject]), subject)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_word": "man"}, "class words 'woman' and 'man'"),
        ({"fingerprint": {}}, "different base models"),
        ({"vision_states": torch.zeros(1, 4, 6)}, "vision_states differ"),
        ({"reference_latents": torch.zeros(1, 4, 8, 8, dtype=torch.float16)}, "reference_latents differ"),
    ],
)
def test_combining_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(SubjectError, match=message):
        Subject.combine([make_subject(1), make_subject(1, **changes)])


@pytest.mark.parametrize(("count", "weights"), [(0, None), (2, [1.0]), (2, [1.0, 0.0]), (1, [float("nan")])])
def test_combining_needs_subjects_and_weights(count, weights):
    with pytest.raises(SubjectError, match="cannot be combined"):
        Subject.combine([make_subject()] * count, weights)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_subject_comes_back_bit_for_bit(tmp_path, dtype):
    subject = make_subject(3, weights=torch.tensor([0.1, 0.3, 0.7])).to(dtype=dtype)
    path = tmp_path / "me.safetensors"
    subject.save(path)
    loaded = Subject.load(str(path))
    assert_same(loaded, subject)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_only_the_owner_may_read_it(tmp_path):
    path = tmp_path / "me.safetensors"
    path.write_text("old")
    path.chmod(0o644)
    mask = os.umask(0)
    try:
        make_subject().save(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["me.safetensors"]


def test_a_missing_folder_is_an_error_and_not_made(tmp_path):
    with pytest.raises(SubjectError, match=r"nowhere/me\.safetensors' cannot be written: create the folder"):
        make_subject().save(tmp_path / "nowhere" / "me.safetensors")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(SubjectError, match="this is a folder"):
        make_subject().save(tmp_path)


def test_bytes_are_the_files_content_and_as_little_believed(saved):
    subject = Subject.load(saved)
    assert subject.to_bytes() == saved.read_bytes()
    assert_same(Subject.from_bytes(saved.read_bytes()), subject)
    with pytest.raises(SubjectError, match=r"The given subject file cannot be used: .* cut short"):
        Subject.from_bytes(saved.read_bytes()[:-1])


def test_more_bytes_than_a_subject_has_are_not_parsed(monkeypatch, saved):
    monkeypatch.setattr(subject_file, "KIND", replace(subject_file.KIND, max_bytes=10))
    with pytest.raises(SubjectError, match="a subject at most 10"):
        Subject.from_bytes(saved.read_bytes())


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, monkeypatch, failing):
    before = saved.read_bytes()

    def no_space(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(private_file.os, failing, no_space)
    with pytest.raises(SubjectError, match=r"me\.safetensors' cannot be written \(No space left.*free space"):
        make_subject(seed=5).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(private_file.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_subject().save(tmp_path / "me.safetensors")
    assert os.listdir(tmp_path) == []


def refuse(path: Path, message: str) -> None:
    with pytest.raises(SubjectError, match=message) as caught:
        Subject.load(path)
    assert str(path) in str(caught.value)


def test_files_that_are_none_are_refused_by_name(tmp_path):
    refuse(tmp_path / "nobody.safetensors", r"does not exist.*promptnet customize")
    refuse(tmp_path, "a folder")
    for name, data in {"empty": b"", "page": b"<html>not found</html>", "pickle": b"\x80\x04\x95" + b"\0" * 99}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        refuse(path, "no safetensors file, or was cut short")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    refuse(saved, r"cut short.*Copy it again")


def test_a_file_that_is_too_large_is_not_read(saved):
    os.truncate(saved, 2**40)  # sparse
    refuse(saved, "1099511627776 bytes")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_altered_bit_goes_unnoticed(saved, place, bit):
    data = bytearray(saved.read_bytes())
    data[place % len(data)] ^= 1 << bit
    other = saved.with_name("altered.safetensors")
    other.write_bytes(data)
    refuse(other, "cannot be used")


def rewritten(path: Path, change, *, honest: bool = True) -> None:
    """The file after `change(header, tensors)`, with a hash that fits if `honest`."""
    data = path.read_bytes()
    tensors = safetensors.torch.load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    header = json.loads(metadata[subject_file._KEY])
    change(header, tensors)
    if honest:
        texts = {name: value for name, value in header.items() if name not in ("version", "content_hash")}
        header["content_hash"] = hash_content(texts, tensors)
    safetensors.torch.save_file(tensors, path, metadata={subject_file._KEY: json.dumps(header)})


def test_rewriting_without_a_change_is_accepted(saved):
    rewritten(saved, lambda header, tensors: None)
    assert_same(Subject.load(saved), make_subject())


def test_an_altered_header_is_refused(saved):
    rewritten(saved, lambda header, tensors: header.update(class_word="man"), honest=False)
    refuse(saved, "altered since it was saved")


def test_another_version_is_refused(saved):
    rewritten(saved, lambda header, tensors: header.update(version=2))
    refuse(saved, r"format version 2, and this promptnet reads 1")


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {subject_file._KEY: "[" * 10_000}, {subject_file._KEY: "[1]"}):
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata=metadata)
        refuse(path, "a safetensors file, but no subject")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: t.pop("weights"), "not laid out as a subject"),
        (lambda h, t: t.update(extra=torch.ones(1)), "do not belong to a subject: extra"),
        (lambda h, t: t.pop(f"deltas.{KEY_LAYER}.up"), "not laid out as a subject"),
        (lambda h, t: t.pop(f"deltas.{KEY_LAYER}.down"), "do not belong to a subject"),
        (lambda h, t: t.update({f"deltas.{KEY_LAYER}.up": torch.ones(4, 3)}), "not laid out.*LoRA layer"),
        (lambda h, t: t.update(reference_latents=torch.ones(2, 4, 8, 8, dtype=torch.int8)), r"not torch\.int8"),
        (lambda h, t: t.update(vision_states=t["vision_states"] / 0), "not finite"),
        (lambda h, t: h.pop("class_word"), "not laid out as a subject"),
        (lambda h, t: h.update(surprise=1), "not laid out as a subject"),
        (lambda h, t: h.update(fingerprint=[1]), "not laid out as a subject"),
        (lambda h, t: h.update(class_word=7), "class_word=7"),
    ],
)
def test_a_file_made_wrong_is_refused_even_with_the_right_hash(saved, change, message):
    rewritten(saved, change)
    refuse(saved, message)


def test_the_name_of_loras_before_still_works() -> None:
    subject = make_subject()
    with pytest.warns(DeprecationWarning, match=r"Subject\.loras"):
        assert subject.deltas is subject.loras
