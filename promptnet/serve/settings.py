"""What a service is told when it starts; handed to its worker processes as JSON."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

DAY_S = 24 * 60 * 60


@dataclass(frozen=True)
class Settings:
    """One service: where its model, its data and its doors are, and how much it takes on.

    Args:
        base: folder of the base model in diffusers layout, or a Hub id.
        data: folder of everything the service keeps.
        database: SQLAlchemy URL of queue and records; empty is a SQLite file in `data`.
        workers: worker processes, each with the model in memory.
        host: address that is listened on.
        port: of the API.
        metrics_port: of Prometheus' metrics; 0 turns them off.
        device: of the workers: "auto", "cpu", "cuda", ...
        jobs_at_once: jobs that one worker holds at a time; their evaluations share batches.
        max_queued_requests: jobs of everybody that may wait at a time; 0 leaves it to the keys' own limits.
        max_rows: rows of one U-Net call at most; 0 measures on a GPU how many its memory
            holds, and is 32 elsewhere; halved where memory ends.
        threads: of torch in a worker; 0 leaves it to torch.
        max_upload_bytes: of a request's body.
        max_pixels: of an uploaded image.
        max_references: reference images of one subject.
        max_images: images of one job.
        max_steps: denoising steps of one drawing, and tuning steps of one subject.
        max_side_px: of a drawn image.
        body_s: in which a request's body must have come.
        subject_days: after which an unused subject expires.
        image_days: after which a drawn image expires.
        job_days: after which a job that ended is forgotten.
        sweep_s: between two looks for what has expired.
        content_credentials: whether drawn images carry them (C2PA).
        certificate: PEM file of the signing certificate and its chain; empty is one of the service's own.
        private_key: PEM file of that certificate's key.
        log_level: of what is logged: "INFO", or "WARNING" where nobody reads it.

    Raises:
        ValueError: a number is out of its range.
    """

    base: str
    data: Path
    database: str = ""
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 9000
    device: str = "auto"
    jobs_at_once: int = 8
    max_queued_requests: int = 0
    max_rows: int = 0
    threads: int = 0
    max_upload_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 25_000_000
    max_references: int = 8
    max_images: int = 8
    max_steps: int = 200
    max_side_px: int = 2048
    body_s: float = 60.0
    subject_days: float = 90.0
    image_days: float = 90.0
    job_days: float = 30.0
    sweep_s: float = 60.0
    content_credentials: bool = True
    certificate: str = ""
    private_key: str = ""
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", Path(self.data).absolute())
        least = {"port": 1, "metrics_port": 0, "workers": 0, "jobs_at_once": 1, "max_upload_bytes": 1024}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {smallest}")
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("certificate and private_key belong together: give both or neither")

    @property
    def database_url(self) -> str:
        """URL of the database, with the driver that is installed for Postgres."""
        if not self.database:
            return f"sqlite:///{self.data / 'service.sqlite'}"
        scheme, _, rest = self.database.partition("://")
        return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else self.database

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"data": str(self.data)})

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        return cls(**json.loads(text))

    def replaced(self, **given: Any) -> "Settings":
        """Return these settings with those given that are not None."""
        known = {field.name for field in fields(self)}
        return replace(self, **{name: value for name, value in given.items() if name in known and value is not None})
