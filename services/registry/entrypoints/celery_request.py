"""What Celery does with a message whose acknowledgement cannot be delivered: here, it connects anew.

Celery logs the failure and goes on. With the Redis transport the message then counts as one that is being worked on,
for ever: the process reaches its limit of such messages and never asks for another one, on a connection of which
nothing tells it that it broke. Raised, the same failure is a lost connection like every other.
"""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class StrictRequest(Request):
    """A message in work whose acknowledgement or rejection raises where the broker is away.

    The message itself returns after its visibility time-out, and then finds its work done or claimed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # The errors of this list are those that are logged and forgotten.
        super().__init__(*args, **{**options, "connection_errors": ()})
