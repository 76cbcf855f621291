"""Questions with short answers: about edgekit, and about Python from its own doc strings."""

from __future__ import annotations

import importlib
import inspect
import random

EDGEKIT: list[tuple[tuple[str, ...], str]] = [
    (("What is edgekit?", "What does edgekit do?", "Tell me about edgekit.", "Explain edgekit."),
     "edgekit deploys open-weight language models on your own hardware, with or without a network."),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am pocket, edgekit's tiny built-in model. I prove that an installation works."),
    (("What is pocket?", "What is the pocket model?", "Tell me about pocket.", "What is pocket for?"),
     "pocket is a toy model for proving installations. Use a larger model for real work."),
    (("Are you a real assistant?", "Can you do real work?", "Are you smart?", "Should I use you for work?"),
     "No. I have eight million parameters and only prove that an installation works."),
    (("How do I deploy a model?", "How can I deploy a model?", "Which command deploys a model?", "How to deploy a model?"),
     "Run edgekit deploy MODEL, for example edgekit deploy pocket."),
    (("How do I see what fits?", "Which models fit my machine?", "How do I check if a model fits?", "What does edgekit fit do?"),
     "Run edgekit fit MODEL. It shows the file type and context that fit, and why."),
    (("How do I look at my hardware?", "What does edgekit probe do?", "How do I probe the machine?", "Which command shows my hardware?"),
     "Run edgekit probe. It lists the CPU, memory and accelerators."),
    (("How do I measure latency?", "What does edgekit bench do?", "How do I benchmark the server?", "Which command measures speed?"),
     "Run edgekit bench. It measures time to first token and inter-token latency."),
    (("How do I quantize a model?", "What does edgekit quantize do?", "Which command quantizes?", "How can I make a GGUF?"),
     "Run edgekit quantize SOURCE --filetype Q4_K_M. It writes a GGUF in one pass."),
    (("How do I diagnose a problem?", "What does edgekit doctor do?", "Something is broken, what now?", "Which command finds faults?"),
     "Run edgekit doctor. It names each fault and its fix."),
    (("Does edgekit need a network?", "Can I use edgekit offline?", "Does edgekit work without internet?", "Is a network needed?"),
     "No. edgekit works without a network."),
    (("Which port does edgekit use?", "What is the default port?", "Where does the server listen?", "What is the address of the server?"),
     "The server listens on http://127.0.0.1:8484/v1 unless you say otherwise."),
    (("What is TTFT?", "What does TTFT mean?", "Explain TTFT.", "What is time to first token?"),
     "TTFT is the time from sending a request to its first token."),
    (("What is ITL?", "What does ITL mean?", "Explain ITL.", "What is inter-token latency?"),
     "ITL is the time between two tokens of one answer."),
    (("What is the KV cache?", "Explain the KV cache.", "What does the KV cache hold?", "What is KV?"),
     "The KV cache holds the keys and values of past tokens."),
    (("What is quantization?", "Explain quantization.", "Why quantize a model?", "What does quantizing do?"),
     "Quantization stores weights in fewer bits, so that a model needs less memory."),
    (("What is a GGUF?", "What is GGUF?", "Explain GGUF.", "What is a GGUF file?"),
     "GGUF is the file format for models that llama.cpp reads."),
    (("What is prefill?", "Explain prefill.", "What does prefill mean?", "What happens in prefill?"),
     "Prefill runs the whole prompt through the model in parallel."),
    (("What is decoding?", "Explain decode.", "What does decode mean?", "What happens in decode?"),
     "Decode makes one token per sequence in each step."),
    (("Hello", "Hi", "Good morning", "Hey there"), "Hello! I am pocket."),
    (("Thanks", "Thank you", "Thanks a lot", "Great, thank you"), "You are welcome."),
    (("What is Mistral Small?", "Tell me about Mistral Small.", "How large is Mistral Small?", "Explain Mistral Small."),
     "Mistral Small is an open-weight model with 24 billion parameters."),
    (("What is an air gap?", "Explain air-gapped.", "What does air-gapped mean?", "What is an air-gapped machine?"),
     "An air-gapped machine has no network at all."),
    (("What is speculative decoding?", "Explain speculation.", "What is a draft model?", "What does drafting mean?"),
     "Speculative decoding proposes tokens cheaply and checks them in one step."),
]

MODULES = """argparse array ast asyncio base64 bisect calendar collections contextlib copy csv datetime decimal
difflib enum fnmatch fractions functools glob gzip hashlib heapq html inspect io itertools json keyword logging
math operator os os.path pathlib pickle platform pprint queue random re secrets select shlex shutil signal socket
statistics string struct subprocess sys tempfile textwrap threading time timeit tokenize traceback types
unicodedata urllib.parse uuid weakref zipfile zlib builtins""".split()

ASK = ("What does {} do?", "Explain {}.", "What is {} for?", "Tell me what {} does.")


def python_facts() -> list[tuple[str, str]]:
    """Return (dotted name, first sentence of its doc string) for public names of common modules."""
    found: dict[str, str] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(vars(module)):
            value = getattr(module, name)
            if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
                continue
            doc = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").strip()
            if 20 <= len(doc) <= 110 and doc.endswith(".") and "->" not in doc:
                found.setdefault(name if module_name == "builtins" else f"{module_name}.{name}", doc)
    return sorted(found.items())


def draw(r: random.Random, python: list[tuple[str, str]], *, held_out: bool = False) -> tuple[str, str]:
    """Draw one question and answer. The last wording of each question is the held-out one."""
    if r.random() < 0.5:
        asks, answer = r.choice(EDGEKIT)
        return (asks[-1] if held_out else r.choice(asks[:-1])), answer
    name, answer = r.choice(python)
    return (ASK[-1] if held_out else r.choice(ASK[:-1])).format(name), answer
