// What a scenario of tus-js-client works with. Runs in node and in a page alike: what differs comes in as an argument.
import { same } from '../site.mjs';

// How long a scenario waits for what must happen. Far more than it takes: a loaded machine is no failure.
const PATIENCE = 60_000;

export class Place {
  /**
   * tus: the library.
   * base: where it uploads, such as http://127.0.0.1:8080; a line that `cut` cuts and `mend` mends.
   * input(bytes): bytes as the file of this environment. stream(bytes): the same as a stream.
   * storage: a new store of its own for addresses to go on at.
   */
  constructor({ tus, base, input, stream, storage, cut, mend }) {
    Object.assign(this, { tus, base, input, stream, storage, cut, mend });
    this.methods = [];
  }

  /** Bytes that no other upload has, and their SHA-256 in hex. */
  async file(size) {
    const content = new Uint8Array(size);
    // At most 65,536 at a time.
    for (let at = 0; at < size; at += 65_536) crypto.getRandomValues(content.subarray(at, at + 65_536));
    return { content, sha256: await sha256(content) };
  }

  /** An upload that is not started yet. `ended()` waits until it succeeds or fails; `methods` is what it asked. */
  upload(source, options = {}) {
    const methods = [];
    let settle;
    const ended = new Promise((resolve, reject) => { settle = { resolve, reject }; });
    ended.catch(() => {});  // somebody who aborts it does not wait for it
    const upload = new this.tus.Upload(source, {
      endpoint: `${this.base}/files/`,
      retryDelays: [20, 100, 500, 1000, 3000],
      urlStorage: this.storage,
      ...options,
      metadata: { filename: '봉수 beacon.bin', filetype: 'application/x-beacon', ...options.metadata },
      onBeforeRequest: (request) => { methods.push(request.getMethod()); },
      onSuccess: () => settle.resolve(),
      onError: (error) => settle.reject(error),
    });
    return { upload, methods, ended: () => within(ended, 'the upload did not end') };
  }

  /** The whole of it: returns its record in the log once it is stored, and what was asked for it. */
  async uploaded(source, options) {
    const { upload, methods, ended } = this.upload(source, options);
    upload.start();
    await ended();
    return { record: await this.stored(upload.url), methods, upload };
  }

  /** The record of the upload at `url`, once it is stored. */
  async stored(url) {
    const id = url.split('/').at(-1);
    let record;
    await eventually(async () => {
      const answer = await fetch(`${this.base}/uploads/${id}`);
      record = await answer.json();
      if (record.state === 'failed') throw new Error(`the upload failed: ${record.error}`);
      return record.state === 'stored';
    }, () => `stored: it is ${JSON.stringify(record)}`);
    return record;
  }

  /** Compare the upload at `url` with what was sent: by the log, and by what is served. */
  async keeps(url, { content, sha256: expected }, { filename = '봉수 beacon.bin' } = {}) {
    const record = await this.stored(url);
    same([record.size, record.sha256], [content.length, expected], 'size and hash');
    same(record.filename, filename, 'name');
    const served = await fetch(url);
    same([served.status, await sha256(await served.arrayBuffer())], [200, expected], 'what is served');
    return record;
  }

  /** What HEAD answers for the upload at `url`. */
  async head(url) {
    return fetch(url, { method: 'HEAD', headers: { 'Tus-Resumable': '1.0.0' } });
  }
}

/** Returns once `event(upload)` was called by the upload's option of that name. */
export function until(subscribe, what) {
  return within(new Promise(subscribe), what);
}

/** Ask `condition` until it holds: for what happens on the server. */
export async function eventually(condition, what) {
  const deadline = Date.now() + PATIENCE;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not in time: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function within(promise, complaint) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${complaint} in ${PATIENCE / 1000} s`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (octet) => octet.toString(16).padStart(2, '0')).join('');
}
