"""`promptnet serve`: a service for many users, its keys, its backups and the proof of a deletion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from promptnet.commands._loading import EMBEDDED, find_base

if TYPE_CHECKING:
    import sqlalchemy as sa

    from promptnet.serve.keys import Keys
    from promptnet.serve.settings import Settings

DATA = Path("outputs/service")
_NEEDS = "the service needs the extra: pip install 'promptnet[serve]'"


def run(
    base: str = EMBEDDED,
    data: Path = DATA,
    database: str = "",
    workers: int = 1,
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int = 9000,
    device: str = "auto",
    jobs_at_once: int = 8,
    threads: int = 0,
    subject_days: float = 90.0,
    content_credentials: str = "own",
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> None:
    """Serve customising and drawing over HTTP; `promptnet serve` alone is this.

    Args:
        base: base model with its encoder, a folder in diffusers layout or a Hub id
        data: folder of everything that the service keeps; made if missing
        database: URL of a Postgres database (empty: a SQLite file in the data folder)
        workers: worker processes, each with the model in memory
        host: address to listen on
        port: of the API
        metrics_port: of the metrics; 0 for none
        device: of the workers: auto, cpu, cuda, ...
        jobs_at_once: jobs that one worker holds at a time
        threads: of torch in each worker (0: torch's own choice)
        subject_days: days after which an unused subject is deleted
        content_credentials: own (images are signed with a certificate of the service's own, or with the one given) or
            none
        certificate: PEM of a signing certificate and its chain
        private_key: PEM of its key
    """
    if content_credentials not in ("own", "none"):
        raise ValueError(f"content_credentials='{content_credentials}' must be own or none")
    check_installed()
    from promptnet.serve.run import run as serve
    from promptnet.serve.settings import Settings

    make_folder(data)
    settings = Settings(
        base=find_base(base),
        data=data,
        database=database,
        workers=workers,
        host=host,
        port=port,
        metrics_port=metrics_port,
        device=device,
        jobs_at_once=jobs_at_once,
        threads=threads,
        subject_days=subject_days,
        content_credentials=content_credentials == "own",
        certificate=str(certificate or ""),
        private_key=str(private_key or ""),
    )
    serve(settings)


def work(
    base: str = EMBEDDED,
    data: Path = DATA,
    database: str = "",
    device: str = "auto",
    jobs_at_once: int = 8,
    threads: int = 0,
) -> None:
    """Do jobs of a service that runs elsewhere with --workers 0, until SIGTERM; one process for each accelerator.

    Args:
        base: base model of the service
        data: folder of the service, shared by all its machines
        database: URL of its Postgres database (empty: the SQLite file in the data folder, on one machine)
        device: auto, cpu, cuda, ...
        jobs_at_once: jobs held at a time
        threads: of torch (0: torch's own choice)
    """
    check_installed()
    import signal
    import threading

    from promptnet.serve import logs
    from promptnet.serve.settings import Settings
    from promptnet.serve.worker_process import work_in_claimed_slot

    make_folder(data)
    settings = Settings(
        base=find_base(base), data=data, database=database, device=device, jobs_at_once=jobs_at_once, threads=threads
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logs.set_up()
    work_in_claimed_slot(settings, stop)


def add_key(
    data: Path = DATA,
    database: str = "",
    user: str | None = None,
    scope: str = "user",
    requests_per_minute: int | None = None,
    open_jobs: int | None = None,
    subjects: int | None = None,
    megabytes: int | None = None,
) -> None:
    """Make a key and print it; it is shown this once.

    Args:
        data: folder of the service
        database: URL of its database, if it is not in that folder
        user: id of the user whose key it is (null: a new user)
        scope: user or admin
        requests_per_minute: limit of this key (null: 120)
        open_jobs: limit of jobs that wait or run (null: 16)
        subjects: limit of stored subjects (null: 100)
        megabytes: limit of what is stored (null: 1024)
    """
    keys = _keys(data, database)
    from promptnet.serve.keys import KeyLimits

    given = {"requests_per_minute": requests_per_minute, "open_jobs": open_jobs, "subjects": subjects}
    given["bytes"] = None if megabytes is None else megabytes * 2**20
    limits = KeyLimits(**{name: value for name, value in given.items() if value is not None})
    secret, caller = keys.add(user=user, scope=scope, limits=limits)
    print(secret)
    print(f"{caller.key} of {caller.user}, scope {caller.scope}; the key above is not shown again")


def list_keys(data: Path = DATA, database: str = "") -> None:
    """List the keys, without their secrets.

    Args:
        data: folder of the service
        database: URL of its database, if it is not in that folder
    """
    for row in _keys(data, database).listed():
        state = "valid" if row["revoked"] is None else "revoked"
        print(f"{row['id']}  {row['prefix']}...  {row['owner']}  {row['scope']}  {state}")


def revoke_key(key: str, data: Path = DATA, database: str = "") -> None:
    """Revoke a key, from now on; what it made stays its user's.

    Args:
        key: id of the key, or its beginning as listed
        data: folder of the service
        database: URL of its database, if it is not in that folder
    """
    _keys(data, database).revoke(key)
    print("revoked")


def verify_deletion(receipt: Path, data: Path = DATA, database: str = "") -> None:
    """Prove that what a receipt names is in no table, file name or file any more.

    Args:
        receipt: the answer to DELETE /v1/me, as a JSON file
        data: folder of the service, or of a copy of it
        database: URL of its database, if it is not in that folder
    """
    ids = _ids_of(receipt)
    settings, engine = _opened(data, database)
    from promptnet.serve.deletion import find_traces

    found = find_traces(settings, engine, ids)
    if found:
        raise ValueError(f"what receipt '{receipt}' names is still in: {', '.join(found)}")
    print(f"none of the {len(ids)} ids of {receipt} is left in {data}")


def backup(out: Path, data: Path = DATA, database: str = "") -> None:
    """Copy everything but the keys, while the service runs.

    Args:
        out: the folder to make
        data: folder of the service
        database: URL of its database, if it is not in that folder
    """
    settings, _ = _opened(data, database)
    from promptnet.serve.backup import back_up

    notes = back_up(settings, out)
    print(f"{out}: copied")
    for note in notes:
        print(f"note: {note}")


def _ids_of(receipt: Path) -> list[str]:
    try:
        ids = json.loads(receipt.read_text("utf-8"))["ids"]
        if not ids or not all(isinstance(name, str) and len(name) > 8 for name in ids):
            raise ValueError("no ids")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"receipt '{receipt}' is not the JSON that DELETE /v1/me answered with") from error
    return ids


def _keys(data: Path, database: str) -> Keys:
    from promptnet.serve.keys import Keys

    check_installed()
    make_folder(data)
    return Keys(_opened(data, database)[1])


def _opened(data: Path, database: str) -> tuple[Settings, sa.Engine]:
    check_installed()
    if not data.is_dir():
        raise ValueError(f"there is no service's data in '{data}': name its folder with --data")
    from promptnet.serve.database import open_database
    from promptnet.serve.settings import Settings

    settings = Settings(base="", data=data, database=database)
    return settings, open_database(settings.database_url)


def make_folder(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)


def check_installed() -> None:
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("fastapi", "dbos", "cryptography", "c2pa")):
        raise ValueError(_NEEDS)
