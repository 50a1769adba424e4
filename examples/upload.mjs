// Uploads a file, and goes on where it was when it is run again. npm install tus-js-client && node upload.mjs FILE
// Outside --dev with BONGSU_ACCESS_TOKEN=$(bongsu token ada).
import { createReadStream } from 'node:fs';
import { basename } from 'node:path';
import * as tus from 'tus-js-client';

const { BONGSU_URL = 'http://127.0.0.1:8000', BONGSU_ACCESS_TOKEN } = process.env;
const [path] = process.argv.slice(2);

const upload = new tus.Upload(createReadStream(path), {
  endpoint: `${BONGSU_URL}/files/`,
  headers: BONGSU_ACCESS_TOKEN ? { Authorization: `Bearer ${BONGSU_ACCESS_TOKEN}` } : {},
  metadata: { filename: basename(path) },
  retryDelays: [0, 1000, 3000, 5000, 10_000],
  urlStorage: new tus.FileUrlStorage('uploads.json'),
  removeFingerprintOnSuccess: true,
  onProgress: (sent, total) => console.error(`${sent} of ${total} bytes`),
  onSuccess: () => console.log(upload.url.split('/').at(-1)),
  onError: (error) => { throw error; },
});
const [previous] = await upload.findPreviousUploads();
if (previous) upload.resumeFromPreviousUpload(previous);
upload.start();
