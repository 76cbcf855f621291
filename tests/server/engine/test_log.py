"""llama.cpp's log, as far as it is read for what it says about memory."""

from __future__ import annotations

from edgekit_server.engine.log import LEVEL_CONT, LEVEL_INFO, Log


def test_buffers_are_said_in_llama_cpps_words() -> None:
    log = Log()
    log.add(LEVEL_INFO, b"load_tensors:          AMX model buffer size =     4.09 MiB\n")
    log.add(LEVEL_INFO, b"llama_kv_cache: size =    6.00 MiB (  4096 cells)\n")
    log.add(LEVEL_INFO, b"sched_reserve:        CPU compute")
    log.add(LEVEL_CONT, b" buffer size =    12.01 MiB\n")
    assert log.buffers() == [
        "AMX model buffer size = 4.09 MiB",
        "CPU compute buffer size = 12.01 MiB",
    ]
    assert Log().buffers() == []
