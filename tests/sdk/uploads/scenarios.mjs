// What tus-js-client does against a deployment. Each takes a Place and throws when something is not as it should be.
import { same } from '../site.mjs';
import { eventually, until } from './place.mjs';

const MIB = 1024 * 1024;

export const scenarios = {
  async 'a file is sent and comes back'(place) {
    const file = await place.file(3 * MIB + 17);
    const { methods, upload } = await place.uploaded(place.input(file.content));
    const record = await place.keeps(upload.url, file);
    same(methods, ['POST', 'PATCH'], 'requests');
    same(record.content_type, 'application/x-beacon', 'type');
  },

  async 'a file is sent in chunks'(place) {
    const file = await place.file(3 * MIB + 17);
    const { methods, upload } = await place.uploaded(place.input(file.content), { chunkSize: MIB });
    await place.keeps(upload.url, file);
    same(methods, ['POST', 'PATCH', 'PATCH', 'PATCH', 'PATCH'], 'requests');
  },

  async 'an empty file is complete when it is created'(place) {
    const file = await place.file(0);
    const { methods, upload } = await place.uploaded(place.input(file.content));
    await place.keeps(upload.url, file);
    same(methods, ['POST'], 'requests');
  },

  async 'the bytes come along with the creation'(place) {
    const file = await place.file(MIB + 1);
    const { methods, upload } = await place.uploaded(place.input(file.content), { uploadDataDuringCreation: true });
    await place.keeps(upload.url, file);
    same(methods, ['POST'], 'requests');
  },

  async 'the first chunk comes along with the creation'(place) {
    const file = await place.file(MIB + 1);
    const { methods, upload } = await place.uploaded(place.input(file.content), {
      uploadDataDuringCreation: true,
      chunkSize: MIB,
    });
    await place.keeps(upload.url, file);
    same(methods, ['POST', 'PATCH'], 'requests');
  },

  async 'a stream says at its end how long it was'(place) {
    for (const size of [2 * MIB + 5, 2 * MIB]) {
      const file = await place.file(size);
      const { upload } = await place.uploaded(place.stream(file.content), {
        uploadLengthDeferred: true,
        chunkSize: MIB,
      });
      await place.keeps(upload.url, file);
    }
  },

  async 'three parts are sent at once and put together'(place) {
    const file = await place.file(3 * MIB + 1);
    const { methods, upload } = await place.uploaded(place.input(file.content), { parallelUploads: 3 });
    await place.keeps(upload.url, file);
    same(methods.slice().sort(), ['PATCH', 'PATCH', 'PATCH', 'POST', 'POST', 'POST', 'POST'], 'requests');
    const whole = await place.head(upload.url);
    same(whole.headers.get('Upload-Concat').split(/[; ]/).length, 4, 'the parts that HEAD tells of');
    same(whole.headers.get('Upload-Offset'), String(file.content.length), 'offset');
  },

  async 'it is paused and goes on'(place) {
    const file = await place.file(4 * MIB);
    let pause;
    const { upload, methods, ended } = place.upload(place.input(file.content), {
      chunkSize: MIB,
      onChunkComplete: () => pause?.(),
    });
    const paused = until((resolve) => { pause = resolve; }, 'no chunk was sent');
    upload.start();
    await paused;
    pause = null;
    await upload.abort();
    const head = await place.head(upload.url);
    same(head.status, 200, 'HEAD while it is paused');
    if (Number(head.headers.get('Upload-Offset')) < MIB) throw new Error('what was acknowledged is not there');
    upload.start();
    await ended();
    await place.keeps(upload.url, file);
    same(methods.filter((method) => method === 'HEAD').length, 1, 'times it asked where to go on');
  },

  async 'somebody who comes back later goes on where it was'(place) {
    const file = await place.file(4 * MIB);
    const source = place.input(file.content);
    let stop;
    const first = place.upload(source, { chunkSize: MIB, onChunkComplete: () => stop() });
    const sent = until((resolve) => { stop = resolve; }, 'no chunk was sent');
    first.upload.start();
    await sent;
    await first.upload.abort();

    const second = place.upload(source);
    const [previous] = await second.upload.findPreviousUploads();
    second.upload.resumeFromPreviousUpload(previous);
    second.upload.start();
    await second.ended();
    same(second.upload.url, first.upload.url, 'the upload that goes on');
    same(second.methods, ['HEAD', 'PATCH'], 'requests of the second');
    await place.keeps(second.upload.url, file);
  },

  async 'a connection that breaks is made again'(place) {
    const file = await place.file(8 * MIB);
    let began;
    const { upload, ended } = place.upload(place.input(file.content), {
      onProgress: (sent) => { if (sent > 0) began(); },
    });
    const sending = until((resolve) => { began = resolve; }, 'nothing was sent');
    upload.start();
    await sending;
    await place.cut();
    await place.mend();
    await ended();
    await place.keeps(upload.url, file);
  },

  async 'it is given up and nothing is left'(place) {
    const file = await place.file(4 * MIB);
    let stop;
    const { upload } = place.upload(place.input(file.content), { chunkSize: MIB, onChunkComplete: () => stop() });
    const sent = until((resolve) => { stop = resolve; }, 'no chunk was sent');
    upload.start();
    await sent;
    await upload.abort(true);
    const head = await place.head(upload.url);
    if (![404, 410].includes(head.status)) throw new Error(`HEAD after that: ${head.status}`);
    await eventually(
      async () => (await fetch(`${place.base}/uploads/${upload.url.split('/').at(-1)}`)).status === 404,
      () => 'it is gone from the log',
    );
  },

  async 'a POST stands in for PATCH'(place) {
    const file = await place.file(MIB);
    const { methods, upload } = await place.uploaded(place.input(file.content), { overridePatchMethod: true });
    await place.keeps(upload.url, file);
    same(methods, ['POST', 'POST'], 'requests');
  },

  async 'headers of its own do no harm'(place) {
    const file = await place.file(10);
    const { upload } = await place.uploaded(place.input(file.content), {
      addRequestId: true,
      headers: { 'X-Custom': 'beacon' },
    });
    await place.keeps(upload.url, file);
  },

  async 'what was said of it is said again, byte for byte'(place) {
    const file = await place.file(10);
    const metadata = { 'empty-one': '', caption: '봉수 🔥' };
    const { upload } = await place.uploaded(place.input(file.content), { metadata });
    const head = await place.head(upload.url);
    same(
      head.headers.get('Upload-Metadata'),
      'filename 67SJ7IiYIGJlYWNvbi5iaW4=,filetype YXBwbGljYXRpb24veC1iZWFjb24=,empty-one ,caption 67SJ7IiYIPCflKU=',
      'metadata',
    );
    same(head.headers.get('Cache-Control'), 'no-store', 'Cache-Control');
  },
};
