"""Ask Metal for the default GPU's name and working set, and print one JSON line.

Runs in a child process: it talks to Objective-C through ctypes, and a mistake there would take the
caller down. Prints {"name": str, "working_set_bytes": int, "unified": bool} or {"error": str}.
"""

from __future__ import annotations

import ctypes
import json
import sys

_FRAMEWORKS = "/System/Library/Frameworks"


def main() -> int:
    """Print Metal's answer; the working set follows iogpu.wired_limit_mb when that is set."""
    try:
        # Command-line tools get no default device unless CoreGraphics is loaded as well.
        ctypes.CDLL(f"{_FRAMEWORKS}/CoreGraphics.framework/CoreGraphics")
        metal = ctypes.CDLL(f"{_FRAMEWORKS}/Metal.framework/Metal")
        objc = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
    except OSError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 0
    metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
    objc.sel_registerName.restype = ctypes.c_void_p
    objc.sel_registerName.argtypes = [ctypes.c_char_p]
    send_address = ctypes.cast(objc.objc_msgSend, ctypes.c_void_p).value or 0
    device = metal.MTLCreateSystemDefaultDevice()
    if not device:
        sys.stdout.write(json.dumps({"error": "no Metal device"}) + "\n")
        return 0

    def send(target: int, selector: bytes, restype: type) -> object:
        message = ctypes.CFUNCTYPE(restype, ctypes.c_void_p, ctypes.c_void_p)(send_address)
        return message(target, objc.sel_registerName(selector))

    name = send(device, b"name", ctypes.c_void_p)
    text = send(name, b"UTF8String", ctypes.c_char_p) if isinstance(name, int) else None
    record = {
        "name": text.decode("utf-8", "replace") if isinstance(text, bytes) else None,
        "working_set_bytes": send(device, b"recommendedMaxWorkingSetSize", ctypes.c_uint64),
        "unified": bool(send(device, b"hasUnifiedMemory", ctypes.c_bool)),
    }
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
