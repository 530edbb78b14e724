import json
from dataclasses import asdict

import pytest

from promptnet.inference.tuning.config import TuningConfig


def test_knobs_survive_a_json_file():
    config = TuningConfig(steps=7, train=("kv",), scales=(0.5, 1.0), prompts=("S* in a hat", "a photo of S*"))
    assert TuningConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_none_leaves_a_knob_as_it_is():
    config = TuningConfig(steps=7, rank=2)
    assert config.replaced({"steps": None, "rank": 3}) == TuningConfig(steps=7, rank=3)


def test_one_prompt_or_part_may_be_given_as_it_is():
    config = TuningConfig(train="kv", prompts="S* smiling")  # type: ignore[arg-type]
    assert (config.train, config.prompts) == (("kv",), ("S* smiling",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -1}, "steps=-1 must be a whole number of at least 0"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"rank": 0}, "rank=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_views": 0}, "num_views=0"),
        ({"validate_every": 0}, "validate_every=0"),
        ({"patience": 0}, "patience=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"train": ()}, "must name one or more of words, kv"),
        ({"train": ("everything",)}, r"train=\('everything',\)"),
        ({"prompts": ()}, "at least one prompt"),
        ({"prompts": "a photo of a man"}, r"'a photo of a man' must mention S\*"),
        ({"prompts": "S1* and S*"}, "no other placeholder"),
        ({"momentum": 0.9}, "Unknown tuning parameter momentum: there are batch_size, "),
    ],
)
def test_values_out_of_range_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        TuningConfig().replaced(given)
