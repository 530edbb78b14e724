"""`promptnet ui`: the web page on this machine, for one person."""

from __future__ import annotations

from pathlib import Path

from promptnet.commands._loading import EMBEDDED, find_base
from promptnet.commands.serve import check_installed, make_folder

_PORT = 8000


def ui(
    base: str = EMBEDDED,
    data: Path = Path("outputs/ui"),
    port: int = 0,
    browser: bool = True,
    device: str = "auto",
    threads: int = 0,
) -> None:
    """Open a page in the browser: add an image, say what to draw. Nothing leaves this machine.

    Args:
        base: base model with its encoder, a folder in diffusers layout or a Hub id
        data: folder of everything that the page keeps; made if missing
        port: of the page, on this machine alone (0: 8000, or a free one if that is taken)
        browser: opens the page; its address is printed in any case
        device: auto, cpu, cuda, ...
        threads: of torch (0: torch's own choice)
    """
    check_installed()
    from promptnet.serve.run import free_port, run_for_one
    from promptnet.serve.settings import Settings

    found = find_base(base)
    make_folder(data)
    settings = Settings(
        base=found,
        data=data,
        port=port or free_port(_PORT),
        metrics_port=0,
        device=device,
        threads=threads,
        log_level="WARNING",
    )
    run_for_one(settings, browser=browser)
