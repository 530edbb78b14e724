"""What a job does with the model. It knows the pipeline, the records and the store, and nothing of HTTP or queues.

A job that runs twice draws the same again: its seeds stand in its request, each image has a generator of its own, and
what it makes is named after it.
"""

import base64
import errno
import hashlib
import json
import logging
import math
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from promptnet.images.load import open_image
from promptnet.inference.admission import ForeignReferenceError, UnfamiliarReferenceWarning
from promptnet.inference.editing.card import EditCard
from promptnet.inference.sampling.together import Together
from promptnet.inference.subject.fingerprint import fingerprint
from promptnet.inference.subject.subject import Subject, base_name
from promptnet.inference.tuning.config import TuningProgress
from promptnet.serve.batch_size import measured_rows
from promptnet.serve.logs import log, log_error, place_of
from promptnet.serve.records import MAX_STARTS, Job, Records
from promptnet.serve.settings import DAY_S, Settings
from promptnet.serve.store import Missing, Store, VaultError
from promptnet.serve.subject_cache import SubjectCache

EDIT_IMAGE_S = 60 * 60  # images of POST /v1/images/edits wait so long for a client that has gone
_PREVIEWS = 4


class Stopped(Exception):
    """The worker is asked to stop; the job waits again."""


class Canceled(Exception):
    """The job's owner does not want it any more, or it is gone."""


class Refused(ValueError):
    """What is asked cannot be drawn; the message is for the job's owner."""


@dataclass
class Worker:
    """A pipeline that does jobs, in as many threads as call `run`.

    Args:
        pipe: a PromptNetPipeline; only what belongs to a call is ever changed in it.
        records: of the service.
        store: of the service.
        settings: of the service.
        sign: PNG bytes -> the same with content credentials; None leaves images as they are.
    """

    pipe: Any
    records: Records
    store: Store
    settings: Settings
    sign: Callable[[bytes], bytes] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    counts: Any = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        self.model = describe(self.pipe)
        self.together = Together(self.pipe.unet, self.settings.max_rows or measured_rows(self.pipe))
        self.subjects = SubjectCache(self._load_subject)
        self.running: set[str] = set()

    def run(self, job: str) -> None:
        """Do a job to its end; nothing that goes wrong in it is raised."""
        found = self.records.begin(job)
        if found is None:
            return
        self.running.add(job)
        self.counts["jobs_started"] += 1
        self.counts["wait_seconds"] += max(0.0, (found.started or 0.0) - found.created)
        try:
            self._attempt(found)
        finally:
            self.running.discard(job)

    def _attempt(self, job: Job) -> None:
        start_s = time.perf_counter()
        try:
            if job.starts > MAX_STARTS:
                self._fail(job, "poisonous", f"the worker died {MAX_STARTS} times while it did this job")
            else:
                self._do(job)
        except Stopped:
            self.records.requeue(job.id)
            log("requeued", job=job.id, kind=job.kind)
            raise
        except Canceled:
            self.records.end(job.id, "canceled")
            self._forget(job)
        except (Missing, VaultError):
            self._fail(job, "gone", "what the job needs was deleted meanwhile")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            log_error("job failed", error, job=job.id, kind=job.kind)
            self._fail(job, "storage" if full else "internal", "the disk is full" if full else "a file failed")
        except ForeignReferenceError as error:
            self._fail(job, "foreign", str(error))
        except (ValueError, TypeError) as error:
            log("job refused", job=job.id, kind=job.kind, error=type(error).__name__, where=place_of(error))
            self._fail(job, "invalid", str(error))
        except Exception as error:
            log_error("job failed", error, job=job.id, kind=job.kind)
            self._fail(job, "internal", "the job failed; the service logged where")
        else:
            log("job done", job=job.id, kind=job.kind, ms=round((time.perf_counter() - start_s) * 1000))

    def _do(self, job: Job) -> None:
        request = json.loads(self.store.get(job.owner, "requests", job.id))
        if job.kind == "subject":
            self._customise(job, request)
        elif job.kind == "edit":
            self._draw(job, request, [self._encode(request)], expires_s=EDIT_IMAGE_S)
        else:
            self._draw(job, request, self._subjects(job, request), expires_s=self.settings.image_days * DAY_S)
        self.store.remove(job.owner, "requests", job.id)
        self.store.remove(job.owner, "previews", job.id)

    # -- subjects -----------------------------------------------------------------------------------------------------

    def _customise(self, job: Job, request: Mapping[str, Any]) -> None:
        generator = torch.Generator().manual_seed(request["seed"])
        if request["tune"]:
            subject = self.pipe.customize(
                _images(request),
                class_word=request["class_word"],
                allow_foreign=request.get("allow_foreign", False),
                steps=request["steps"],
                generator=generator,
                progress_bar=False,
                callback=lambda at: self._tuned(job, at),
            )
        else:
            subject = self._encode(request)
        name = named_after(job.id, "sub")
        num_bytes = self.store.put(job.owner, "subjects", name, subject.to_bytes())
        num_bytes += self.store.put(job.owner, "thumbnails", name, self._thumbnail(subject))
        now = time.time()
        row = {"id": name, "owner": job.owner, "created": now, "used": now, "bytes": num_bytes}
        row |= {"tuned": bool(subject.loras), "num_references": subject.num_references, "model": self.model["id"]}
        if not self.records.end(job.id, "succeeded", subject=row):
            for kind in ("subjects", "thumbnails"):
                self.store.remove(job.owner, kind, name)
            raise Canceled

    def _tuned(self, job: Job, at: TuningProgress) -> None:
        held_out = at.validation_loss if math.isfinite(at.validation_loss) else None
        self._at(job, at.step, at.num_steps, at.loss, held_out)

    @torch.no_grad()
    def _thumbnail(self, subject: Subject) -> bytes:
        """The first reference image as the encoder sees it, as PNG."""
        latents = subject.reference_latents[:1]
        return self._decoded(latents.to(self.pipe._execution_device, self.pipe.vae.dtype))

    def _encode(self, request: Mapping[str, Any]) -> Subject:
        options = {"class_word": request["class_word"], "allow_foreign": request.get("allow_foreign", False)}
        return self.pipe.encode(_images(request), **options)

    def _subjects(self, job: Job, request: Mapping[str, Any]) -> list[Subject]:
        return [self.subjects.get(job.owner, name) for name in request["subjects"]]

    def _load_subject(self, user: str, name: str) -> Subject:
        return Subject.from_bytes(self.store.get(user, "subjects", name)).to(self.pipe._execution_device)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self, job: Job, request: Mapping[str, Any], subjects: list[Subject], expires_s: float) -> None:
        options: dict[str, Any] = dict(request["sampling"])
        if request["size"]:
            options["width"], options["height"] = map(int, request["size"].split("x"))
        if subjects:
            options["subject"] = subjects[0] if len(subjects) == 1 else subjects
        edits = [self._card(job.owner, edit) for edit in request["edits"]]
        if edits:
            num_steps = options.get("num_inference_steps") or edits[0].num_steps
            options["num_inference_steps"] = num_steps
            options["edits"] = [card.at_steps(num_steps) for card in edits]
        seeds = request["seeds"]
        with self.together.joined(job.owner):
            drawn = self.pipe(
                request["prompt"],
                negative_prompt=request["negative_prompt"],
                num_images_per_prompt=len(seeds),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=self._after_step(job, request),
                **options,
            )
        self._keep(job, request, drawn.images, expires_s)

    def _keep(self, job: Job, request: Mapping[str, Any], images: list[Image.Image], expires_s: float) -> None:
        now, rows = time.time(), []
        for place, (image, seed) in enumerate(zip(images, request["seeds"], strict=True)):
            name = named_after(job.id, "img", place)
            num_bytes = self.store.put(job.owner, "images", name, self._png(image, seed, request))
            row = {"id": name, "owner": job.owner, "job": job.id, "place": place, "created": now}
            rows.append(row | {"expires": now + expires_s, "bytes": num_bytes})
        result = {"seeds": request["seeds"]}
        self.store.put(job.owner, "results", job.id, json.dumps(result).encode())
        if not self.records.end(job.id, "succeeded", images=rows):
            self.store.remove(job.owner, "images", *(row["id"] for row in rows))
            self.store.remove(job.owner, "results", job.id)
            raise Canceled

    def _png(self, image: Image.Image, seed: int, request: Mapping[str, Any]) -> bytes:
        """Seed and model alone, unless the request asks for more; credentials never hold the prompt."""
        said: dict[str, Any] = {"model": self.model["name"], "seed": seed}
        if request["metadata"]:
            said |= {name: request[name] for name in ("prompt", "negative_prompt", "size", "sampling")}
        info, out = PngInfo(), BytesIO()
        info.add_itxt("promptnet", json.dumps(said))
        image.save(out, "PNG", pnginfo=info)
        return self.sign(out.getvalue()) if self.sign is not None else out.getvalue()

    def _card(self, user: str, edit: Mapping[str, Any]) -> EditCard:
        if edit["owned"]:
            card = EditCard.from_bytes(self.store.get(user, "edits", edit["edit"]))
        else:
            card = EditCard.load(Path(self.settings.base) / "edits" / f"{edit['edit']}.safetensors")
        return card.scaled(edit["strength"])

    def _after_step(self, job: Job, request: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
        def after(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            num_steps = pipe.num_timesteps
            self._at(job, index + 1, num_steps)
            if request["preview"] and (index + 1) % max(1, num_steps // _PREVIEWS) == 0:
                self._show(job, tensors["latents"][:1])
            return tensors

        return after

    def _show(self, job: Job, latents: torch.Tensor) -> None:
        self.store.put(job.owner, "previews", job.id, self._decoded(latents))

    def _decoded(self, latents: torch.Tensor) -> bytes:
        image, out = self.pipe._finish(latents, "pil", self.pipe.trained_size_px)[0], BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _at(self, job: Job, step: int, num_steps: int, *losses: float | None) -> None:
        """Between two steps: say how far it is, and stop where it should."""
        if self.stopping.is_set():
            raise Stopped
        if not self.records.progress(job.id, step, num_steps, *losses):
            raise Canceled

    def _fail(self, job: Job, code: str, message: str) -> None:
        try:
            self.store.put(job.owner, "results", job.id, json.dumps({"message": message}).encode())
        except OSError as error:
            log_error("no room for an error's words", error, job=job.id)
        if not self.records.end(job.id, "failed", error=code):
            self.store.remove(job.owner, "results", job.id)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self.store.remove(job.owner, "requests", job.id)
        self.store.remove(job.owner, "previews", job.id)


def describe(pipe: Any) -> dict[str, Any]:
    """What the server has to know of the model: its name, which one it is, and the sizes it draws."""
    found = fingerprint(pipe)
    identity = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "id": identity,
        "name": base_name(pipe) or "model",
        "fingerprint": found,
        "size_px": [pipe.trained_size_px[1], pipe.trained_size_px[0]],
        "multiple_px": pipe.size_multiple_px,
        "num_inference_steps": pipe.sampling_defaults.num_inference_steps,
        "sampling": asdict(pipe.sampling_defaults),
    }


def named_after(job: str, kind: str, place: int = 0) -> str:
    """The name of what a job makes: the same whenever it runs."""
    return f"{kind}_{hashlib.sha256(f'{job}/{kind}/{place}'.encode()).hexdigest()[:24]}"


def _images(request: Mapping[str, Any]) -> list[Image.Image]:
    return [open_image(BytesIO(base64.b64decode(image))) for image in request["images"]]


def quiet_libraries() -> None:
    """Prompts are in what the libraries say of them, and a doubtful face is nobody's business but its owner's."""
    warnings.simplefilter("ignore", UnfamiliarReferenceWarning)
    for name in ("promptnet.models", "promptnet.inference"):
        logging.getLogger(name).setLevel(logging.ERROR)
