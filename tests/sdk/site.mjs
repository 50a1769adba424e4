// What a scenario works with: one deployment, seen through one transport and one encoding of the SDK.
// Runs in node and in a page alike: what differs between them comes in as an argument.

// How long a scenario waits for what must happen. Far more than it takes: a loaded machine is no failure.
const PATIENCE = 30_000;

export class Site {
  /**
   * Centrifuge: the SDK's class, of its JSON or its Protobuf build.
   * base: where clients connect, such as http://127.0.0.1:8080; a line that `cut` cuts and `mend` mends.
   * api(method, body): calls the server API, past that line, and returns its JSON answer.
   * sign(claims): a token with these claims.
   * options: what the SDK has to be given where there is no browser around it.
   */
  constructor({ Centrifuge, transport, encoding, base, api, sign, cut, mend, options = {} }) {
    Object.assign(this, { transport, encoding, api, sign, cut, mend });
    this._Centrifuge = Centrifuge;
    this._options = {
      ...options,
      emulationEndpoint: `${base}/emulation`,
      minReconnectDelay: 20,
      maxReconnectDelay: 500,
      timeout: PATIENCE, // for the answer to a command; 5 s by default
    };
    const scheme = transport === 'websocket' ? base.replace('http', 'ws') : base;
    this._endpoints = [{ transport, endpoint: `${scheme}/connection/${transport}` }];
    this._clients = [];
    this._channels = 0;
  }

  /** A client that is not connected yet; closed with the site. */
  client(options = {}) {
    const client = new this._Centrifuge(this._endpoints, { ...this._options, ...options });
    this._clients.push(client);
    return client;
  }

  /** A client of `user`, connected. */
  async connected(user = 'ada', options = {}) {
    const client = this.client({ token: await this.sign({ sub: user }), ...options });
    client.connect();
    await client.ready(PATIENCE);
    return client;
  }

  /** A channel name that nobody else uses. Anybody with a user id may subscribe to those of `open`. */
  channel(namespace = 'open') {
    this._channels += 1;
    const name = `${this.transport}-${this.encoding}-${Date.now().toString(36)}-${this._channels}`;
    return namespace ? `${namespace}:${name}` : name;
  }

  /** A subscription of `client`, with what it heard; returns when it is subscribed. */
  async subscribed(client, channel, options = {}) {
    const subscription = client.newSubscription(channel, options);
    subscription.subscribe();
    await subscription.ready(PATIENCE);
    return subscription;
  }

  /** A value as this encoding's SDK sends it: Protobuf carries bytes. */
  encode(value) {
    return this.encoding === 'json' ? value : new TextEncoder().encode(JSON.stringify(value));
  }

  /** A publication's data as a value again. */
  decode(data) {
    return this.encoding === 'json' ? data : JSON.parse(new TextDecoder().decode(data));
  }

  /** A publication's offset, or a position's, as a number: the Protobuf build has a 64-bit type of its own. */
  offset({ offset }) {
    return Number(offset);
  }

  async publish(channel, value) {
    const answer = await this.api('publish', { channel, data: value });
    if (answer.error) throw new Error(`publish: ${JSON.stringify(answer.error)}`);
    return answer.result;
  }

  close() {
    for (const client of this._clients) client.disconnect();
  }
}

/** Everything that `emitter` tells under the name `event`, from now on. */
export class Heard {
  constructor(emitter, event) {
    this.all = [];
    this._event = event;
    this._read = 0;
    this._changed = () => {};
    emitter.on(event, (context) => {
      this.all.push(context);
      this._changed();
    });
  }

  /** The next one that has not been returned yet. */
  async next() {
    const wanted = this._read + 1;
    await this.count(wanted);
    this._read = wanted;
    return this.all[wanted - 1];
  }

  /** All of them once there are `wanted` or more. Rejects after a while, saying how many there are. */
  async count(wanted) {
    await inTime(
      () => this.all.length >= wanted,
      (wake) => { this._changed = wake; },
      () => `${this.all.length} of ${wanted} “${this._event}” events came`,
    );
    return this.all;
  }
}

/** Counts how often the SDK asked for something, such as a token. */
export class Asked {
  constructor() {
    this.count = 0;
    this._changed = () => {};
  }

  /** One more time: returns what `answer(time)` returns, where time is 1, 2, … */
  again(answer) {
    this.count += 1;
    this._changed();
    return answer(this.count);
  }

  /** Returns once it has been asked `wanted` times. Rejects after a while. */
  async times(wanted) {
    await inTime(
      () => this.count >= wanted,
      (wake) => { this._changed = wake; },
      () => `asked ${this.count} times, not ${wanted}`,
    );
  }
}

/** Ask `condition` until it holds: for what happens in another process, which tells us nothing by itself. */
export async function eventually(condition, what) {
  const deadline = Date.now() + PATIENCE;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Throw unless `actual` and `expected` are equal, compared as JSON with keys in order. */
export function same(actual, expected, what) {
  const [got, wanted] = [canonical(actual), canonical(expected)];
  if (got !== wanted) throw new Error(`${what}: ${got}, not ${wanted}`);
}

/** The error that `promise` is rejected with; throws when it is not. */
export async function refusal(promise) {
  let answer;
  try {
    answer = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`not refused: ${JSON.stringify(answer)}`);
}

export const now = () => Math.floor(Date.now() / 1000);

/** Wait until `reached()`; `onChange(wake)` keeps `wake` to be called whenever that may have changed. */
async function inTime(reached, onChange, complaint) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not in ${PATIENCE / 1000} s: ${complaint()}`)), PATIENCE);
  });
  try {
    while (!reached()) await Promise.race([late, new Promise(onChange)]);
  } finally {
    clearTimeout(timer);
  }
}

function canonical(value) {
  const sorted = (_, part) =>
    part && typeof part === 'object' && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part;
  return value === undefined ? 'undefined' : JSON.stringify(value, sorted);
}
