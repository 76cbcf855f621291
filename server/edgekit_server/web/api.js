// Talking to this server, and only to it.

const PLACE = "edgekit-key";
const UNREACHABLE = "The server does not answer.";

/** Where this page came from, without a slash at the end: clients append their own paths. */
export const root = new URL(".", location.href).href.replace(/\/$/, "");

let held = "";

export function key() {
  try {
    return sessionStorage.getItem(PLACE) || held;
  } catch {
    return held; // storage is switched off: the key lives as long as the page
  }
}

export function keep(given) {
  held = given;
  try {
    if (given) sessionStorage.setItem(PLACE, given);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // see above
  }
}

/** What the server said no with, or that it said nothing (status 0). */
export class Refused extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Send a request; `body` makes it a POST. Refused unless the answer is a success. */
export async function ask(path, { body, signal, as = key() } = {}) {
  const headers = { accept: "application/json" };
  if (body) headers["content-type"] = "application/json";
  if (as) headers.authorization = `Bearer ${as}`;
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (signal?.aborted || error.name === "AbortError") throw error;
    throw new Refused(UNREACHABLE);
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  const said = found.error ?? {};
  throw new Refused(said.message ?? `The server said ${response.status}.`, response.status, said.code);
}

/** Yield the parsed events of a stream until [DONE]. Refused for an error event or a torn stream. */
export async function* events(path, body, signal) {
  const response = await ask(path, { body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal?.aborted || error.name === "AbortError") throw error;
      throw new Refused("The connection broke in the middle of the answer.");
    }
    if (part.done) throw new Refused("The answer ended before it was complete.");
    rest += part.value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(event.error.message, 200, event.error.code);
      yield event;
    }
  }
}
