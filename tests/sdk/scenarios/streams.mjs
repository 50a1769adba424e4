// History and recovery: what a client gets that was not there all the time.
import { Heard, refusal, same } from '../site.mjs';

const number = (site) => ({ data }) => site.decode(data).n;

/** Publish {n: from} … {n: to}, each alike enough for a delta to pay. */
async function publishNumbers(site, channel, from, to) {
  for (let n = from; n <= to; n += 1) await site.publish(channel, { n, filling: 'beacon '.repeat(60) });
}

/** A subscriber that heard one publication and then lost its connection; the line is cut. */
async function cutOff(site, channel, options) {
  const client = await site.connected();
  const subscription = await site.subscribed(client, channel, options);
  const publications = new Heard(subscription, 'publication');
  await publishNumbers(site, channel, 1, 1);
  await publications.count(1);
  const subscribed = new Heard(subscription, 'subscribed');
  const connecting = new Heard(client, 'connecting');
  await site.cut();
  await connecting.next();
  return { subscription, publications, subscribed };
}

function recovers(delta) {
  return async (site) => {
    const channel = site.channel();
    const { publications, subscribed } = await cutOff(site, channel, delta);
    await publishNumbers(site, channel, 2, 6);
    await site.mend();
    const { wasRecovering, recovered } = await subscribed.next();
    same([wasRecovering, recovered], [true, true], 'was recovering, recovered');
    await publishNumbers(site, channel, 7, 8);
    same((await publications.count(8)).map(number(site)), [1, 2, 3, 4, 5, 6, 7, 8], 'publications');
    same(publications.all.map((publication) => site.offset(publication)), [1, 2, 3, 4, 5, 6, 7, 8], 'offsets');
  };
}

export const streams = {
  'history is read page by page, forwards and backwards': async (site) => {
    const channel = site.channel();
    const subscription = await site.subscribed(await site.connected(), channel);
    await publishNumbers(site, channel, 1, 5);

    const top = await subscription.history();
    same([top.publications.length, site.offset(top)], [0, 5], 'position alone');
    const first = await subscription.history({ limit: 2 });
    same(first.publications.map(number(site)), [1, 2], 'first page');
    const second = await subscription.history({ limit: 2, since: { offset: 2, epoch: first.epoch } });
    same(second.publications.map(number(site)), [3, 4], 'second page');
    const back = await subscription.history({ limit: 2, since: { offset: 4, epoch: first.epoch }, reverse: true });
    same(back.publications.map(number(site)), [3, 2], 'backwards');
    const all = await subscription.history({ limit: -1, reverse: true });
    same(all.publications.map(number(site)), [5, 4, 3, 2, 1], 'everything backwards');

    const elsewhere = subscription.history({ limit: 1, since: { offset: 2, epoch: 'elsewhen' } });
    same((await refusal(elsewhere)).code, 112, 'code of another epoch');
  },

  'a client whose connection was cut gets all that it missed, once and in order': recovers({}),

  'so does one that receives deltas': recovers({ delta: 'fossil' }),

  'a subscription that was ended and begun again gets what came between': async (site) => {
    const channel = site.channel();
    const subscription = await site.subscribed(await site.connected(), channel);
    const publications = new Heard(subscription, 'publication');
    await publishNumbers(site, channel, 1, 1);
    await publications.count(1);

    subscription.unsubscribe();
    // The SDK does not tell when the server has unsubscribed it; nobody is present then.
    while (Object.keys((await site.api('presence', { channel })).result.presence).length > 0);
    await publishNumbers(site, channel, 2, 3);
    const subscribed = new Heard(subscription, 'subscribed');
    subscription.subscribe();
    same((await subscribed.next()).recovered, true, 'recovered');
    same((await publications.count(3)).map(number(site)), [1, 2, 3], 'publications');
  },

  'who missed more than the history holds is told so and goes on': async (site) => {
    const channel = site.channel('smallhistory');
    const { publications, subscribed } = await cutOff(site, channel);
    await publishNumbers(site, channel, 2, 5);  // two of them are kept
    await site.mend();
    const { wasRecovering, recovered } = await subscribed.next();
    same([wasRecovering, recovered], [true, false], 'was recovering, recovered');
    await publishNumbers(site, channel, 6, 6);
    same((await publications.count(2)).map(number(site)), [1, 6], 'publications');
  },

  'who reads its state elsewhere reads it again when its position is gone': async (site) => {
    const channel = site.channel('smallhistory');
    const read = [];
    const getState = async () => {
      const { result } = await site.api('history', { channel });
      read.push(result.offset);
      return { offset: result.offset, epoch: result.epoch };
    };
    const { publications, subscribed } = await cutOff(site, channel, { getState, minResubscribeDelay: 20 });
    await publishNumbers(site, channel, 2, 6);
    await site.mend();
    await subscribed.next();
    same(read, [0, 6], 'offsets of the states read');
    await publishNumbers(site, channel, 7, 7);
    same((await publications.count(2)).map(number(site)), [1, 7], 'publications');
  },

  'an early position brings everything from there on': async (site) => {
    const channel = site.channel();
    await publishNumbers(site, channel, 1, 3);
    const { result } = await site.api('history', { channel });
    const client = await site.connected();
    const subscription = client.newSubscription(channel, { since: { offset: 1, epoch: result.epoch } });
    const publications = new Heard(subscription, 'publication');
    subscription.subscribe();
    same((await publications.count(2)).map(number(site)), [2, 3], 'publications');
  },

  'of publications that are alike only the differences travel': async (site) => {
    const channel = site.channel();
    const subscription = await site.subscribed(await site.connected(), channel, { delta: 'fossil' });
    const publications = new Heard(subscription, 'publication');
    await publishNumbers(site, channel, 1, 10);
    same((await publications.count(10)).map(number(site)), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 'publications');
    const { numFullPayloads, numDeltaPayloads } = subscription.deltaStats();
    same([numFullPayloads, numDeltaPayloads], [1, 9], 'full and delta payloads');
  },
};
