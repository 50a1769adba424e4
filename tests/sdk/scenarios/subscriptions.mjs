// Subscribing, publishing, presence: everything that needs no history.
import { Heard, eventually, now, refusal, same } from '../site.mjs';

export const subscriptions = {
  'a subscription token opens a channel that is closed otherwise': async (site) => {
    const client = await site.connected('ada');
    const channel = site.channel('');
    const token = await site.sign({ sub: 'ada', channel, info: { seat: 7 } });
    const subscription = await site.subscribed(client, channel, { token });
    const { clients } = await subscription.presence();
    same(Object.values(clients).map(({ chanInfo }) => site.decode(chanInfo)), [{ seat: 7 }], 'channel info');

    const closed = client.newSubscription(site.channel(''));
    const ended = new Heard(closed, 'unsubscribed');
    closed.subscribe();
    same((await ended.next()).code, 103, 'code without a token');
  },

  'a wrong subscription token is refused with 103 and the connection lives': async (site) => {
    const client = await site.connected('ada');
    const channel = site.channel('');
    const subscription = client.newSubscription(channel, { token: 'nonsense' });
    const ended = new Heard(subscription, 'unsubscribed');
    subscription.subscribe();
    same((await ended.next()).code, 103, 'code');
    await site.subscribed(client, site.channel());
  },

  'a subscription token of somebody else ends the connection with 3500': async (site) => {
    for (const stolen of [{ sub: 'eve' }, { channel: 'another' }]) {
      const client = await site.connected('ada');
      const disconnected = new Heard(client, 'disconnected');
      const channel = site.channel('');
      client.newSubscription(channel, { token: await site.sign({ sub: 'ada', channel, ...stolen }) }).subscribe();
      same((await disconnected.next()).code, 3500, 'code');
    }
  },

  'an expired subscription token is replaced before it subscribes': async (site) => {
    const channel = site.channel('');
    const tokens = [
      await site.sign({ sub: 'ada', channel, exp: now() - 60 }),
      await site.sign({ sub: 'ada', channel }),
    ];
    const client = await site.connected('ada');
    await site.subscribed(client, channel, { getToken: async () => tokens.shift(), minResubscribeDelay: 20 });
    same(tokens.length, 0, 'tokens left');
  },

  'who subscribes and unsubscribes in a hurry is present once, and then not at all': async (site) => {
    const channel = site.channel();
    const client = await site.connected();
    const subscription = client.newSubscription(channel);
    for (let round = 0; round < 10; round += 1) {
      subscription.subscribe();
      subscription.unsubscribe();
    }
    subscription.subscribe();
    const { numClients, numUsers } = await subscription.presenceStats();
    same([numClients, numUsers], [1, 1], 'clients, users');
    subscription.unsubscribe();
    const nobody = async () => (await site.api('presence_stats', { channel })).result.num_clients === 0;
    await eventually(nobody, 'nobody is present');
  },

  'a publication reaches every subscriber once, with its publisher': async (site) => {
    const channel = site.channel();
    const [ada, bob] = [await site.connected('ada'), await site.connected('bob')];
    const listening = [await site.subscribed(ada, channel), await site.subscribed(bob, channel)];
    const heard = listening.map((subscription) => new Heard(subscription, 'publication'));

    await listening[0].publish(site.encode({ text: '안녕\n' }));
    await bob.publish(channel, site.encode({ text: 'hello' }));
    await site.publish(channel, { text: 'from a backend' });
    for (const each of heard) {
      const seen = (await each.count(3)).map((publication) =>
        [site.offset(publication), publication.info?.user, site.decode(publication.data).text]);
      same(seen, [[1, 'ada', '안녕\n'], [2, 'bob', 'hello'], [3, undefined, 'from a backend']], 'publications');
    }
  },

  'who may not publish is told so with 103': async (site) => {
    const client = await site.connected('ada');
    same((await refusal(client.publish(site.channel(), site.encode({})))).code, 103, 'code');
    same((await refusal(client.publish(site.channel('nowhere'), site.encode({})))).code, 102, 'unknown namespace');
  },

  'presence names every client and counts users': async (site) => {
    const channel = site.channel();
    const clients = [await site.connected('ada'), await site.connected('ada'), await site.connected('bob')];
    const [first] = await Promise.all(clients.map((client) => site.subscribed(client, channel)));
    same(await first.presenceStats(), { numClients: 3, numUsers: 2 }, 'counts');
    const present = Object.values((await first.presence()).clients).map(({ user }) => user).sort();
    same(present, ['ada', 'ada', 'bob'], 'users');

    clients[2].disconnect();
    await eventually(async () => (await first.presenceStats()).numUsers === 1, 'who has left is not present');
  },

  'those who come and go are announced to the others': async (site) => {
    const channel = site.channel();
    const [ada, bob] = [await site.connected('ada'), await site.connected('bob')];
    const subscription = ada.newSubscription(channel);
    const [joins, leaves] = [new Heard(subscription, 'join'), new Heard(subscription, 'leave')];
    subscription.subscribe();
    same((await joins.next()).info.user, 'ada', 'one sees oneself come');

    const other = await site.subscribed(bob, channel);
    same((await joins.next()).info.user, 'bob', 'who came');
    other.unsubscribe();
    same((await leaves.next()).info.user, 'bob', 'who went');
    same([joins.all.length, leaves.all.length], [2, 1], 'joins and leaves');
  },
};
