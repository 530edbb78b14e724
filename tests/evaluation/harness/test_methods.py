import pytest

from promptnet.evaluation.harness.methods import METHODS, OURS, PUBLISHED, SUBJECT_PARAMETERS, make_method, our_methods

CUSTOMIZE = {OURS: {"steps": 50}, PUBLISHED: {"steps": 80}}

BOTH = {"class_scale": 1.0, "fusion_steps": 1}


def test_the_methods_are_those_of_the_comparison_in_order():
    assert list(METHODS) == [
        "prompt-only",
        "described",
        "plain-guidance",
        "plain-guidance-tuned",
        "fusion-only",
        "refinement-only",
        "profusion-untuned",
        "profusion",
        "best",
        "published-plain-guidance-tuned",
        "published-profusion",
        "ceiling",
    ]


@pytest.mark.parametrize(
    ("name", "encoder", "tuned"),
    [
        ("plain-guidance", OURS, False),
        ("plain-guidance-tuned", OURS, True),
        ("profusion-untuned", OURS, False),
        ("profusion", OURS, True),
        ("published-plain-guidance-tuned", PUBLISHED, True),
        ("published-profusion", PUBLISHED, True),
    ],
)
def test_encoder_and_tuning_of_each_method(name, encoder, tuned):
    method = make_method(name, BOTH if "profusion" in name else {}, CUSTOMIZE)
    assert (method.encoder, method.tuned) == (encoder, tuned)
    assert method.customize == (CUSTOMIZE[encoder] if tuned else {})


def test_methods_without_fusion_have_no_fusion_steps():
    for name in ("plain-guidance", "plain-guidance-tuned", "published-plain-guidance-tuned"):
        method = make_method(name, {"subject_scale": 4.0}, CUSTOMIZE)
        assert method.config == {**SUBJECT_PARAMETERS, "subject_scale": 4.0}
        assert method.config["fusion_steps"] == method.config["class_scale"] == 0
    assert make_method("refinement-only", {"class_scale": 2.0}, CUSTOMIZE).config["fusion_steps"] == 0
    assert make_method("fusion-only", {"fusion_steps": 2}, CUSTOMIZE).config["class_scale"] == 0


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("profusionn", {}, "no method 'profusionn': choose from prompt-only, "),
        ("plain-guidance", {"class_scale": 1.0}, "does not choose 'class_scale', only: subject_scale"),
        ("fusion-only", {"fusion_steps": 1, "class_scale": 1.0}, "does not choose 'class_scale'"),
        ("ceiling", {"subject_scale": 1.0}, "only: nothing"),
        ("fusion-only", {}, "needs fusion_steps above 0"),
        ("refinement-only", {"class_scale": 0.0}, "needs class_scale above 0"),
        ("profusion", {"class_scale": 1.0}, "needs fusion_steps above 0"),
        ("plain-guidance", {"subject_scale": "3"}, "subject_scale='3' .* is not a number"),
        ("plain-guidance", {"subject_scale": -1.0}, "subject_scale=-1.0 .* of at least 0"),
        ("plain-guidance", {"subject_scale": float("nan")}, "is not a number"),
        ("plain-guidance", {"tuned": True}, "does not choose 'tuned'"),
    ],
)
def test_a_method_that_contradicts_its_name_raises(name, chosen, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, chosen, CUSTOMIZE)


def test_best_may_leave_tuning_out():
    assert make_method("best", {}, CUSTOMIZE).customize == {"steps": 50}
    untuned = make_method("best", {"tuned": False, "subject_scale": 2.0}, CUSTOMIZE)
    assert not untuned.tuned
    assert untuned.customize == {}
    assert untuned.record() == make_method("plain-guidance", {"subject_scale": 2.0}, CUSTOMIZE).record()


def test_methods_with_our_encoder():
    others = ("published", "prompt", "described", "best", "ceiling")
    assert our_methods() == [name for name in METHODS if not name.startswith(others)]


def test_a_described_person_needs_no_encoder_and_is_no_plain_prompt():
    described, plain = make_method("described", {}, CUSTOMIZE), make_method("prompt-only", {}, CUSTOMIZE)
    assert "encoder" not in described.record()
    assert described.config == plain.config
    assert described.record() != plain.record(), "the image cache would mix them up"


def test_parameters_of_absent_fusion_decide_nothing():
    first, second = (make_method("best", {"pseudo_word_scale": value}, CUSTOMIZE) for value in (0.4, 0.8))
    assert first.record() == second.record()
    first, second = (make_method("best", {"pseudo_word_scale": v, "fusion_steps": 1}, CUSTOMIZE) for v in (0.4, 0.8))
    assert first.record() != second.record()
