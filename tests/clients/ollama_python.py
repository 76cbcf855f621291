"""The official ollama client: a stream; with tools, the loop that an agent runs."""

import json
import sys
from pathlib import Path

import ollama

url, model, question = sys.argv[1:]
given = json.loads((Path(__file__).parent / "pocket_tools.json").read_text())
client = ollama.Client(host=url)
assert model in [m.model.removesuffix(":latest") for m in client.list().models]
messages = [{"role": "user", "content": question}]
tools = [{"type": "function", "function": tool} for tool in given["tools"]]
options = {"temperature": 0, "num_predict": 64}
calls = 0
while True:
    used, text = [], ""
    offered = tools if "report.txt" in question else None
    for part in client.chat(model, messages, tools=offered, options=options, stream=True):
        text += part.message.content or ""
        used += part.message.tool_calls or []
    print(text)
    if not used:
        break
    messages.append({"role": "assistant", "content": text, "tool_calls": used})
    for call in used:
        calls += 1
        content = given["answers"][call.function.name]
        messages.append({"role": "tool", "tool_name": call.function.name, "content": content})
print(f"calls: {calls}")
