"""Leaves in a failed step's folder what one needs to find out why: tracebacks of all workers, and the log."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import headway
from headway.config.base import ConfigError
from headway.redaction import redacted

NAME = "failure.log"
_MAX_RECORDS = 10_000


@contextlib.contextmanager
def failure_kept(folder: Path) -> Iterator[None]:
    """If the block fails, write why to `failure.log` in a folder, and name that file in a note of the error.

    A mistake in the settings is told in one line and needs no file, nor does an interruption.
    """
    path = folder / NAME
    log = _Log()
    logging.getLogger().addHandler(log)
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk may be what it failed of
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(redacted(_report(error, log.lines)), encoding="utf-8")
            error.add_note(f"tracebacks and log: {path}")
        raise
    else:
        path.unlink(missing_ok=True)  # an earlier try left it
    finally:
        logging.getLogger().removeHandler(log)


class _Log(logging.Handler):
    """Keeps what this process logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_MAX_RECORDS)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.lines.append(self.format(record))


def _report(error: Exception, log: deque[str]) -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    sections = {
        f"headway {headway.__version__}, {now}": _last_line(error),
        "driver": "".join(traceback.format_exception(error)),
    }
    for rank, failure in sorted(_worker_failures(error).items()):
        sections[f"worker {rank}"] = _traceback_of(failure)
    sections["log"] = "\n".join(log) or "(nothing)"
    return "\n".join(f"== {title}\n{text.rstrip()}\n" for title, text in sections.items())


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def _worker_failures(error: BaseException | None) -> dict[int, BaseException]:
    """What Ray Train's workers raised, by rank, wherever in the chain of errors it is."""
    while error is not None:
        failures: dict[int, BaseException] | None = getattr(error, "worker_failures", None)
        if failures:
            return failures
        # Also of an error that was raised "from None": what a person is shown first may leave it out.
        error = getattr(error, "controller_failure", None) or error.__cause__ or error.__context__
    return {}


def _traceback_of(failure: BaseException) -> str:
    """A worker's traceback, which travels not with its exception but in the text of what Ray wraps it in."""
    text = str(failure)
    return text if "Traceback" in text else "".join(traceback.format_exception(failure))
