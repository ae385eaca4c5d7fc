"""Stopping a run between two steps, not in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulExit:
    """Turns Ctrl-C and SIGTERM into a flag for the training loop to check.

    ```python
    with eqd.train.GracefulExit() as stop:
        for batch in loader:
            state, metrics = step(state, batch)
            if stop.requested:
                break
    checkpointer.save(int(state.step), state)
    ```

    A second Ctrl-C raises `KeyboardInterrupt` as usual. On leaving the block, the previous handlers
    are restored.

    **Raises:** `RuntimeError` on entering the block in any thread but the main one.
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
        """The signal received, such as `signal.SIGTERM`, or `None` if there was none."""
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
            # `None` is a handler that was not installed from Python and cannot be restored from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
