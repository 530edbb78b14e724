"""Content credentials: there, small, valid, and invalid once the image is changed."""

import io
from pathlib import Path

import pytest
from PIL import Image

from promptnet.serve.provenance import SOURCE_TYPE, Signer, make_certificate, read_credentials, signer_of
from promptnet.serve.settings import Settings


def png(size_px: int = 64) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((size_px, size_px), 80).convert("RGB").save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    folder = tmp_path_factory.mktemp("service")
    (folder / "keys").mkdir()
    settings = Settings(base="", data=folder)
    signed = signer_of(settings)
    assert signed is not None
    assert signer_of(settings) is not None  # with the key of the first start
    assert (folder / "keys" / "content-credentials.key").stat().st_mode & 0o077 == 0
    return signed  # type: ignore[return-value]


def test_a_signed_image_says_what_made_it(signer: Signer, tmp_path: Path) -> None:
    plain = png()
    path = tmp_path / "drawn.png"
    path.write_bytes(signer(plain))
    found = read_credentials(path)
    assert found is not None
    assert (found.state, found.source_type, found.issuer) == ("Valid", SOURCE_TYPE, "promptnet service")
    assert found.made_by.startswith("promptnet ")
    assert path.stat().st_size - len(plain) < 20_000
    assert Image.open(path).tobytes() == Image.open(io.BytesIO(plain)).tobytes()


def test_a_changed_image_is_invalid(signer: Signer, tmp_path: Path) -> None:
    data = bytearray(signer(png()))
    data[data.rindex(b"IDAT") + 400] ^= 1
    path = tmp_path / "changed.png"
    path.write_bytes(bytes(data))
    found = read_credentials(path)
    assert found is not None
    assert found.state == "Invalid"


def test_an_image_without_credentials_has_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    path.write_bytes(png())
    assert read_credentials(path) is None


@pytest.mark.parametrize(("name", "message"), [("x.txt", "must end in"), ("x.png", "cannot be read")])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_credentials(tmp_path / name)


def test_a_certificate_that_may_not_sign_is_refused() -> None:
    chain, _ = make_certificate()
    _, other_key = make_certificate()
    with pytest.raises(ValueError, match="cannot sign content credentials"):
        Signer(chain.decode(), other_key.decode())


def test_credentials_can_be_turned_off_and_both_files_belong_together(tmp_path: Path) -> None:
    assert signer_of(Settings(base="", data=tmp_path, content_credentials=False)) is None
    with pytest.raises(ValueError, match="belong together"):
        Settings(base="", data=tmp_path, certificate="a.pem")
