// A WebSocket that comes back: exponential backoff with jitter, and a state people can see.

import { subprotocols } from "./credentials.js";

const FIRST_DELAY = 500; // ms
const LONGEST_DELAY = 20_000; // ms
const SETTLED = 5_000; // ms open before a connection counts as good

/** Codes after which the server does not want us back (protocol: 3500–3999 and 4500–4999). */
const isTerminal = (code) => (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);

/**
 * How long to wait before attempt number `attempt` (0 is the first retry), in milliseconds.
 * Between half and the whole of a doubling delay: after a restart a crowd must not return in one step.
 */
export function backoff(attempt, random = Math.random) {
  const full = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** attempt);
  return full * (0.5 + random() / 2);
}

/**
 * State handed to `onState`: `{phase: "connecting" | "open" | "waiting" | "closed", delay, code, reason}`;
 * `delay` (ms) only while waiting, `code` and `reason` of the last close frame where there was one.
 */
export class LiveSocket {
  #path;
  #onState;
  #onText;
  #socket = null;
  #attempt = 0;
  #retry = null;
  #settle = null;

  /** @param {string} path relative to the page, so that a path prefix is kept */
  constructor(path, { onState, onText }) {
    this.#path = path;
    this.#onState = onState;
    this.#onText = onText;
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#hurry();
    });
  }

  /** Connect now, from scratch; a connection there may be is left for the new one. */
  start() {
    this.stop();
    this.#attempt = 0;
    this.#open();
  }

  /** Close and stay closed until `start`. */
  stop() {
    clearTimeout(this.#retry);
    clearTimeout(this.#settle);
    this.#retry = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  /** Send, or return false when there is no open connection to send on. */
  send(text) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(text);
    return true;
  }

  #open() {
    const url = new URL(this.#path, document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, subprotocols());
    this.#socket = socket;
    this.#onState({ phase: "connecting" });
    socket.onopen = () => {
      if (this.#socket !== socket) return;
      // A server that accepts and closes at once must not be asked twice a second for ever.
      this.#settle = setTimeout(() => { this.#attempt = 0; }, SETTLED);
      this.#onState({ phase: "open" });
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket === socket) this.#onText(data);
    };
    socket.onclose = ({ code, reason }) => {
      if (this.#socket === socket) this.#lost(code, reason);
    };
  }

  #lost(code, reason) {
    clearTimeout(this.#settle);
    this.#socket = null;
    if (isTerminal(code)) {
      this.#onState({ phase: "closed", code, reason });
      return;
    }
    const delay = backoff(this.#attempt);
    this.#attempt += 1;
    this.#retry = setTimeout(() => this.#reopen(), delay);
    this.#onState({ phase: "waiting", delay, code, reason });
  }

  #reopen() {
    this.#retry = null;
    this.#open();
  }

  #hurry() {
    if (this.#retry === null) return;
    clearTimeout(this.#retry);
    this.#reopen();
  }
}
