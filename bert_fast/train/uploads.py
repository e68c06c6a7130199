"""A thread for uploads, so that neither a run nor its saves wait for a bucket."""

import threading
from collections.abc import Callable


class GiveWay(Exception):
    """Raised inside an upload to end it early."""


class Uploads:
    """Calls `upload` in a thread after each `ask`, one call at a time. However often `ask` is called during an upload,
    one more upload follows.
    """

    def __init__(self, upload: Callable[[], None]):
        self.upload = upload
        self.changes = threading.Lock()
        self.asked, self.cancelled = False, False
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None  # an error that `upload` did not handle

    def ask(self):
        with self.changes:
            self.asked = True
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self.thread.start()

    def _work(self):
        while True:
            with self.changes:
                if not self.asked:
                    self.thread = None
                    return
                self.asked = False
            try:
                self.upload()
            except GiveWay:
                pass
            except BaseException as error:
                self.error = error

    def may_go_on(self):
        """Called between the requests of an upload. Raises GiveWay if the upload was cancelled."""
        if self.cancelled:
            raise GiveWay

    def check(self):
        """Raises the error that `upload` did not handle, if there is one, and forgets it."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def wait(self):
        """Returns once all requested uploads have ended."""
        while (thread := self.thread) is not None:
            thread.join()

    def cancel(self):
        """Ends the upload in progress after its current request. Returns once the upload has ended."""
        with self.changes:
            self.asked, self.cancelled = False, True
        try:
            self.wait()
        finally:
            self.cancelled = False
