"""Ctrl-C and SIGTERM as a request to stop after the current step."""

import signal
import threading


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; the second one kills.

    Signals reach the main thread alone, so elsewhere this does nothing.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception):
        self._restore()

    def _note(self, number, frame):
        del number, frame
        self.requested = True
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            # None stands for a handler that Python did not install and cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
