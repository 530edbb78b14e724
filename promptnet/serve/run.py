"""`promptnet serve run` and `promptnet ui`: the server, its metrics and its workers, until it is told to stop."""

import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from promptnet.io.atomic import write_whole
from promptnet.serve import logs
from promptnet.serve.settings import Settings

_STOP_S = 3  # for answers that are being sent, such as events


def run(settings: Settings) -> None:
    """Answer HTTP until SIGTERM or SIGINT, with workers beside it.

    Raises:
        ValueError: the database cannot be opened, or a port is taken.
    """
    from promptnet.serve.app import create_app
    from promptnet.serve.metrics import serve_metrics
    from promptnet.serve.supervisor import Supervisor

    logs.set_up(settings.log_level)
    app = create_app(settings, supervisor=Supervisor(settings))
    metrics = None
    if settings.metrics_port:
        try:
            metrics = serve_metrics(app.service.records, settings.host, settings.metrics_port)
        except OSError as error:
            raise ValueError(f"--metrics-port {settings.metrics_port} is taken ({error.strerror})") from error
    print(f"listening on {settings.host} port {settings.port}, data in {settings.data}", flush=True)
    try:
        _answer(app, settings)
    finally:
        if metrics is not None:
            metrics.shutdown()


def run_for_one(settings: Settings, *, browser: bool = True) -> None:
    """Answer this machine alone, for one person who needs no key; open the page.

    Args:
        settings: of the service; its host must be 127.0.0.1.
        browser: whether to open the page; its address is printed in any case.

    Raises:
        ValueError: the database cannot be opened, or the port is taken.
    """
    from promptnet.serve.app import create_app
    from promptnet.serve.local import LocalDoor
    from promptnet.serve.supervisor import Supervisor

    assert settings.host == "127.0.0.1"
    logs.set_up(settings.log_level)
    app = create_app(settings, supervisor=Supervisor(settings))
    door = LocalDoor(app, local_secret(app.service), settings.port)

    def started() -> None:
        print(f"The page is at {door.address}", flush=True)
        print("The address lets whoever has it in. Stop with Ctrl+C.", flush=True)
        if browser and not webbrowser.open(door.address):
            print("No browser was found: open the address in one.", flush=True)

    _answer(door, settings, started)


def local_secret(service: Any) -> str:
    """The one key of `promptnet ui`, made when it first starts and kept among the service's keys."""
    from promptnet.serve.keys import KeyLimits

    path = service.settings.data / "keys" / "local-key"
    with suppress(FileNotFoundError):
        secret = path.read_text("utf-8")
        if service.keys.find(secret) is not None:
            return secret
    limits = KeyLimits(requests_per_minute=10_000, open_jobs=64, subjects=1000, bytes=16 * 1024**3)
    secret, _ = service.keys.add(limits=limits)
    write_whole(path, secret)
    return secret


def free_port(wanted: int) -> int:
    """This port of the loopback address, or any free one where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as tried, suppress(OSError):
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
            return tried.getsockname()[1]
    raise ValueError("this machine has no free port")


def _answer(app: Any, settings: Settings, started: Callable[[], None] | None = None) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and started is not None:
                started()

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_S,
    )
    logs.log("listening", count=settings.workers)
    try:
        Server(config).run()
    except SystemExit as error:
        raise ValueError(f"the server cannot listen on {settings.host} port {settings.port}: is it taken?") from error
