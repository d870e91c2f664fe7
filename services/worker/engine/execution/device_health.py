"""Whether the device still computes for this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hilora.errors import Unavailable
from services.worker.engine.execution.device_errors import DeviceVerdict, verdict_of

_log = logging.getLogger(__name__)


class DeviceHealth:
    """Looks at every error that comes up, and remembers the one after which no other call can succeed.

    Nothing brings such a device back but another process: once lost, it stays lost. May be told from any thread.

    Args:
        probe: a small piece of work on the device, waited for; raises if the device does not do it. Asked after errors
            that leave it open.
    """

    def __init__(self, probe: Callable[[], None]) -> None:
        self._probe = probe
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """Whether the device is gone for this process."""
        return self._is_lost

    def note(self, error: BaseException) -> bool:
        """Look at an error that was caught; returns whether the device is lost."""
        if self._is_lost:
            return True
        verdict = verdict_of(error)
        if verdict is DeviceVerdict.LOST or (verdict is DeviceVerdict.UNCLEAR and not self._answers()):
            _log.critical("the device is lost; this process cannot compute any more", exc_info=error)
            self._is_lost = True
        return self._is_lost

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Work that touches the device.

        Raises:
            Unavailable: `device_lost`, instead of the error that says so.
        """
        try:
            yield
        except Exception as error:
            if self.note(error):
                raise device_lost() from error
            raise

    def _answers(self) -> bool:
        try:
            self._probe()
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False
        return True


def probe_of(device: torch.device) -> Callable[[], None]:
    """The smallest piece of work there is."""

    def probe() -> None:
        torch.ones(1, device=device).sum().item()

    return probe


def device_lost() -> Unavailable:
    """What those are told whose worker has lost its device."""
    return Unavailable(
        "This worker's device does not compute any more.",
        code="device_lost",
        remedy="Use another worker; this one has to be started anew, see its log.",
    )
