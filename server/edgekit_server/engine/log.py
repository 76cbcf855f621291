"""llama.cpp's log, kept in memory: the reason for a failed load is only ever said there."""

from __future__ import annotations

from collections import deque

LEVEL_INFO, LEVEL_WARN, LEVEL_ERROR, LEVEL_CONT = 2, 3, 4, 5
_MEMORY_WORDS = (
    "out of memory",
    "failed to allocate",
    "unable to allocate",
    "alloc_buffer",
    "bad_alloc",
)


class Log:
    """The last lines at info level and above."""

    def __init__(self, keep: int = 600) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=keep)

    def add(self, level: int, text: bytes | None) -> None:
        """Take one line, or the continuation of one."""
        # Called hundreds of times per graph reserve at debug level, so leave at once.
        if level < LEVEL_INFO or not text:
            return
        line = text.decode("utf-8", "replace")
        if level == LEVEL_CONT and self.lines:
            last, head = self.lines.pop()
            self.lines.append((last, head + line))
        else:
            self.lines.append((level, line))

    def text(self) -> list[str]:
        """Every kept line, without its line end."""
        return [line.rstrip() for _, line in self.lines]

    def find(self, *words: str) -> str | None:
        """Return the last line with one of these words, without the function's name before it."""
        for _, line in reversed(self.lines):
            if any(word in line for word in words):
                return line.split(": ", 1)[-1].strip()
        return None

    def buffers(self) -> list[str]:
        """Return what each buffer holds, in llama.cpp's words: "AMX model buffer size = 9 MiB"."""
        lines = [" ".join(line.split(": ", 1)[-1].split()) for line in self.text()]
        return [line for line in lines if " buffer size = " in line]

    def reason(self) -> str:
        """Return the last errors, else the last warnings, as one line."""
        for level in (LEVEL_ERROR, LEVEL_WARN):
            found = [line.strip() for at, line in self.lines if at == level]
            if found:
                return "; ".join(found[-4:])
        return "llama.cpp gave no reason"

    def says_memory(self) -> bool:
        """Whether a warning or an error speaks of an allocation that failed."""
        return any(
            word in line.lower()
            for level, line in self.lines
            if level >= LEVEL_WARN
            for word in _MEMORY_WORDS
        )
