"""The driver's logger. It never gets a key, a value or a password."""

from __future__ import annotations

import logging
from typing import Final

logger: Final = logging.getLogger("pevensie.redis")
logger.addHandler(logging.NullHandler())


def echo_refused(server: str) -> None:
    """The server does not know ECHO, so replies cannot be kept in step with tokens."""
    logger.warning(
        "%s refused ECHO: integrity_checks is off for it, and a call that times out closes its "
        "connection",
        server,
    )
