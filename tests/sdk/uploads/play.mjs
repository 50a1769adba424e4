// node play.mjs: every scenario with tus-js-client, as tests of node's own runner. BONGSU_URL says which deployment.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, test } from 'node:test';

import * as tus from 'tus-js-client';

import { Line } from '../line.mjs';
import { Place } from './place.mjs';
import { scenarios } from './scenarios.mjs';

const line = await Line.to(process.env.BONGSU_URL);
const directory = mkdtempSync(join(tmpdir(), 'bongsu-tus-'));
after(() => {
  line.close();
  rmSync(directory, { recursive: true });
});

for (const [number, [name, play]] of Object.entries(scenarios).entries()) {
  test(name, async () => {
    const place = new Place({
      tus,
      base: line.url,
      input: (bytes) => Buffer.from(bytes),
      stream: (bytes) => Readable.from(chunks(bytes)),
      storage: new tus.FileUrlStorage(join(directory, `${number}.json`)),
      cut: () => line.cut(),
      mend: () => line.mend(),
    });
    try {
      await play(place);
    } finally {
      line.mend();
    }
  });
}

function* chunks(bytes) {
  for (let at = 0; at < bytes.length; at += 100_000) yield Buffer.from(bytes.subarray(at, at + 100_000));
}
