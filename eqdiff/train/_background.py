"""One piece of work at a time in a thread, whose failure is not lost.

The thread is not a daemon: a program that ends while it works ends when it is done.
"""

import sys
import threading
import weakref
from collections.abc import Callable


class Background:
    """Runs one function at a time in a separate thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failures: list[Exception] = []
        weakref.finalize(self, _tell, self._failures)

    def start(self, work: Callable[[], None]) -> None:
        """Begins, once the work before it is done."""
        self.join()
        failures = self._failures

        def run() -> None:
            try:
                work()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="eqdiff checkpoint")
        thread.start()
        self._thread = thread

    def join(self) -> None:
        """Waits until nothing is under way. Can be interrupted, and called again."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def failure(self) -> Exception | None:
        """Waits, and takes note of what went wrong."""
        self.join()
        return self._failures.pop() if self._failures else None


def _tell(failures: list[Exception]) -> None:
    """For a program that ends without asking."""
    for error in failures:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    failures.clear()
