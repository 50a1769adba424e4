// What a backend does to connections, whichever replica holds them.
import { Heard, same } from '../site.mjs';

export const calls = {
  'the server API ends a connection wherever it is': async (site) => {
    const user = site.channel('');
    const clients = [await site.connected(user), await site.connected(user), await site.connected(user)];
    const ends = clients.map((client) => new Heard(client, 'disconnected'));
    await site.api('disconnect', { user });
    for (const end of ends) same((await end.next()).code, 3503, 'code');
  },

  'the server API subscribes and unsubscribes a user': async (site) => {
    const [user, channel] = [site.channel(''), site.channel()];
    const client = await site.connected(user);
    const [subscribed, unsubscribed, publications] =
      ['subscribed', 'unsubscribed', 'publication'].map((event) => new Heard(client, event));
    await site.api('subscribe', { user, channel });
    same((await subscribed.next()).channel, channel, 'subscribed');
    await site.publish(channel, { text: 'for you' });
    same(site.decode((await publications.next()).data), { text: 'for you' }, 'publication');
    await site.api('unsubscribe', { user, channel });
    same((await unsubscribed.next()).channel, channel, 'unsubscribed');
    same(client.state, 'connected', 'state');

    const own = await site.subscribed(client, site.channel());
    const ended = new Heard(own, 'unsubscribed');
    await site.api('unsubscribe', { user, channel: own.channel });
    same((await ended.next()).code, 2000, 'code of an unsubscription by the server');
  },
};
