"""`promptnet doctor`."""

from importlib.metadata import version
from pathlib import Path

import pytest

from promptnet import cli
from promptnet.commands import doctor


def test_it_tells_versions_devices_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert found["torch"] == version("torch")
    assert found["extra serve"] == "installed"
    assert "the base model fits" in found["cpu"]
    size = sum(path.stat().st_size for path in Path("checkpoints/tiny").glob("*/*.safetensors"))
    assert found["weights of the base model"].startswith(f"{size / 2**30:.2f} GiB")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["nowhere-to-be-found>=1; extra == 'serve'", "torch>=2"])
    assert doctor.missing_packages("serve") == ["nowhere-to-be-found"]
    assert dict(doctor._extras())["extra serve"].startswith("lacks nowhere-to-be-found: pip install")


def test_an_id_of_the_hub_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--base", "owner/name"]) == 2
    assert "'owner/name' is not on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(("free", "said"), [(100, "fits"), (19, "may not fit")])
def test_weights_need_as_much_room_again(free: int, said: str) -> None:
    assert doctor._fits(free, 10).endswith(said)


def test_a_base_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--base", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
