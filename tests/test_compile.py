"""Compiling programs in the background."""

import threading

from bert_fast.method import Program
from bert_fast.train.compile import Programs


def test_cancel_drops_the_waiting_programs_and_keeps_the_one_being_compiled():
    release, started, lowered = threading.Event(), threading.Event(), []

    class Lowered:
        def compile(self):
            started.set()
            release.wait()

    programs = Programs(lambda *_: None, mesh=None, options={})
    programs.lower = lambda program, *_: lowered.append(program) or Lowered()
    programs.key_of = lambda program, *_: program
    programs.placed = lambda *_: ()
    first, second = (Program(None, (), 1, 1, seq_len, 1, "mlm") for seq_len in (8, 16))
    for program in (first, second):
        programs.begin(program, None, None, None)
    started.wait()
    programs.cancel()
    assert list(programs.coming) == [first]
    release.set()
    programs.close()
    assert lowered == [first]
