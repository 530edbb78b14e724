"""What a model card says comes from the data and the base model, whatever the config was written for."""

import re
from pathlib import Path

import yaml

from promptnet.training.callbacks import WriteModelCard

ROOT = Path(__file__).parents[2]


def test_title_and_licences_are_those_of_the_base_model(tmp_path: Path):
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: 'mit'\n---\nlicense: other\n")
    (tmp_path / "bare").mkdir()
    card = WriteModelCard("faces", "with consent")
    found = {name: card._text(str(tmp_path / name)) for name in (".", "bare")}
    assert (found["."].base_licence, found["."].licence) == ("mit", "mit")
    assert (found["bare"].title, found["bare"].licence) == ("PromptNet encoder for bare", "not stated")
    xl = card._text("stabilityai/stable-diffusion-xl-base-1.0")
    assert (xl.title, xl.licence) == ("PromptNet encoder for stabilityai/stable-diffusion-xl-base-1.0", "openrail++")
    own = WriteModelCard("faces", "with consent", base_licence="a", licence="b", title="c")._text("anything")
    assert (own.base_licence, own.licence, own.title) == ("a", "b", "c")


def test_no_config_says_how_many_people_or_another_base_model():
    for path in (ROOT / "configs/pretrain").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        callbacks = config["trainer"]["callbacks"]
        (card,) = (each["init_args"] for each in callbacks if "WriteModelCard" in each["class_path"])
        assert not re.search(r"\d+ (people|images)", card["data"])
        base = config["model"]["init_args"]["base_dir"]
        assert base.endswith("tiny") or not card.keys() & {"title", "base_licence", "licence"}
