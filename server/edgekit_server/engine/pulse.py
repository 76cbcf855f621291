"""The child's pulse: a thread that tells the front, twice a second, what has been done.

The front ends a child whose figures stand still while requests are open (`../watchdog.py`). A
step is too coarse a sign of life: 512 prompt rows of a 24-billion-parameter model take minutes
on a slow CPU. So the graph's nodes count as well, a thousand or so in every step, where llama.cpp
can report them: it calls an abort callback after each node on the CPU backend. A Python callback
would need the GIL a thousand times a step, hence a C function that is always there serves as
one: pthread_spin_unlock writes its own constant into the given int and returns 0, "go on".
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

from edgekit_server.engine.wire import Pulse

PULSE_S = 0.5
_UNTOUCHED = 77
"""No lock state of any C library (glibc's and musl's are 0 and 1)."""


class NodeBeat:
    """An int that llama.cpp's graph writes to, where a C function is found that can."""

    def __init__(self) -> None:
        self._word = ctypes.c_int(_UNTOUCHED)
        self.function = _spin_unlock()
        """Address of the C callback, or None: then only whole steps count."""

    @property
    def data(self) -> int:
        """Address that the callback gets."""
        return ctypes.addressof(self._word)

    def touched(self) -> bool:
        """Whether a node was computed since the last call."""
        beaten = self._word.value != _UNTOUCHED
        self._word.value = _UNTOUCHED
        return beaten


class Heart:
    """Sends the pulse while there is something to do."""

    def __init__(
        self,
        send: Callable[[Pulse], None],
        beat: NodeBeat,
        *,
        n_steps: Callable[[], int],
        n_taken: Callable[[], int],
        seconds: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
        drafts: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """`n_steps`: steps finished by the loop; `n_taken`: messages finished by the intake;
        `seconds`: in llama_decode, and in whole steps; `drafts`: tokens guessed, and right."""
        self._send = send
        self._beat = beat
        self._n_steps = n_steps
        self._n_taken = n_taken
        self._seconds = seconds
        self._drafts = drafts
        self._n_beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._last = Pulse(0, 0)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self._thread.join()

    def pulse(self) -> Pulse | None:
        """Return what to send now; None when nothing has moved since the last call."""
        self._n_beats += self._beat.touched()
        n_steps = self._n_steps()
        done = n_steps + self._n_beats
        now = Pulse(done, self._n_taken(), n_steps, *self._seconds(), *self._drafts())
        if now == self._last:
            return None
        self._last = now
        return now

    def _run(self) -> None:
        while not self._ended.wait(PULSE_S):
            if (pulse := self.pulse()) is not None:
                self._send(pulse)


def _spin_unlock() -> int | None:
    """Address of pthread_spin_unlock, after trying that it does what is needed of it."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "pthread_spin_unlock", None)
    if function is None:
        return None
    function.restype, function.argtypes = ctypes.c_int, [ctypes.c_void_p]
    word = ctypes.c_int(_UNTOUCHED)
    if function(ctypes.addressof(word)) != 0 or word.value == _UNTOUCHED:
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
