"""Signatures of thoughts. Pure.

Clients send a thought back only with the signature it came with. Some want none of its text
(`display: omitted`) but the answer to go on as if it were there: then the text is in the signature,
and a template that renders past reasoning finds the prompt that the model continued from.
"""

from __future__ import annotations

import base64
import binascii

SIGNATURE = "edgekit"
_SEALED = f"{SIGNATURE}:"


def signature_of(thought: str, *, hidden: bool) -> str:
    """Return the signature of a thought, which holds its text if the client does not see it."""
    if not hidden:
        return SIGNATURE
    return _SEALED + base64.b64encode(thought.encode("utf-8", "replace")).decode()


def thought_in(signature: str) -> str:
    """Return the text that a signature of ours holds; "" for any other."""
    if not signature.startswith(_SEALED):
        return ""
    try:
        sealed = base64.b64decode(signature.removeprefix(_SEALED), validate=True)
        return sealed.decode()
    except (binascii.Error, ValueError):
        return ""
