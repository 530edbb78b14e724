"""Logs that hold no prompt, face or file name: lines of JSON with fields from a list, and of other libraries only who
spoke and how loud."""

import json
import logging
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

FIELDS = frozenset(
    ("event", "job", "kind", "state", "route", "method", "status", "ms", "reason", "slot", "pid", "steps", "rows")
    + ("error", "where", "count", "version")
)
_LOGGER = logging.getLogger("promptnet.serve")


class AllowedFields(logging.Formatter):
    """Formats our own records by their fields, and others' without their message, which may quote a prompt."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname.lower()}
        fields = getattr(record, "allowed_fields", None)
        if fields is None:
            line |= {"event": "library", "where": f"{record.name}:{record.lineno}"}
            if record.exc_info and record.exc_info[0]:
                line["error"] = record.exc_info[0].__name__
        return json.dumps(line | (fields or {}))


def set_up(level: int | str = logging.INFO) -> None:
    """Log to stderr, all libraries through the one formatter, and let no traceback print what an error quotes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AllowedFields())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    _LOGGER.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "transformers", "diffusers"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event.

    Args:
        event: what happened, in a word or two.
        level: of `logging`.
        **fields: further ones, of `FIELDS` alone; values that are None are left out.
    """
    unknown = set(fields) - FIELDS
    assert not unknown, f"{unknown} may not be logged"
    given = {name: value for name, value in fields.items() if value is not None}
    _LOGGER.log(level, event, extra={"allowed_fields": {"event": event, **given}})


def log_error(event: str, error: BaseException, **fields: Any) -> None:
    """Log an error by its class and the line that raised it; its message may quote what a user wrote."""
    log(event, logging.ERROR, error=type(error).__name__, where=place_of(error), **fields)


def place_of(error: BaseException) -> str:
    """File and line that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""


def since_ms(start_s: float) -> int:
    """Milliseconds since a `time.perf_counter`."""
    return round((time.perf_counter() - start_s) * 1000)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, *_rest: Any
) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        log_error("uncaught", error if error is not None else kind())
