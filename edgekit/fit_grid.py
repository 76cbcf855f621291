"""What becomes of a choice with other contexts and other numbers of users."""

from __future__ import annotations

from edgekit import memory
from edgekit.candidate import Candidate, Case, judge

CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072)
USERS = (1, 2, 4, 8, 16, 32)


def grid(c: Candidate) -> dict[str, object]:
    """Verdict and speed of the same file type on the same device, contexts × users.

    `contexts` are tokens for each user, up to what the model was trained on; `cells[i][j]` is
    users[i] with contexts[j] each.
    """
    contexts = [n for n in CONTEXTS if n < c.card.n_ctx_train]
    contexts.append(min(c.card.n_ctx_train, CONTEXTS[-1]))
    users = sorted({*USERS, c.plan.users})
    # Layers that somebody put on the host stay there; a spill that we chose is chosen anew.
    split = c.verdict == "tight" and "as asked" in c.reason
    layers = c.plan.n_gpu_layers if split else None
    table = memory.weights(c.card, c.filetype.id)
    cells = []
    for n in users:
        case = Case(c.card, c.device, c.filetype, n, table, layers, c.plan.kv_type)
        largest = case.largest_ctx()
        found = [judge(case, ctx * n, largest) for ctx in dict.fromkeys(contexts)]
        cells.append([
            {"verdict": f.verdict, "tok_s": f.speed.decode and float(f"{f.speed.decode.value:.3g}")}
            for f in found
        ])  # fmt: skip
    return {"contexts": list(dict.fromkeys(contexts)), "users": users, "cells": cells}
