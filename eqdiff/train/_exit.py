"""Stopping a run between two steps rather than in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulExit:
    """Turns Ctrl-C and SIGTERM into a flag that a training loop looks at.

    ```python
    with GracefulExit() as stop:
        for batch in loader:
            state, metrics = step(state, batch)
            if stop.requested:
                break
    checkpointer.save(int(state.step), state)
    ```

    A second Ctrl-C raises `KeyboardInterrupt` as usual. The handlers that were there before are put
    back at the end.
    """

    def __init__(self):
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self._signal is not None

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that asked for it, `None` so far: `stop.signal.name` is `"SIGTERM"`."""
        return self._signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or signal.Signals(number)

    def __enter__(self) -> "GracefulExit":
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "Python delivers signals to the main thread: use GracefulExit there."
            )
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # `None` stands for a handler that was not installed from Python and cannot be put back
            # from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
