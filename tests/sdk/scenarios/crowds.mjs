// Many clients at once.
import { Heard, same } from '../site.mjs';

const CLIENTS = 64;

export const crowds = {
  'what 64 clients send at once reaches all 64, once, in the same order': async (site) => {
    const channel = site.channel();
    const clients = await Promise.all(Array.from({ length: CLIENTS }, (_, i) => site.connected(`user-${i}`)));
    const subscriptions = await Promise.all(clients.map((client) => site.subscribed(client, channel)));
    const heard = subscriptions.map((subscription) => new Heard(subscription, 'publication'));
    same(await subscriptions[0].presenceStats(), { numClients: CLIENTS, numUsers: CLIENTS }, 'present');

    await Promise.all(subscriptions.map((subscription, i) => subscription.publish(site.encode({ i }))));
    const first = (await heard[0].count(CLIENTS)).map(({ data }) => site.decode(data).i);
    same([...first].sort((a, b) => a - b), Array.from({ length: CLIENTS }, (_, i) => i), 'senders');
    for (const each of heard) {
      same((await each.count(CLIENTS)).map(({ data }) => site.decode(data).i), first, 'order');
    }
  },
};
