"""`promptnet inspect` of images: the record of how one was made, and content credentials."""

import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from promptnet import cli
from promptnet.serve.provenance import Signer, make_certificate


@pytest.fixture(scope="module")
def signer() -> Signer:
    chain, key = make_certificate()
    return Signer(chain.decode(), key.decode())


def png(record: str = "") -> bytes:
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    if record:
        info.add_itxt("promptnet", record)
    Image.effect_noise((64, 64), 80).convert("RGB").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_record_and_credentials_are_read(signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(signer(png('{"seed": 3}')))
    assert cli.main(["inspect", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'a.png'}: image, intact\n")
    for line in ('promptnet: {"seed": 3}', "content credentials: Valid", "signed by: promptnet", "model: yes"):
        assert line in said


def test_credentials_alone_are_read(signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(signer(png()))
    assert cli.main(["inspect", str(tmp_path / "a.png")]) == 0
    assert "image, intact" in capsys.readouterr().out


def test_an_image_that_was_changed_after_signing_is_found(
    signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(signer(png('{"seed": 3}')))
    place = data.index(b'{"seed": 3}')
    data[place : place + 11] = b'{"seed": 4}'
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(tmp_path / "a.png")])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "damaged or altered" in said
    assert "content credentials: Invalid" in said


def test_an_image_without_either_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        assert cli.main(["inspect", str(tmp_path / name)]) == 2
        assert "is an image without metadata of promptnet" in capsys.readouterr().err
