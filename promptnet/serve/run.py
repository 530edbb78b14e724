"""`promptnet serve run`: the server, its metrics and its workers, until it is told to stop."""

from promptnet.serve import logs
from promptnet.serve.settings import Settings

_STOP_S = 3  # for answers that are being sent, such as events


def run(settings: Settings) -> None:
    """Answer HTTP until SIGTERM or SIGINT, with workers beside it.

    Raises:
        ValueError: the database cannot be opened, or a port is taken.
    """
    import uvicorn

    from promptnet.serve.app import create_app
    from promptnet.serve.metrics import serve_metrics
    from promptnet.serve.supervisor import Supervisor

    logs.set_up()
    app = create_app(settings, supervisor=Supervisor(settings))
    metrics = None
    if settings.metrics_port:
        try:
            metrics = serve_metrics(app.service.records, settings.host, settings.metrics_port)
        except OSError as error:
            raise ValueError(f"--metrics-port {settings.metrics_port} is taken ({error.strerror})") from error
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
    print(f"listening on {settings.host} port {settings.port}, data in {settings.data}", flush=True)
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:
        raise ValueError(f"the server cannot listen on {settings.host} port {settings.port}: is it taken?") from error
    finally:
        if metrics is not None:
            metrics.shutdown()
