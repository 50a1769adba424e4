// In a page: plays the scenarios with the SDK's build for browsers. test_browser.py has put `api`, `sign`, `cut` and
// `mend` into the window; they do outside of the page what a backend and a network do.
import { calls } from './scenarios/calls.mjs';
import { connections } from './scenarios/connections.mjs';
import { lifetimes } from './scenarios/lifetimes.mjs';
import { streams } from './scenarios/streams.mjs';
import { subscriptions } from './scenarios/subscriptions.mjs';
import { Site } from './site.mjs';

const inTurn = { ...connections, ...subscriptions, ...streams, ...calls };
const scenarios = { ...lifetimes, ...inTurn };

/** The names of all scenarios, in groups that are played at once. */
window.groups = [Object.keys(lifetimes), ...Object.keys(inTurn).map((name) => [name])];

/** Play one scenario; what went wrong, or null. */
window.play = async (name, transport, encoding) => {
  const { Centrifuge, api, sign, cut, mend } = window;
  const site = new Site({ Centrifuge, transport, encoding, base: location.origin, api, sign, cut, mend });
  try {
    await scenarios[name](site);
    return null;
  } catch (error) {
    return String(error.stack ?? error);
  } finally {
    site.close();
    await mend();
  }
};
