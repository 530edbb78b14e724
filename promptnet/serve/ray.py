"""The service on a Ray cluster: `serve run promptnet.serve.ray:app base=... data=... workers=8`.

One deployment answers HTTP with the same application as `promptnet serve run`; another holds the workers, one replica
for each GPU, wherever Ray finds one. Jobs do not travel through Ray: they lie in the database, and each worker claims a
slot there (`slots.py`). So a node that dies loses no accepted job. Ray starts its replica anew, and whoever claims the
silent slot gets its jobs.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.serve.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

_OWN = {"workers": 1, "num_gpus": 0.0, "num_cpus": 1.0, "api_replicas": 1, "api_num_cpus": 1.0}
_KINDS = {field.name: type(field.default) for field in fields(Settings) if isinstance(field.default, int | float | str)}


def app(args: Mapping[str, Any]) -> "Application":
    """Build the application; Ray's command line and a RayService hand over `args`.

    Args:
        args: of `Settings`, as text or numbers; and `workers` (replicas), `num_gpus` and `num_cpus` of each, and
            `api_replicas` and `api_num_cpus`. The database may come from the variable PROMPTNET_DATABASE instead, so
            that no password stands in a config.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError: an argument is unknown, or missing.
    """
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Ray needs the extra: pip install 'promptnet[serve,ray]'") from error
    settings, own = parse(args)
    api = serve.deployment(
        serve.ingress(_api(settings))(),
        name="api",
        num_replicas=int(own["api_replicas"]),
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": own["api_num_cpus"]},
    )
    workers = serve.deployment(
        name="worker",
        num_replicas=int(own["workers"]),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=15,
        ray_actor_options={"num_cpus": own["num_cpus"], "num_gpus": own["num_gpus"]},
    )(RayWorker)
    return api.bind(workers.bind(settings.to_json()))


def parse(args: Mapping[str, Any]) -> tuple[Settings, dict[str, float]]:
    """Settings of the service, and what is Ray's own.

    Raises:
        ValueError: an argument is unknown, missing, or no number.
    """
    known = {"base", "data", *_KINDS, *_OWN}
    if unknown := sorted(set(args) - known):
        raise ValueError(f"unknown argument '{unknown[0]}': there are {', '.join(sorted(known))}")
    if missing := [name for name in ("base", "data") if not args.get(name)]:
        raise ValueError(f"argument '{missing[0]}' is missing: {missing[0]}=FOLDER")
    given = {"database": os.environ.get("PROMPTNET_DATABASE", ""), **args}
    own = {name: _number(name, given.pop(name, default), float) for name, default in _OWN.items()}
    data = Path(given.pop("data"))
    values = {name: _number(name, value, _KINDS.get(name, str)) for name, value in given.items()}
    return Settings(data=data, **{**values, "workers": 0, "host": "0.0.0.0", "metrics_port": 0}), own


def _number(name: str, value: Any, kind: type) -> Any:
    if kind is bool:
        return str(value).lower() in ("1", "true", "yes")
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"argument {name}={value} must be of the kind {kind.__name__}") from error


def _api(settings: Settings) -> Any:
    """What makes the HTTP application, on the replica: its engine and keys do not travel."""
    text = settings.to_json()

    def build(*_workers: Any) -> Any:
        from promptnet.serve import logs
        from promptnet.serve.app import create_app

        logs.set_up()
        return create_app(Settings.from_json(text))

    return build


class RayWorker:
    """A worker as a replica: it takes jobs from the database, and no requests.

    Args:
        settings: as JSON.
    """

    def __init__(self, settings: str) -> None:
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(Settings.from_json(settings),), daemon=True)
        self.thread.start()

    def _work(self, settings: Settings) -> None:
        from promptnet.serve import logs
        from promptnet.serve.worker_process import work_in_claimed_slot

        logs.set_up()
        work_in_claimed_slot(settings, self.stop)

    def __call__(self) -> str:
        return "this deployment takes its jobs from the database"

    def check_health(self) -> None:
        """Let Ray start a new replica where the worker has ended.

        Raises:
            RuntimeError: it has ended.
        """
        if not self.thread.is_alive():
            raise RuntimeError("the worker has ended")

    def __del__(self) -> None:
        self.stop.set()
        self.thread.join(10)
