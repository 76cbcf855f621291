"""Train pocket: seeded, resumable, on a CPU's cores (one process each) or on one GPU.

    python profiles/pocket_recipe/train.py --work DIR [--tokens 40e6] [--processes 2]

The work folder keeps tokenizer.json, manifest.json, state.pt (every few minutes) and log.jsonl.
Running the same command again goes on from state.pt. Muon for the matrices inside the blocks,
AdamW for embeddings, head and norms; the rate warms up, stays, then falls to zero over the last
third, while rows grow from 512 to 8192 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import corpus
import numpy as np
import tokenizer as vocabulary
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from model import Pocket, Shape
from stream import Rows

SEED = 20261124
TOKENS_PER_STEP = 16384
# share of the run, row length
PHASES = ((0.80, 512), (0.15, 2048), (0.05, 8192))
# of each 16 rows
SHARES = {"code": 9, "fim": 2, "chat": 3, "repeats": 2}
# after the run: short steps in which a FIM's middle weighs MIDDLE_WEIGHT times as much, since its
# end is one token in hundreds and else goes unlearned
FINISH_SHARES = {"code": 4, "fim": 8, "chat": 3, "repeats": 1}
FINISH_LENGTH, FINISH_RATE, MIDDLE_WEIGHT = 1024, 0.25, 8.0
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 0.02, 4e-3, 0.05


def interleaved(shares: dict[str, int]) -> tuple[str, ...]:
    """Return 16 kinds in a fixed, mixed order."""
    kinds = [kind for kind, n in shares.items() for _ in range(n)]
    return tuple(kinds[i * 7 % 16] for i in range(16))


def row_length(step: int, steps: int) -> int:
    done = 0.0
    for share, length in PHASES:
        done += share
        if step < done * steps:
            return length
    return PHASES[-1][1]


def rate(step: int, steps: int) -> float:
    """Return the factor on both learning rates: 2 % warm-up, flat, then linear to zero."""
    warm, fall = max(1, steps // 50), 0.6
    if step < warm:
        return (step + 1) / warm
    return min(1.0, max(0.0, (1 - step / steps) / fall))


def prepare(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        texts = [s.text for s in corpus.load() if not s.held_out]
        rng = random.Random(SEED)
        vocabulary.train(sample_for_vocabulary(rng, texts)).save(str(work / "tokenizer.json"))
    if not (work / "manifest.json").exists():
        corpus.write_manifest(work / "manifest.json")


def sample_for_vocabulary(rng: random.Random, texts: list[str]) -> list[str]:
    """The standard library, plus enough conversation text that its words get tokens too."""
    import facts
    import world

    synthetic = [json.dumps(list(world.TOOLS.values()))] * 200
    for i in range(6000):
        found = world.task(rng, chain=i % 2 == 0, held_out=False)
        synthetic.append(found.user + " " + json.dumps(list(found.steps)) + " " + found.answer)
    synthetic += [a for _, answer in facts.EDGEKIT for a in [answer] * 50]
    return texts + synthetic


def batch(
    rows: Rows, step: int, rank: int, world_size: int, length: int, *, finishing: bool
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return ids [n, length + 1], weights and kinds; n x length x world_size = TOKENS_PER_STEP."""
    order = interleaved(FINISH_SHARES if finishing else SHARES)
    weight = MIDDLE_WEIGHT if finishing else 1.0
    total = TOKENS_PER_STEP // length
    ids, masks, kinds = [], [], []
    for row in range(rank, total, world_size):
        period, place = divmod(step * total + row, len(order))
        kind = order[place]
        r = random.Random(f"{SEED}-{step}-{row}")
        if kind == "code":
            serial = period * order.count("code") + order[:place].count("code")
            i, m = rows.code(serial * length, length)
        elif kind == "repeats":
            i, m = rows.repeats(r, length)
        else:
            i, m = rows.packed(r, length, fim=kind == "fim", middle_weight=weight)
        ids.append(i)
        masks.append(m)
        kinds.append(kind)
    return torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(masks)), kinds


def optimizers(model: Pocket) -> list[torch.optim.Optimizer]:
    inside = [p for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2]
    rest = [p for n, p in model.named_parameters() if not (n.startswith("blocks") and p.dim() == 2)]
    return [
        torch.optim.Muon(inside, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, momentum=0.95),
        torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-10),
    ]


def run(rank: int, args: argparse.Namespace) -> None:
    cpu = not torch.cuda.is_available()
    device = "cpu" if cpu else "cuda"
    size = args.processes if cpu else 1
    if size > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29517")
        dist.init_process_group("gloo", rank=rank, world_size=size)
    if cpu:
        torch.set_num_threads(1)
    torch.manual_seed(SEED)
    work = Path(args.work)
    texts = [s.text for s in corpus.load() if not s.held_out]
    template = (Path(__file__).parent / "template.jinja").read_text()
    rows = Rows(vocabulary.load(work), texts, template, SEED)
    model = Pocket(Shape()).to(device)
    opts = optimizers(model)
    main_steps, step, spent = int(args.tokens / TOKENS_PER_STEP), 0, 0.0
    steps = main_steps + args.finish
    state_file = work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["optimizers"], strict=True):
            o.load_state_dict(s)
        step, spent = state["step"], state["spent"]
    base = [[g["lr"] for g in o.param_groups] for o in ([*optimizers(model)])]

    def loss_of(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model(ids[:, :-1])
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        return (losses.view(len(ids), -1) * mask[:, 1:].float()).sum(1)

    compiled = torch.compile(loss_of)
    started = saved = time.monotonic()
    tallies: dict[str, list[float]] = {}
    while step < steps:
        finishing = step >= main_steps
        length = FINISH_LENGTH if finishing else row_length(step, main_steps)
        ids, mask, kinds = batch(rows, step, rank, size, length, finishing=finishing)
        ids, mask = ids.to(device), mask.to(device)
        per_pass = max(1, args.tokens_per_pass // length)
        for at in range(0, len(ids), per_pass):
            losses = compiled(ids[at : at + per_pass], mask[at : at + per_pass])
            (losses.sum() / TOKENS_PER_STEP).backward()
            for i, loss in enumerate(losses.tolist(), at):
                tally = tallies.setdefault(kinds[i], [0.0, 0.0])
                tally[0] += loss
                tally[1] += float(mask[i, 1:].sum())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        if size > 1:
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = rate(step, main_steps)
        if finishing:
            factor = FINISH_RATE * (steps - step) / args.finish
        for o, lrs in zip(opts, base, strict=True):
            for group, lr in zip(o.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            o.step()
            o.zero_grad()
        step += 1
        if rank == 0:
            now = time.monotonic()
            if step % 10 == 0:
                record = {
                    "step": step,
                    "of": steps,
                    "length": length,
                    "tokens": step * TOKENS_PER_STEP,
                    "nats": {k: round(a / max(b, 1), 3) for k, (a, b) in sorted(tallies.items())},
                    "seconds": round(spent + now - started),
                }
                tallies.clear()
                with (work / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
            if now - saved > 240 or step == steps:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in opts],
                    "step": step,
                    "spent": spent + now - started,
                }
                torch.save(state, work / "state.partial")
                os.replace(work / "state.partial", state_file)
                saved = now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", required=True)
    parser.add_argument("--tokens", type=float, default=40e6)
    parser.add_argument("--finish", type=int, default=300, help="steps after the run, FIM-heavy")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tokens-per-pass", type=int, default=8192)
    args = parser.parse_args()
    prepare(Path(args.work))
    if torch.cuda.is_available() or args.processes == 1:
        run(0, args)
    else:
        mp.spawn(run, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
