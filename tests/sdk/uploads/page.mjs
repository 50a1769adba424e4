// In a page: plays the scenarios with tus-js-client's build for browsers, which is in `window.tus`. The test has put
// `cut` and `mend` into the window. `base` is of another origin than this page.
import { Place } from './place.mjs';
import { scenarios } from './scenarios.mjs';

window.names = Object.keys(scenarios);

/** Play one scenario; what went wrong, or null. */
window.play = async (name, base) => {
  const { tus, cut, mend } = window;
  const place = new Place({
    tus,
    base,
    // By name, size and time the library tells whether it has begun to upload a file before.
    input: (bytes) => new File([bytes], name, { lastModified: 0 }),
    stream: (bytes) => new Blob([bytes]).stream().getReader(),
    storage: tus.defaultOptions.urlStorage,
    cut,
    mend,
  });
  try {
    await scenarios[name](place);
    return null;
  } catch (error) {
    return String(error.stack ?? error);
  } finally {
    await mend();
  }
};
