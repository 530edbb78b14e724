"""A service for many users: customise and draw over HTTP, with durable jobs and data that die with their keys.

The names below are loaded when they are first used; all of it needs the extra: pip install 'promptnet[serve]'.
"""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.serve.app import create_app
    from promptnet.serve.keys import KeyLimits, Keys
    from promptnet.serve.provenance import Credentials, read_credentials
    from promptnet.serve.settings import Settings
    from promptnet.serve.worker import Worker

__all__ = ["Credentials", "KeyLimits", "Keys", "Settings", "Worker", "create_app", "read_credentials"]

_HOMES = {
    "Credentials": "provenance",
    "KeyLimits": "keys",
    "Keys": "keys",
    "Settings": "settings",
    "Worker": "worker",
    "create_app": "app",
    "read_credentials": "provenance",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
