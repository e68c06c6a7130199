"""A trace of a few steps: which operations ran when, on the host and on the devices."""

import pathlib

import clu.profiler

AFTER = 5  # steps of this process before the trace: the first ones wait for compilation and for the loader


class Profile:
    """Traces `steps` steps of a run that begins or continues at step `first`, into a folder; none if `steps` is 0.

    Other stages and numbers of layers that compile within the traced steps show up in the trace.
    """

    def __init__(self, folder: pathlib.Path, first: int, steps: int):
        self.folder, self.begin, self.end = folder, first + AFTER, first + AFTER + steps
        self.tracing = False

    def at(self, step: int) -> bool:
        """Whether the trace begins or ends before `step` is taken. The caller then waits for the step in flight."""
        return self.begin < self.end and step in (self.begin, self.end)

    def switch(self):
        """Begins the trace, or ends it."""
        if self.tracing:
            clu.profiler.stop()
        else:
            clu.profiler.start(str(self.folder))
        self.tracing = not self.tracing

    def close(self):
        """Ends a trace that the run's end cut short."""
        if self.tracing:
            self.switch()
