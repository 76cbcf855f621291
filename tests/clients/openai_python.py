"""The official openai client: a stream; with tools, the loop that an agent runs."""

import json
import sys
from pathlib import Path

import openai

url, model, question = sys.argv[1:]
given = json.loads((Path(__file__).parent / "pocket_tools.json").read_text())
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": question}]
tools = [{"type": "function", "function": tool} for tool in given["tools"]]
more = {"tools": tools, "temperature": 0} if "report.txt" in question else {"max_tokens": 64}
calls = 0
while True:
    with client.chat.completions.stream(model=model, messages=messages, **more) as stream:
        message = stream.get_final_completion().choices[0].message
    print(message.content)
    if not message.tool_calls:
        break
    messages.append(message.to_dict())
    for call in message.tool_calls:
        calls += 1
        content = given["answers"][call.function.name]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
print(f"calls: {calls}")
