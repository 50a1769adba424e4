// Connecting, and how a connection ends.
import { Heard, now, refusal, same } from '../site.mjs';

export const connections = {
  'a client with a token connects as its user': async (site) => {
    const client = site.client({ token: await site.sign({ sub: 'ada', info: { name: 'Ada' } }) });
    const connected = new Heard(client, 'connected');
    client.connect();
    const { client: id, transport } = await connected.next();
    same(/^[0-9a-f-]{36}$/.test(id), true, `the id ${id} is a UUID`);
    same(transport, site.transport, 'transport');

    const channel = site.channel();
    const { clients } = await (await site.subscribed(client, channel)).presence();
    same(Object.keys(clients), [id], 'present');
    same(clients[id].user, 'ada', 'user');
    same(site.decode(clients[id].connInfo), { name: 'Ada' }, 'connection info of the token');
  },

  'a wrong token ends the connection for good, with 3500': async (site) => {
    for (const token of ['nonsense', (await site.sign({ sub: 'ada' })).slice(0, -4) + 'AAAA']) {
      const client = site.client({ token });
      const disconnected = new Heard(client, 'disconnected');
      client.connect();
      same((await disconnected.next()).code, 3500, 'code');
      same(client.state, 'disconnected', 'state');
    }
  },

  'a remote call that nobody handles is answered 108': async (site) => {
    const client = site.client({ token: await site.sign({ sub: 'ada' }) });
    const answer = refusal(client.rpc('add', site.encode({ a: 1 })));  // asked before connecting: buffered
    client.connect();
    same((await answer).code, 108, 'code');
  },

  'an expired token is replaced before it connects': async (site) => {
    const tokens = [await site.sign({ sub: 'ada', exp: now() - 60 }), await site.sign({ sub: 'ada' })];
    const client = site.client({ getToken: async () => tokens.shift() });
    const errors = new Heard(client, 'error');
    client.connect();
    await client.ready(30_000);
    same(errors.all.map((context) => context.error.code), [109], 'errors');
    same(tokens.length, 0, 'tokens left');
  },

  'a user has a personal channel that the client does not ask for': async (site) => {
    const user = site.channel('');
    const client = site.client({ token: await site.sign({ sub: user }) });
    const [subscribed, joins, publications] =
      ['subscribed', 'join', 'publication'].map((event) => new Heard(client, event));
    client.connect();
    same((await subscribed.next()).channel, `#${user}`, 'channel');
    same((await joins.next()).info.user, user, 'who joined');

    await client.publish(`#${user}`, site.encode({ to: 'myself' }));
    await site.publish(`#${user}`, { to: 'you' });
    const heard = (await publications.count(2)).map(({ channel, data }) => [channel, site.decode(data)]);
    same(heard, [[`#${user}`, { to: 'myself' }], [`#${user}`, { to: 'you' }]], 'publications');
  },
};
