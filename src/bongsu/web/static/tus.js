// Sending one file with tus (resumable upload protocol 1.0.0), from where an earlier attempt left off: after a broken
// connection, and after this page was closed and the same file is chosen again.
// XMLHttpRequest for the bytes, because fetch still cannot tell how much of a body has left.

import { authorization } from "./credentials.js";
import { ProblemError, request } from "./http.js";

const VERSION = { "Tus-Resumable": "1.0.0" };
const FIRST_PAUSE = 250; // ms
const LONGEST_PAUSE = 5_000; // ms
const GIVE_UP_AFTER = 60_000; // ms without progress; a replica should be up again by then
const KEPT = 30 * 86_400_000; // ms; no server keeps an unfinished upload for so long

// Answers after which the same bytes may well be taken: out of step, too slow, too much at once.
const PASSING = new Set([408, 409, 423, 429]);
// An upload that is gone, or is somebody else's.
const LOST = new Set([403, 404, 410]);

/** The connection broke before the server had answered. */
class Broken extends Error {}

export class TusUpload {
  #file;
  #onProgress;
  #onTrouble;
  #stop = new AbortController();
  #key;
  #path = null;

  /**
   * @param {File} file
   * @param {{onProgress: (sent: number) => void, onTrouble: (reason: Error) => void}} options `onTrouble` is told why it
   *   waits and tries again
   */
  constructor(file, { onProgress, onTrouble }) {
    this.#file = file;
    this.#onProgress = onProgress;
    this.#onTrouble = onTrouble;
    this.#key = `bongsu.upload:${JSON.stringify([document.baseURI, file.name, file.size, file.lastModified])}`;
  }

  /**
   * Send what the server does not have yet.
   * @returns {Promise<string>} the upload's id, once the server has every byte
   * @throws {ProblemError} when the server refuses; a DOMException when the file cannot be read, or after `cancel`
   */
  async send() {
    const { size } = this.#file;
    let offset = await this.#resumed() ?? await this.#create();
    let pause = FIRST_PAUSE;
    let progressed = performance.now();
    let trouble = null;
    while (offset < size) {
      const before = offset;
      try {
        if (trouble) offset = await this.#offset();
        this.#onProgress(offset);
        offset = await this.#append(offset);
        trouble = null;
      } catch (error) {
        if (!passes(error)) throw error;
        trouble = error;
      }
      if (offset > before) {
        pause = FIRST_PAUSE;
        progressed = performance.now();
      } else if (performance.now() - progressed > GIVE_UP_AFTER) {
        throw trouble ?? new Error("서버가 더 받지 않습니다. The server takes no more bytes.");
      }
      if (trouble || offset === before) {
        if (trouble) this.#onTrouble(trouble);
        // A file that was changed or removed breaks the request just as a lost connection does.
        await this.#file.slice(offset, offset + 1).arrayBuffer();
        await this.#sleep(pause);
        pause = Math.min(pause * 2, LONGEST_PAUSE);
      }
    }
    this.#onProgress(size);
    localStorage.removeItem(this.#key);
    return this.#path.replace(/\/$/, "").split("/").at(-1);
  }

  /** End it, here and on the server. */
  async cancel() {
    this.#stop.abort();
    localStorage.removeItem(this.#key);
    if (this.#path) await request(this.#path, { method: "DELETE", headers: VERSION });
  }

  /** The offset at which an earlier attempt goes on; null to begin anew. */
  async #resumed() {
    this.#path ??= recall(this.#key);
    if (this.#path === null) return null;
    try {
      return await this.#offset();
    } catch (error) {
      if (!LOST.has(error.status)) throw error;
      this.#path = null;
      return null;
    }
  }

  async #create() {
    const { name, type, size } = this.#file;
    const endpoint = new URL("files/", document.baseURI);
    const metadata = Object.entries({ filename: name, filetype: type }).filter(([, value]) => value);
    const answer = await request(endpoint, {
      method: "POST",
      headers: {
        ...VERSION,
        "Upload-Length": String(size),
        "Upload-Metadata": metadata.map(([key, value]) => `${key} ${base64(value)}`).join(),
      },
    });
    this.#path = new URL(answer.headers.get("Location"), endpoint).pathname;
    if (this.#stop.signal.aborted) await this.cancel();
    this.#stop.signal.throwIfAborted();
    remember(this.#key, this.#path);
    return 0;
  }

  /** How many bytes the server has. */
  async #offset() {
    this.#stop.signal.throwIfAborted();
    const answer = await request(this.#path, { method: "HEAD", headers: VERSION });
    return Number(answer.headers.get("Upload-Offset"));
  }

  #append(offset) {
    const { signal } = this.#stop;
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const sending = new XMLHttpRequest();
      const stop = () => sending.abort();
      signal.addEventListener("abort", stop, { once: true });
      sending.open("PATCH", new URL(this.#path, document.baseURI));
      const headers = {
        ...authorization(),
        ...VERSION,
        "Upload-Offset": String(offset),
        "Content-Type": "application/offset+octet-stream",
      };
      for (const [name, value] of Object.entries(headers)) sending.setRequestHeader(name, value);
      sending.upload.onprogress = ({ loaded }) => this.#onProgress(offset + loaded);
      sending.onload = () => {
        if (sending.status === 204) resolve(Number(sending.getResponseHeader("Upload-Offset")));
        else reject(new ProblemError(sending.status, sending.responseText));
      };
      sending.onerror = () => reject(new Broken("연결이 끊겼습니다. The connection broke."));
      sending.onabort = () => reject(signal.reason);
      sending.onloadend = () => signal.removeEventListener("abort", stop);
      // A slice is read as it leaves, so the file's size does not matter.
      sending.send(this.#file.slice(offset));
    });
  }

  #sleep(delay) {
    const { signal } = this.#stop;
    return new Promise((resolve, reject) => {
      signal.throwIfAborted();
      const stop = () => {
        clearTimeout(timer);
        reject(signal.reason);
      };
      const timer = setTimeout(() => {
        signal.removeEventListener("abort", stop);
        resolve();
      }, delay);
      signal.addEventListener("abort", stop, { once: true });
    });
  }
}

/** Whether it makes sense to try again after this. */
function passes(error) {
  if (error instanceof ProblemError) return error.status >= 500 || PASSING.has(error.status);
  // What fetch says when there is no connection, and when its deadline has passed.
  return error instanceof Broken || error instanceof TypeError || error.name === "TimeoutError";
}

function base64(text) {
  return btoa(String.fromCodePoint(...new TextEncoder().encode(text)));
}

function recall(key) {
  return JSON.parse(localStorage.getItem(key) ?? "null")?.path ?? null;
}

function remember(key, path) {
  const oldest = Date.now() - KEPT;
  for (const kept of Object.keys(localStorage)) {
    if (kept.startsWith("bongsu.upload:") && !(JSON.parse(localStorage.getItem(kept)).at > oldest)) localStorage.removeItem(kept);
  }
  localStorage.setItem(key, JSON.stringify({ path, at: Date.now() }));
}
