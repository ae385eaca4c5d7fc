"""Stopping a run where nothing is lost: between two steps, or at once where nothing is unsaved.

Python runs a signal's handler only when its main thread next executes Python. A compilation does
not for minutes, so a second thread is woken by the signal itself (`signal.set_wakeup_fd`) and ends
the process for it, if it has been said that nothing would be lost.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds that the main thread has for noticing a signal, before it is taken to be inside a
# compilation.
_PATIENCE = 1.0


class GracefulExit:
    """Turns Ctrl-C and SIGTERM into a flag that your training loop checks.

    A second Ctrl-C raises `KeyboardInterrupt` as usual. On leaving the block, the previous handlers
    are restored. Inside `stop.at_once(…)` the first signal raises it already.

    **Raises:** `RuntimeError` on entering the block in any thread but the main one.

    **Example:**

    ```python
    with eqd.train.GracefulExit() as stop:
        for step in range(1000):
            if stop.requested:  # Ctrl-C or SIGTERM
                break
    ```
    """

    def __init__(self):
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._last_words: Callable[[], str] | None = None
        self._noticed = threading.Event()
        self._pipe: tuple[int, int] = (-1, -1)
        self._previous_fd = -1
        self._watcher: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self._signal is not None

    @property
    def signal(self) -> signal.Signals | None:
        """The signal received, such as `signal.SIGTERM`, or `None` if there was none."""
        return self._signal

    @contextlib.contextmanager
    def at_once(self, last_words: Callable[[], str]) -> Iterator[None]:
        """Inside, a signal raises `KeyboardInterrupt`: use it where nothing is unsaved.

        If the main thread cannot notice it, because it is inside a compilation, the process prints
        a last sentence and ends with the status 128 + signal.

        **Arguments:**

        - `last_words`: makes that sentence.
        """
        with self._mode(last_words):
            yield

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is a flag again."""
        with self._mode(None):
            yield

    @contextlib.contextmanager
    def _mode(self, last_words: Callable[[], str] | None) -> Iterator[None]:
        before, self._last_words = self._last_words, last_words
        try:
            yield
        finally:
            self._last_words = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._noticed.set()
        again = self._signal is not None
        self._signal = self._signal or signal.Signals(number)
        if self._last_words is not None or (again and number == signal.SIGINT):
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while (number := os.read(self._pipe[0], 1)[0]) != 0:
            if number in _SIGNALS and not self._noticed.wait(_PATIENCE):
                words = self._last_words
                if words is not None:
                    print(
                        f"\n{signal.Signals(number).name}: {words()}", file=sys.stderr, flush=True
                    )
                    os._exit(128 + number)

    def __enter__(self) -> "GracefulExit":
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "Python delivers signals to the main thread: use GracefulExit there."
            )
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            # `None` is a handler that was not installed from Python and cannot be restored from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        os.write(self._pipe[1], b"\0")
        assert self._watcher is not None
        self._watcher.join()
        for end in self._pipe:
            os.close(end)
