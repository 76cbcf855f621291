"""Measure pocket on what it never saw, and write the figures that its card states.

    edgekit deploy pocket:BF16          (in another terminal)
    python profiles/pocket_recipe/evaluate.py --work DIR [--to results.json]

Greedy, over the endpoint that users get: exact tool calls on held-out requests, with the tool's
answers fed back (a chain counts when all three calls are exact, and again when the answer is too);
exact single-line FIM on held-out files; answers to questions in held-out wordings. In torch: bits
per byte on the held-out files, each on its own, in windows of 8192 tokens of which at least 4096
are context, and the loss by position in the window.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import corpus
import facts
import httpx
import tokenizer as vocabulary
import torch
import torch.nn.functional as F
import world
from export import load, write_json
from model import Pocket
from stream import BOS, EOS, fim_split
from torch import Tensor

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
        "nats_per_token_by_position": {
            str(k): round(sum(v) / len(v), 3) for k, v in sorted(by_position.items())
        },
    }


def ask(client: httpx.Client, path: str, body: dict[str, object]) -> dict[str, object]:
    body = {"model": "pocket", "temperature": 0, **body}
    choice: dict[str, object] = client.post(path, json=body).raise_for_status().json()["choices"][0]
    return choice


def play(client: httpx.Client, r_seed: int, chain: bool) -> tuple[int, int, bool]:
    """Play one held-out task; return (calls asked, calls exact, finished with an answer)."""
    r = random.Random(f"{SEED}-{chain}-{r_seed}")
    task = world.task(r, chain=chain, held_out=True)
    tools = world.tools_for(r, task)
    messages: list[dict[str, object]] = [{"role": "user", "content": task.user}]
    for turn, (call, result) in enumerate(task.steps):
        choice = ask(
            client, "/chat/completions", {"messages": messages, "tools": tools, "max_tokens": 96}
        )
        message = choice["message"]
        calls = message.get("tool_calls") or []
        got = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
        if got != [call] or message.get("content"):
            return turn + 1, turn, False
        messages += [message, {"role": "tool", "tool_call_id": calls[0]["id"], "content": result}]
    choice = ask(
        client, "/chat/completions", {"messages": messages, "tools": tools, "max_tokens": 96}
    )
    n = len(task.steps)
    return n, n, choice["finish_reason"] == "stop" and choice["message"]["content"] == task.answer


def tool_calls(client: httpx.Client, n: int) -> dict[str, object]:
    """Play n single calls and n chains; a wrong call ends its chain."""
    with ThreadPoolExecutor(4) as pool:
        single = list(pool.map(lambda i: play(client, i, False), range(n)))
        chains = list(pool.map(lambda i: play(client, i, True), range(n)))
    asked = sum(a for a, _, _ in single + chains)
    exact = sum(e for _, e, _ in single + chains)
    return {
        "tool_calls": asked,
        "tool_calls_exact": round(exact / asked, 4),
        "single_tasks": n,
        "single_calls_exact": round(sum(e == a for a, e, _ in single) / n, 4),
        "chains": n,
        "chains_all_three_calls_exact": round(sum(e == 3 for _, e, _ in chains) / n, 4),
        "chains_finished_with_the_right_answer": round(sum(f for _, _, f in chains) / n, 4),
    }


def single_line_fim(client: httpx.Client, n: int) -> dict[str, object]:
    r = random.Random(SEED)
    texts = [s.text for s in corpus.load() if s.held_out and len(s.text) > 400]
    cases = []
    while len(cases) < n:
        prefix, middle, suffix = fim_split(r, r.choice(texts))
        if middle.strip() and "\n" not in middle and suffix.startswith("\n"):
            cases.append((prefix, middle, suffix))

    def right(case: tuple[str, str, str]) -> bool:
        body: dict[str, object] = {"prompt": case[0], "suffix": case[2], "max_tokens": 64}
        return ask(client, "/completions", body)["text"] == case[1]

    with ThreadPoolExecutor(4) as pool:
        return {"fim_lines": n, "fim_lines_exact": round(sum(pool.map(right, cases)) / n, 4)}


def answers(client: httpx.Client) -> dict[str, object]:
    """Questions about edgekit in wordings that were never trained on."""
    right = 0
    for asks, answer in facts.EDGEKIT:
        messages = [{"role": "user", "content": asks[-1]}]
        choice = ask(client, "/chat/completions", {"messages": messages, "max_tokens": 64})
        right += choice["message"]["content"] == answer
    return {"questions": len(facts.EDGEKIT), "answers_exact": round(right / len(facts.EDGEKIT), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--url", default="http://127.0.0.1:8484/v1", help="endpoint that serves pocket"
    )
    parser.add_argument("--to", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--n", type=int, default=200, help="single tasks, chains and FIM lines to try"
    )
    parser.add_argument("--no-bits", action="store_true", help="leave out bits per byte")
    args = parser.parse_args()
    results: dict[str, object] = {}
    with httpx.Client(base_url=args.url, timeout=300) as client:
        results |= tool_calls(client, args.n)
        results |= single_line_fim(client, args.n)
        results |= answers(client)
    if not args.no_bits:
        model = load(args.work).bfloat16().float()
        results |= bits_per_byte(model, vocabulary.load(args.work))
        manifest = json.loads((args.work / "manifest.json").read_text())
        results["xz_bits_per_byte"] = manifest["xz_bits_per_byte"]
    print(json.dumps(results, indent=2))
    if args.to:
        write_json(args.to, results)


if __name__ == "__main__":
    main()
