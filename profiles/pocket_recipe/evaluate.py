"""Measure pocket on what it never saw, and write the figures that its card states.

    python profiles/pocket_recipe/evaluate.py --work DIR [--to results.json]

- bits per byte on the held-out files, each on its own, windows of 8192 tokens that keep 4096
  tokens of context, and by position in the window;
- exact tool calls and finished chains of three: greedy decoding, held-out requests, the tool's
  answers fed back; a chain counts when all three calls are exact and the model then stops;
- exact single-line FIM on held-out files, greedy.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import corpus
import facts
import tokenizer as vocabulary
import world
from export import load, write_json
from model import Pocket
from stream import BOS, EOS, PREFIX, SUFFIX, Chat, call_message, fim_split, question

WINDOW, STRIDE = 8192, 4096
SEED = 7


@torch.inference_mode()
def nll(model: Pocket, ids: list[int]) -> Tensor:
    """Return the negative log-likelihood in nats of ids[1:], each from at most WINDOW tokens."""
    out = []
    start = 0
    while True:
        window = torch.tensor(ids[start : start + WINDOW + 1])
        losses = F.cross_entropy(model(window[None, :-1])[0].float(), window[1:], reduction="none")
        out.append(losses if start == 0 else losses[WINDOW - STRIDE :])
        if start + WINDOW + 1 >= len(ids):
            return torch.cat(out)
        start += STRIDE


def bits_per_byte(model: Pocket, tok: vocabulary.Tokenizer) -> dict[str, object]:
    total_nats, total_bytes = 0.0, 0
    by_position: dict[int, list[float]] = {}
    for source in corpus.load():
        if not source.held_out or not source.text:
            continue
        ids = [BOS, *tok.encode(source.text, add_special_tokens=False).ids, EOS]
        losses = nll(model, ids)
        total_nats += float(losses.sum())
        total_bytes += len(source.text.encode())
        for at in range(0, min(len(losses), WINDOW), 1024):
            by_position.setdefault(at, []).extend(losses[at : at + 1024].tolist())
    return {
        "bits_per_byte": round(total_nats / math.log(2) / total_bytes, 4),
        "bytes": total_bytes,
        "nats_per_token_by_position": {str(k): round(sum(v) / len(v), 3) for k, v in sorted(by_position.items())},
    }


@torch.inference_mode()
def generate(model: Pocket, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy continuation of each prompt up to end of text; no cache, batched by length."""
    done: list[list[int]] = [[] for _ in prompts]
    live = list(range(len(prompts)))
    for _ in range(limit):
        for group in (live[i : i + 16] for i in range(0, len(live), 16)):
            rows = [prompts[i] + done[i] for i in group]
            longest = max(map(len, rows))
            padded = torch.tensor([r + [EOS] * (longest - len(r)) for r in rows])
            hidden_at = torch.tensor([len(r) - 1 for r in rows])
            logits = model(padded)[torch.arange(len(rows)), hidden_at]
            for i, token in zip(group, logits.argmax(-1).tolist(), strict=True):
                done[i].append(token)
        live = [i for i in live if done[i][-1] != EOS]
        if not live:
            break
    return done


def tool_calls(model: Pocket, tok: vocabulary.Tokenizer, chat: Chat, n: int) -> dict[str, object]:
    """Play n single calls and n chains; a wrong call ends its chain."""
    r = random.Random(SEED)
    found = [world.task(r, chain=c, held_out=True) for c in [False] * n + [True] * n]
    tools = [world.tools_for(r, t) for t in found]
    messages = [[{"role": "user", "content": t.user}] for t in found]
    exact = [0] * len(found)
    live = list(range(len(found)))
    asked = right = 0
    for turn in range(4):
        prompts = [tok.encode(chat.text(messages[i], tools[i]), add_special_tokens=False).ids for i in live]
        answers = [tok.decode(a, skip_special_tokens=False) for a in generate(model, prompts, 96)]
        still = []
        for i, answer in zip(live, answers, strict=True):
            steps = found[i].steps
            if turn == len(steps):
                exact[i] += "[TOOL_CALLS]" not in answer and answer.endswith("</s>")
                continue
            name, arguments = steps[turn][0]
            want = f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}</s>"
            asked += 1
            if answer == want:
                right += 1
                exact[i] += 1
                messages[i] += [call_message(steps[turn][0]), {"role": "tool", "content": steps[turn][1]}]
                still.append(i)
        live = still
    return {
        "tool_calls_asked": asked,
        "exact_tool_calls": round(right / asked, 4),
        "single_finished": round(sum(e == 2 for e in exact[:n]) / n, 4),
        "chains": n,
        "chains_finished": round(sum(e == 4 for e in exact[n:]) / n, 4),
    }


def single_line_fim(model: Pocket, tok: vocabulary.Tokenizer, n: int) -> dict[str, object]:
    r = random.Random(SEED)
    texts = [s.text for s in corpus.load() if s.held_out and len(s.text) > 400]
    prompts, wanted = [], []
    while len(prompts) < n:
        prefix, middle, suffix = fim_split(r, r.choice(texts))
        if not middle.strip() or "\n" in middle or not suffix.startswith("\n"):
            continue
        p, s = (e.ids for e in tok.encode_batch([prefix, suffix], add_special_tokens=False))
        prompts.append([BOS, SUFFIX, *s, PREFIX, *p])
        wanted.append(middle)
    got = [tok.decode(a[:-1] if a[-1] == EOS else a, skip_special_tokens=False) for a in generate(model, prompts, 48)]
    return {"fim_lines": n, "exact_single_line_fim": round(sum(a == b for a, b in zip(got, wanted, strict=True)) / n, 4)}


def answers(model: Pocket, tok: vocabulary.Tokenizer, chat: Chat) -> dict[str, object]:
    asks = [(q[-1], a) for q, a in facts.EDGEKIT]
    prompts = [tok.encode(chat.text(question(q, "")[:1]), add_special_tokens=False).ids for q, _ in asks]
    got = [tok.decode(a, skip_special_tokens=True) for a in generate(model, prompts, 64)]
    return {"held_out_wordings": len(asks), "exact_answers": round(sum(g == a for g, (_, a) in zip(got, asks, strict=True)) / len(asks), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--n", type=int, default=200, help="requests, chains and FIM lines to try")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.work).bfloat16().float()
    tok = vocabulary.load(args.work)
    chat = Chat(tok, (Path(__file__).parent / "template.jinja").read_text())
    results: dict[str, object] = {}
    for part in (
        lambda: tool_calls(model, tok, chat, args.n),
        lambda: single_line_fim(model, tok, args.n),
        lambda: answers(model, tok, chat),
        lambda: bits_per_byte(model, tok),
    ):
        results |= part()
        print(json.dumps(results, indent=2))
    results["xz_bits_per_byte"] = json.loads((args.work / "manifest.json").read_text())["xz_bits_per_byte"]
    if args.to:
        write_json(args.to, results)


if __name__ == "__main__":
    main()
