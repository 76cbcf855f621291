// The official openai client for Node: a stream; with tools, the loop that an agent runs.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, url, model, question] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${folder}/package.json`)("openai");
const given = JSON.parse(readFileSync(new URL("pocket_tools.json", import.meta.url)));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const tools = given.tools.map((tool) => ({ type: "function", function: tool }));
const more = question.includes("report.txt") ? { tools, temperature: 0 } : { max_tokens: 64 };
let calls = 0;
for (;;) {
  const stream = client.chat.completions.stream({ model, messages, ...more });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  console.log(message.content);
  if (!message.tool_calls?.length) break;
  messages.push(message);
  for (const call of message.tool_calls) {
    calls += 1;
    const content = given.answers[call.function.name];
    messages.push({ role: "tool", tool_call_id: call.id, content });
  }
}
console.log(`calls: ${calls}`);
