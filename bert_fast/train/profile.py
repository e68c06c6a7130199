"""A trace of a few steps of a run: which operations ran when, on the host and on the devices."""

import pathlib

import jax

from bert_fast.train import report

STEPS = 3  # enough to see repetition, and few enough for a viewer


class Profile:
    """Traces STEPS steps, beginning with step `begin`, into a folder. Traces nothing if `begin` is None.

    TensorBoard's profiler reads the folder. Perfetto reads the file perfetto_trace.json.gz in that folder. Programs
    that compile within the traced steps show up in the trace.
    """

    def __init__(self, folder: pathlib.Path, begin: int | None):
        self.folder, self.begin = folder, begin
        self.tracing = self.traced = False

    def at(self, step: int) -> bool:
        """Whether the trace begins or ends right before `step`. Then the caller first waits for the step in flight."""
        return self.begin is not None and step == self.begin + (STEPS if self.tracing else 0)

    def switch(self):
        """Begins the trace, or ends it."""
        if self.tracing:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
        self.tracing, self.traced = not self.tracing, True

    def explain(self, first: int, end: int):
        """If a trace was requested but not made, says why. The process took the steps `first` to `end` - 1."""
        if self.begin is not None and not self.traced:
            took = f"this process took the steps {first} to {end - 1}"
            report.say(f"no step was traced: {took}, and --profile={self.begin} is not among them")

    def close(self):
        """Ends a trace that the end of the run interrupts."""
        if self.tracing:
            self.switch()
