// Talking to the service: /v1 alone, with the key of this tab. What the page knows is in `state`.

import { sleep } from "./dom.js";

export const state = { key: sessionStorage.getItem("key"), local: false, model: null, subject: null, files: [], pending: 0, learning: null };
const pictures = new Map(); // path -> blob address, loaded once

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || "The service did not answer as expected.");
    Object.assign(this, { status, code: (body.type || "").split(":").pop(), errors: body.errors || [] });
  }
}

export async function call(path, { method = "GET", body, headers = {} } = {}) {
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  if (body && !(body instanceof FormData)) [body, headers["Content-Type"]] = [JSON.stringify(body), "application/json"];
  let answer;
  try {
    answer = await fetch(path.replace(/^\//, ""), { method, body, headers, cache: "no-store" });
  } catch {
    throw new Problem(0, { detail: "The service does not answer. Is it still running?" });
  }
  if (answer.ok) return answer;
  throw new Problem(answer.status, await answer.json().catch(() => ({})));
}
export const get = async (path) => (await call(path)).json();

export async function all(path) {
  const found = [];
  for (let cursor = ""; cursor !== null;) {
    const page = await get(`${path}?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    found.push(...page.data);
    cursor = page.next_cursor;
  }
  return found;
}

export async function picture(path) {
  if (!pictures.has(path)) pictures.set(path, URL.createObjectURL(await (await call(path)).blob()));
  return pictures.get(path);
}

/** Hear the events of a job until it ends; a broken line is taken up again. Returns the job as it ended. */
export async function follow(job, hear) {
  for (;;) {
    try {
      const lines = (await call(job.urls.events)).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await lines.read();
        if (done) break;
        const parts = (text + value).split(/\r?\n\r?\n/);
        text = parts.pop();
        for (const part of parts) {
          const [, event] = part.match(/^event: ?(.*)$/m) || [];
          const [, data] = part.match(/^data: ?(.*)$/m) || [];
          if (event === "ended") return JSON.parse(data);
          if (event) hear(event, JSON.parse(data));
        }
      }
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    await sleep(1000);
  }
}
