"""The official anthropic client: a stream; with tools, the loop that an agent runs."""

import json
import sys
from pathlib import Path

import anthropic

url, model, question = sys.argv[1:]
given = json.loads((Path(__file__).parent / "pocket_tools.json").read_text())
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
messages = [{"role": "user", "content": question}]
tools = [
    {"name": t["name"], "description": t["description"], "input_schema": t["parameters"]}
    for t in given["tools"]
]
more = {"tools": tools, "extra_body": {"temperature": 0}} if "report.txt" in question else {}
calls = 0
while True:
    with client.messages.stream(model=model, messages=messages, max_tokens=64, **more) as stream:
        message = stream.get_final_message()
    results = []
    for block in message.content:
        print(block.to_dict())
        if block.type == "tool_use":
            calls += 1
            content = given["answers"][block.name]
            results.append({"type": "tool_result", "tool_use_id": block.id, "content": content})
    if not results:
        break
    messages.append({"role": "assistant", "content": [b.to_dict() for b in message.content]})
    messages.append({"role": "user", "content": results})
print(f"calls: {calls}")
