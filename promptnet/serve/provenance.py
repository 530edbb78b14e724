"""Content credentials: drawn images say, signed, that a generative model made them (C2PA 2.2, IPTC's
`trainedAlgorithmicMedia`).

The manifest names the action, the kind of source and this program. It never holds the prompt, nor who asked. With a
certificate of the service's own a reader says "valid, but signed by somebody unknown"; a certificate of an authority
is given by option.
"""

import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from promptnet.io.atomic import write_whole
from promptnet.serve.settings import Settings

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_YEARS = 10
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class Credentials:
    """What an image's content credentials say.

    Args:
        state: "Valid", "Trusted" or "Invalid", as C2PA calls it: whether image and signature belong together.
        made_by: the program that signed.
        source_type: what kind of source, as an address of IPTC's vocabulary.
        generated: whether that is a generative model.
        issuer: who signed, or "".
    """

    state: str
    made_by: str
    source_type: str
    generated: bool
    issuer: str


def read_credentials(path: str | os.PathLike[str]) -> Credentials | None:
    """Read the content credentials of an image file; None if it has none.

    Raises:
        ValueError: the file does not exist, is of no kind that carries them, or they cannot be read.
    """
    path = Path(path)
    media_type = _MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise ValueError(f"image '{path}' must end in {', '.join(_MEDIA_TYPES)} to carry content credentials")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"image '{path}' cannot be read ({error.strerror})") from error
    try:
        return credentials_in(data, media_type)
    except ValueError as error:
        raise ValueError(f"image '{path}': {error}") from error


def credentials_in(data: bytes, media_type: str = "image/png") -> Credentials | None:
    """The content credentials in an image file's content; None if it has none.

    Raises:
        ValueError: they are broken.
    """
    import c2pa

    try:
        with c2pa.Reader(media_type, BytesIO(data), context=_context()) as reader:
            manifest, state = reader.get_active_manifest() or {}, reader.get_validation_state() or ""
    except c2pa.C2paError as error:
        if type(error).__name__.endswith("ManifestNotFound"):
            return None
        raise ValueError(f"its content credentials cannot be read ({type(error).__name__.lstrip('_')})") from error
    source_type = _source_type(manifest)
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    made_by = f"{generator.get('name', '')} {generator.get('version', '')}".strip()
    issuer = (manifest.get("signature_info") or {}).get("issuer") or ""
    return Credentials(state, made_by, source_type, source_type == SOURCE_TYPE, issuer)


def _source_type(manifest: Mapping[str, Any]) -> str:
    for assertion in manifest.get("assertions", []):
        if assertion.get("label", "").startswith("c2pa.actions"):
            for action in assertion["data"]["actions"]:
                if "digitalSourceType" in action:
                    return action["digitalSourceType"]
    return ""


class Signer:
    """Signs drawn images.

    Args:
        certificate: PEM of the certificate and its chain.
        private_key: PEM of its key, for ECDSA on P-256.

    Raises:
        ValueError: the two do not belong together, or may not sign.
    """

    def __init__(self, certificate: str, private_key: str) -> None:
        import c2pa

        # An empty address of a time-stamp authority would be an error; None is none.
        self._info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, certificate.encode(), private_key.encode(), None)
        self._manifest = json.dumps(_manifest())
        try:
            self(_probe())
        except c2pa.C2paError as error:
            raise ValueError(
                "the certificate cannot sign content credentials: it needs an ECDSA key on P-256, and the extended "
                "key usage emailProtection or documentSigning"
            ) from error

    def __call__(self, png: bytes) -> bytes:
        """The image with its credentials, as PNG."""
        import c2pa

        out = BytesIO()
        signer = c2pa.Signer.from_info(self._info)
        with c2pa.Builder(self._manifest, context=_context()) as builder:
            builder.sign(signer, "image/png", BytesIO(png), out)
        return out.getvalue()


def signer_of(settings: Settings) -> Callable[[bytes], bytes] | None:
    """The service's signer, whose key is made when it is first needed; None if images carry no credentials."""
    if not settings.content_credentials:
        return None
    if settings.certificate:
        certificate, key = Path(settings.certificate), Path(settings.private_key)
    else:
        certificate, key = _own_certificate(settings.data / "keys")
    return Signer(certificate.read_text("utf-8"), key.read_text("utf-8"))


def _manifest() -> dict[str, Any]:
    from promptnet import __version__

    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    return {
        "claim_generator_info": [{"name": "promptnet", "version": __version__}],
        "format": "image/png",
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _context() -> Any:
    """Without a thumbnail, which would be larger than the image's credentials by far; nothing is fetched."""
    import c2pa

    return c2pa.Context(
        c2pa.Settings.from_dict(
            {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
        )
    )


def _probe() -> bytes:
    from PIL import Image

    out = BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def _own_certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key in the key folder, made if they are missing: one file each, the certificate last."""
    certificate, key = folder / "content-credentials.pem", folder / "content-credentials.key"
    if not certificate.exists():
        chain, private = make_certificate()
        write_whole(key, private)
        write_whole(certificate, chain)
    return certificate, key


def make_certificate() -> tuple[bytes, bytes]:
    """A signing certificate with its authority, and the signing key: PEM. The authority's key is not kept."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "promptnet service"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )

    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, public: Any, extensions: list[tuple[Any, bool]]) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=name("promptnet service authority"),
            subject_name=name(subject),
            public_key=public,
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=365 * _YEARS),
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        for extension, critical in [*extensions, (identifier, False)]:
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority_key, hashes.SHA256())

    authority = certificate(
        "promptnet service authority",
        authority_key.public_key(),
        [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_usage(key_cert_sign=True), True),
            (x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), False),
        ],
    )
    leaf = certificate(
        "promptnet service images",
        key.public_key(),
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        ],
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return leaf.public_bytes(pem) + authority.public_bytes(pem), private


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
