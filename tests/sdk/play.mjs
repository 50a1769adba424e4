// node play.mjs TRANSPORT ENCODING: every scenario over one transport and encoding, as tests of node's own runner.
// BONGSU_URL, BONGSU_API_KEY and BONGSU_TOKEN_SECRET say which deployment.
import { createHmac } from 'node:crypto';
import { createRequire } from 'node:module';
import { after, describe, test } from 'node:test';

import EventSource from 'eventsource';
import WebSocket from 'ws';

import { Line } from './line.mjs';
import { calls } from './scenarios/calls.mjs';
import { connections } from './scenarios/connections.mjs';
import { crowds } from './scenarios/crowds.mjs';
import { lifetimes } from './scenarios/lifetimes.mjs';
import { streams } from './scenarios/streams.mjs';
import { subscriptions } from './scenarios/subscriptions.mjs';
import { Site } from './site.mjs';

const [transport, encoding] = process.argv.slice(2);
const { BONGSU_URL, BONGSU_API_KEY, BONGSU_TOKEN_SECRET } = process.env;
const { Centrifuge } = createRequire(import.meta.url)(
  encoding === 'protobuf' ? 'centrifuge/build/protobuf' : 'centrifuge',
);

// Browsers give each message a turn of its own, and the SDK's releases before 5.8 count on it: of two frames in one
// turn they hand out the publications alternately.
class TurnTaking extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { allowSynchronousEvents: false });
  }
}

async function api(method, body) {
  const answer = await fetch(`${BONGSU_URL}/api/${method}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'X-API-Key': BONGSU_API_KEY },
    body: JSON.stringify(body),
  });
  if (answer.status !== 200) throw new Error(`/api/${method}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

async function sign(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const unsigned = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${unsigned}.${createHmac('sha256', BONGSU_TOKEN_SECRET).update(unsigned).digest('base64url')}`;
}

const line = await Line.to(BONGSU_URL);
after(() => line.close());

/** Requests that the SDK has begun: it leaves some behind that nobody awaits, and the line must outlive them. */
const begun = new Set();

function tracked(...request) {
  const answer = fetch(...request);
  begun.add(answer);
  answer.finally(() => begun.delete(answer)).catch(() => {});
  return answer;
}

function perform(scenarios) {
  for (const [name, play] of Object.entries(scenarios)) {
    test(name, async () => {
      const site = new Site({
        Centrifuge, transport, encoding, base: line.url, api, sign,
        cut: () => line.cut(),
        mend: () => line.mend(),
        options: { websocket: TurnTaking, eventsource: EventSource, fetch: tracked, readableStream: ReadableStream },
      });
      try {
        await play(site);
      } finally {
        site.close();
        line.mend();
        while (begun.size > 0) await Promise.allSettled(begun);
      }
    });
  }
}

describe('at once', { concurrency: true }, () => perform(lifetimes));
describe('one by one', () => perform({ ...connections, ...subscriptions, ...streams, ...calls, ...crowds }));
