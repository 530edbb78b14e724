"""One worker process: a slot, a model, and jobs until it is told to stop.

It is started by the supervisor with its settings on the standard input, which stays open: when it closes, the
supervisor is dead, and so is this process, before another may start in its slot.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from promptnet.serve import logs
from promptnet.serve.settings import Settings

BEAT_S = 0.5
STOP_S = 8.0


def main() -> None:
    """Run a worker until SIGTERM, or until the supervisor is gone."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the supervisor says what to do
    told = json.loads(sys.stdin.readline())
    settings, slot = Settings.from_json(told["settings"]), int(told["slot"])
    logs.set_up(settings.log_level)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    lock = hold_slot(settings.data, slot)
    try:
        _work(settings, slot, stop)
    except BaseException as error:
        logs.log_error("worker failed", error, slot=slot)
        os._exit(1)
    finally:
        lock.close()
    os._exit(0)  # threads of jobs that were requeued are left standing


def hold_slot(data: Path, slot: int) -> IO[Any]:
    """Wait until no other process works in this slot, and hold it until this one ends, however it ends."""
    folder = data / "workers"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / f"slot-{slot}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _end_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(1)


def work_in_claimed_slot(settings: Settings, stop: threading.Event) -> None:
    """Work in a slot that is claimed in the database, until told to stop: for workers on many machines.

    Raises:
        NoSlot: there is none.
    """
    from promptnet.serve.database import open_database
    from promptnet.serve.slots import MOST, claim_slot, take_forsaken

    engine = open_database(settings.database_url)
    slot = claim_slot(engine)
    beating = threading.Event()
    threading.Thread(target=_keep, args=(slot, beating), daemon=True).start()  # the model takes long to load
    try:
        _work(settings, slot.number, stop, lambda: not slot.beat(), MOST, lambda: take_forsaken(engine))
    finally:
        beating.set()
        slot.release()


def _keep(slot: Any, beating: threading.Event) -> None:
    while not beating.wait(2.0):
        if not slot.beat():
            os._exit(1)


def _work(
    settings: Settings,
    slot: int,
    stop: threading.Event,
    lost: Callable[[], bool] = lambda: False,
    num_slots: int = 0,
    forsaken: Callable[[], list[int]] = list,
) -> None:
    import torch

    from promptnet.serve import jobs
    from promptnet.serve.heartbeat import Heartbeat

    if settings.threads:
        torch.set_num_threads(settings.threads)
    worker = build_worker(settings)
    beat = Heartbeat(worker, slot)
    beat.write(ready=False)
    jobs.work(settings.database_url, slot, job_runner(worker), settings.jobs_at_once, num_slots or settings.workers)
    logs.log("worker ready", slot=slot, pid=os.getpid())
    while not stop.wait(BEAT_S):
        if lost():
            logs.log("slot lost", slot=slot)
            os._exit(1)  # another has it, and its jobs
        beat.write(ready=True)
        jobs.take_over(forsaken())
    worker.stopping.set()
    deadline_s = time.monotonic() + STOP_S
    while worker.running and time.monotonic() < deadline_s:
        time.sleep(0.02)
    beat.write(ready=False)
    logs.log("worker stopped", slot=slot, count=len(worker.running))


def job_runner(worker: Any) -> Any:
    """What the queue calls for a job. A job that was requeued keeps its thread until the process ends, for the queue
    is to count it as begun: so this slot gets it back when it starts again."""
    from promptnet.serve.worker import Stopped

    def run(job: str) -> None:
        try:
            if not worker.stopping.is_set():
                worker.run(job)
                return
        except Stopped:
            pass
        threading.Event().wait()

    return run


def build_worker(settings: Settings) -> Any:
    """Load the model, and give it the service's records and store."""
    from promptnet.serve.database import open_database
    from promptnet.serve.provenance import signer_of
    from promptnet.serve.records import Records
    from promptnet.serve.store import Store
    from promptnet.serve.vault import Vault
    from promptnet.serve.worker import Worker, quiet_libraries

    quiet_libraries()
    engine = open_database(settings.database_url)
    store = Store(settings.data, Vault(settings.data / "keys"))
    return Worker(load_pipeline(settings), Records(engine), store, settings, signer_of(settings))


def load_pipeline(settings: Settings) -> Any:
    """Load the base model onto the worker's device.

    Raises:
        ValueError: it cannot be loaded.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from promptnet.inference.pipeline import PromptNetPipeline

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    device = settings.device
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found.type if found else "cpu"
    if os.path.isfile(os.path.join(settings.base, "dreambooth.json")):  # what promptnet.baselines.dreambooth leaves
        raise ValueError(f"'{settings.base}' is DreamBooth's, of one person alone: serve a base model with an encoder.")
    return PromptNetPipeline.from_pretrained(settings.base, use_safetensors=True).to(device)
