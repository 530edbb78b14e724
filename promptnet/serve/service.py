"""The service without HTTP: what a request becomes once it was understood."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from promptnet.serve.consent import consent_row
from promptnet.serve.database import EDITS, SUBJECTS, open_database
from promptnet.serve.heartbeat import known_model
from promptnet.serve.jobs import Queue
from promptnet.serve.keys import Caller, Keys, new_id
from promptnet.serve.logs import log, log_error
from promptnet.serve.problems import Problem, invalid, not_found, storage_problem, too_many, unauthorized
from promptnet.serve.records import IdempotencyConflict, Job, KeyIsGone, NewJob, Records, TooMany
from promptnet.serve.schemas import MAX_SEED
from promptnet.serve.settings import Settings
from promptnet.serve.store import Store
from promptnet.serve.vault import Vault

_ID = re.compile(r"[a-z]{1,10}_[0-9a-f]{24}")
_BUSY_S = 5
_RETRY_S = {"open jobs": 2, "subjects": 3600, "bytes": 3600}


class Service:
    """Everything that routes need.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settings = settings
        self.engine = open_database(settings.database_url)
        self.vault = Vault(settings.data / "keys")
        self.store = Store(settings.data, self.vault)
        self.keys, self.records = Keys(self.engine), Records(self.engine)
        self.queue = Queue(settings.database_url)

    def close(self) -> None:
        self.queue.close()
        self.engine.dispose()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        caller: Caller,
        kind: str,
        request: Mapping[str, Any],
        *,
        subjects: Sequence[str] = (),
        num_steps: int = 0,
        images: Sequence[bytes] = (),
        idempotency: str | None = None,
    ) -> Job:
        """Accept a job: what it asks is stored, encrypted, before its row is written, and the row before it is queued.

        Args:
            caller: whose it is.
            kind: as in `NewJob`.
            request: what the worker reads; missing seeds are drawn here, so that a repeated drawing is the same.
            subjects: ids of those it draws.
            num_steps: of its progress.
            images: uploads that consent was given for.
            idempotency: the client's key.

        Raises:
            Problem: a limit is reached, the key came with another request, or nothing can be stored.
        """
        most = self.settings.max_queued_requests
        if most and self.records.num_waiting() >= most:
            raise too_many(f"{most} jobs are waiting already: ask again in a while.", _BUSY_S, "busy")
        name = new_id("job")
        mark = self.vault.mark(caller.user, kind, json.dumps(request, sort_keys=True))
        new = NewJob(
            name,
            kind,
            subjects,
            num_steps,
            None if idempotency is None else self.vault.mark(caller.user, "idempotency", idempotency),
            mark,
            consent_row(caller, name, images, self.vault) if images else None,
        )
        try:
            stored = self.store.size(caller.user)
            self.store.put(caller.user, "requests", name, json.dumps(with_seeds(request)).encode())
            job, is_new = self._accepted(caller, new, stored)
        except (OSError, SQLAlchemyError) as error:
            log_error("not accepted", error)
            self._drop_request(caller, name)
            raise storage_problem() from error
        except BaseException:
            self._drop_request(caller, name)
            raise
        if not is_new:
            self._drop_request(caller, name)
        else:
            log("accepted", job=job.id, kind=kind)
            self.enqueue(job)
        return job

    def enqueue(self, job: Job) -> None:
        """Put an accepted job into the queue; where that fails it is put there later."""
        try:
            self.queue.enqueue(job.id, job.priority)
        except Exception as error:
            log_error("not queued yet", error, job=job.id)

    def _accepted(self, caller: Caller, new: NewJob, stored_bytes: int) -> tuple[Job, bool]:
        try:
            return self.records.accept(caller, new, stored_bytes)
        except TooMany as error:
            code = f"too-many-{error.what.replace(' ', '-')}"
            raise too_many(f"{str(error).capitalize()}.", _RETRY_S[error.what], code) from error
        except KeyIsGone as error:
            raise unauthorized() from error
        except IdempotencyConflict as error:
            raise Problem(
                409, "idempotency-conflict", "This Idempotency-Key was used for another request: take a new one."
            ) from error

    def _drop_request(self, caller: Caller, name: str) -> None:
        self.store.remove(caller.user, "requests", name)

    # -- checks that need the records ---------------------------------------------------------------------------------

    def model(self) -> dict[str, Any]:
        """The model that the workers draw with.

        Raises:
            Problem: no worker has loaded it yet.
        """
        model = known_model(self.engine)
        if model is None:
            raise Problem(503, "starting", "The model is being loaded.", {"Retry-After": "5"})
        return model

    def check_subjects(self, caller: Caller, names: Sequence[str]) -> None:
        """Refuse subjects that are not the caller's, or of another base model.

        Raises:
            Problem: 404 or 409.
        """
        rows = [self.records.owned(SUBJECTS, checked_id(name), caller.user) for name in names]
        if any(row is None for row in rows):
            raise not_found()
        model = self.model()["id"] if rows else ""
        if any(row["model"] != model for row in rows if row is not None):
            raise Problem(
                409, "other-base-model", "A subject was made with another base model: customise it again with this one."
            )

    def check_drawing(self, size: str | None, num_images: int, num_steps: int | None) -> None:
        """Refuse more than the service takes on, and sizes that the model cannot draw.

        Raises:
            Problem: 422.
        """
        settings = self.settings
        if num_images > settings.max_images:
            raise invalid(f"n={num_images} must be at most {settings.max_images}", "n")
        if (num_steps or 1) > settings.max_steps:
            raise invalid(
                f"num_inference_steps={num_steps} must be at most {settings.max_steps}", "num_inference_steps"
            )
        if size:
            multiple = self.model()["multiple_px"]
            sides = [int(side) for side in size.split("x")]
            if any(side % multiple or side > settings.max_side_px for side in sides):
                raise invalid(
                    f"size={size}: sides must be multiples of {multiple} and at most {settings.max_side_px}", "size"
                )

    def edits(self, caller: Caller, wanted: Sequence[Any]) -> list[dict[str, Any]]:
        """Edits as the worker reads them, each the caller's own or the base model's.

        Raises:
            Problem: 404 for one that is neither.
        """
        found = []
        for edit in wanted:
            owned = edit.edit not in self.base_edits()
            if owned and self.records.owned(EDITS, checked_id(edit.edit), caller.user) is None:
                raise not_found()
            found.append({"edit": edit.edit, "strength": edit.strength, "owned": owned})
        return found

    def base_edits(self) -> list[str]:
        """Names of the edit cards that lie in the base model's folder."""
        return sorted(path.stem for path in (Path(self.settings.base) / "edits").glob("*.safetensors"))


def checked_id(name: str) -> str:
    """An id that may be one of ours; others never reach the database or the disk.

    Raises:
        Problem: 404.
    """
    if not _ID.fullmatch(name):
        raise not_found()
    return name


def with_seeds(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with every seed that it leaves to chance drawn: one, or with `n` one for each image."""
    seed = request.get("seed")
    first = secrets.randbelow(MAX_SEED) if seed is None else seed
    if "n" not in request:
        return {**request, "seed": first}
    seeds = [(first + place) % (MAX_SEED + 1) for place in range(request["n"])]
    return {**request, "seeds": seeds}
