// The server, as the page asks it: questions, orders, and the stream of what happens.

const KEY = "ws-supervisor admin token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  // What a header cannot carry is no token, and must not be kept: every request would fail.
  set(value) {
    if (!/^[\x21-\x7e]+$/.test(value)) throw new Error("a token is printable ASCII, without spaces");
    sessionStorage.setItem(KEY, value);
  },
};

export class Declined extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({}));
  throw new Declined(answer.status, detail ?? answer.statusText);
}

export const ask = async (path) => (await call(path)).json();

export const tell = async (path, body) => (await call(path, { method: "POST", body: JSON.stringify(body) })).json();

// What is silent for so long is gone; the server says something every 15 seconds.
const SILENCE = 40_000;

// Calls hear(kind, data) for everything that is told; returns when the stream has ended, or the page is not seen: a
// browser has six connections to a server, and each page would hold one.
export async function listen(hear) {
  const abort = new AbortController();
  const hide = () => document.hidden && abort.abort();
  document.addEventListener("visibilitychange", hide);
  let timer = setTimeout(() => abort.abort(), SILENCE);
  try {
    const answer = await call("/api/events", { signal: abort.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const [, kind, data] = /^event: (.*)\ndata: (.*)$/.exec(part) ?? [];
        if (kind) hear(kind, JSON.parse(data));
      }
    }
  } finally {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", hide);
    abort.abort();
  }
}
