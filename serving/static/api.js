// Asks the server with the key that a person gave: kept by the tab, never put into an address that is sent.

import { byId } from "./dom.js";

const KEY = "headrace-key";

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// A fragment (#key=...) stays in the browser; it is taken out of the address at once.
export function takeKeyFromFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export async function ask(path, body) {
  const headers = { accept: "application/json" };
  // Bytes that no header can hold would make fetch throw; no key has any.
  const key = (sessionStorage.getItem(KEY) ?? "").replace(/[^\x21-\x7e]/g, "");
  if (key) headers["x-api-key"] = key;
  const options = { headers, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer.json();
}

async function reason(answer) {
  try {
    const { detail } = await answer.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail).slice(0, 300);
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

// Asks for a key until one is taken, then begins.
export function withKey(begin) {
  const form = byId("key-form");
  const attempt = async () => {
    try {
      await begin();
      form.hidden = true;
      byId("content").hidden = false;
    } catch (error) {
      if (error.status !== 401) throw error;
      form.hidden = false;
      byId("content").hidden = true;
      say(hasKey() ? "The server does not know this key." : "");
      sessionStorage.removeItem(KEY);
      byId("key").focus();
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value.trim());
    byId("key").value = "";
    say("");
    attempt().catch(tell);
  });
  takeKeyFromFragment();
  if (!hasKey()) {
    form.hidden = false;
    return Promise.resolve();
  }
  return attempt().catch(tell);
}

// The status lies in a part that a missing key hides: a message is put where it can be seen.
export function say(text) {
  const status = byId("status");
  if (status.closest("[hidden]")) byId("main").insertBefore(status, byId("content"));
  status.textContent = text;
}

export function tell(error) {
  say(error instanceof Refused ? error.message : "Something went wrong on this page.");
  if (!(error instanceof Refused)) console.error(error);
}

export async function generationInService() {
  try {
    return await ask("/healthz");
  } catch {
    return null;
  }
}
