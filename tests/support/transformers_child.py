"""transformers as the oracle, in one child process that serves a whole test run.

Torch takes seconds to import and half a gigabyte, so the child starts with the first job and
lives until the run ends. Jobs and answers are JSON, one a line.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def call(job: Job) -> Any:
    """Run one job in the child. Fails with the child's traceback."""
    child = _child()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    line = child.stdout.readline()
    assert line, f"the transformers child died: {child.poll()}"
    answer = json.loads(line)
    assert "failed" not in answer, answer["failed"]
    return answer["done"]


@functools.cache
def _child() -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )

    def stop() -> None:
        child.kill()
        child.communicate()

    atexit.register(stop)
    return child


def _model_class(config: Any) -> Any:
    import transformers

    return getattr(transformers, config.architectures[0])


def _do_save(job: Job) -> object:
    """Write a seeded model. Each parameter is random enough that a lost one shows."""
    import torch
    from transformers import AutoConfig

    settings = dict(job["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    generator = torch.Generator().manual_seed(job["seed"])
    torch.manual_seed(job["seed"])
    model = _model_class(config)(config).float().eval()
    with torch.no_grad():
        for name, values in model.state_dict().items():
            if not values.is_floating_point():
                continue
            noise = torch.randn(values.shape, generator=generator)
            if values.ndim < 2:
                # What the class starts from (ones for a norm, zeros for a bias), disturbed.
                values.copy_(values.nan_to_num() + 0.2 * noise)
            elif "embed_tokens" in name:
                values.copy_(noise)
            else:
                values.copy_(noise * job["gain"] / values.shape[-1] ** 0.5)
    model.to(getattr(torch, job["dtype"])).save_pretrained(
        job["folder"], max_shard_size=job["max_shard_size"]
    )
    return sorted(model.state_dict())


def _do_logits(job: Job) -> object:
    """Write the logits after each of `ids` as a .npy file of [n, vocab]."""
    import numpy as np
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job["folder"])
    model = _model_class(config).from_pretrained(
        job["folder"], dtype=torch.float32, attn_implementation="eager"
    )
    if type(model).__name__ == "Llama4ForConditionalGeneration":
        # Its forward asks its text part's answer for image outputs that are not there (5.24).
        model = model.language_model
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([job["ids"]])).logits[0]
    np.save(job["out"], logits.float().numpy())
    return list(logits.shape)


def _do_features(job: Job) -> object:
    """Write what the vision part makes of pixels.npy [1, 3, height, width]."""
    import numpy as np
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job["folder"])
    model = _model_class(config).from_pretrained(
        job["folder"], dtype=torch.float32, attn_implementation="eager"
    )
    pixels = torch.from_numpy(np.load(Path(job["work"]) / "pixels.npy"))
    sizes = {}
    if config.model_type == "mistral3":
        sizes = {"image_sizes": torch.tensor([pixels.shape[-2:]])}
    with torch.no_grad():
        found = model.eval().model.get_image_features(pixel_values=pixels, **sizes).pooler_output
    rows = torch.cat(list(found)) if isinstance(found, tuple | list) else found
    rows = rows.reshape(-1, rows.shape[-1])
    np.save(Path(job["work"]) / "features.npy", rows.numpy())
    return list(rows.shape)


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print progress bars; only answers go to the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    actions = {"save": _do_save, "logits": _do_logits, "features": _do_features}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"done": actions[job["do"]](job)}
        except Exception:
            answer = {"failed": traceback.format_exc()[-3000:]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # The folder of this file is on the path now, and its module names must not win.
    sys.path.remove(str(Path(__file__).parent))
    _serve()
