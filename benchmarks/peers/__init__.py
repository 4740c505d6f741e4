"""The contestants: an adapter each, which connects and hands out the library's own methods, adding
no Python frame to a call (but for one to a call with many keys, where the library wants ``*keys``).

An adapter imports its library when it connects, so that a contestant's process holds that library
alone. Each is in the fast configuration that its documentation describes, and what was measured
where there was a choice is told beside it. Timeouts are the library's own defaults, as ours are.
"""

from __future__ import annotations

from typing import Final

from benchmarks.peers import clients, libraries, limits, ours

OURS: Final = ours.PEVENSIE
REDIS_PY: Final = clients.REDIS_PY
UNTIMED: Final = clients.UNTIMED
PEERS: Final = {peer.name: peer for peer in (OURS, *clients.PEERS, *libraries.PEERS, *limits.PEERS)}
