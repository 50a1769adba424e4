// Tokens that expire while they are in use. Each takes the seconds that a token lives, so these are played at once.
import { Asked, Heard, now, same } from '../site.mjs';

/** What a backend answers that doesn't. */
const silence = () => new Promise(() => {});

export const lifetimes = {
  'a connection outlives its token as long as the client renews it': async (site) => {
    const asked = new Asked();
    const client = site.client({
      getToken: () => asked.again((time) => (time < 3 ? site.sign({ sub: 'ada', exp: now() + 2 }) : silence())),
    });
    const connecting = new Heard(client, 'connecting');
    client.connect();
    await client.ready(30_000);
    await asked.times(3);  // the SDK asks again only when the server has accepted the one before
    same(connecting.all.length, 1, 'attempts to connect');
    same(client.state, 'connected', 'state');
  },

  'a connection whose token nobody renews is closed with 3005 and returns with a new one': async (site) => {
    const asked = new Asked();
    const client = site.client({
      getToken: () => asked.again(async (time) => {
        if (time === 2) await silence();
        return site.sign(time === 1 ? { sub: 'ada', exp: now() + 2 } : { sub: 'ada' });
      }),
    });
    const connecting = new Heard(client, 'connecting');
    client.connect();
    await connecting.next();
    const { code } = await connecting.next();
    // The end of an event stream overtakes its last event inside the SDK (before 5.8), which then knows no code.
    if (site.transport !== 'sse') same(code, 3005, 'code');
    await client.ready(30_000);
    same(asked.count, 3, 'tokens asked for');
  },

  'a subscription outlives its token as long as the client renews it': async (site) => {
    const asked = new Asked();
    const channel = site.channel('');
    const client = await site.connected('ada');
    const subscription = client.newSubscription(channel, {
      getToken: () =>
        asked.again((time) => (time < 3 ? site.sign({ sub: 'ada', channel, exp: now() + 2 }) : silence())),
    });
    const subscribing = new Heard(subscription, 'subscribing');
    subscription.subscribe();
    await asked.times(3);  // the SDK asks again only when the server has accepted the one before
    same(subscribing.all.length, 1, 'attempts to subscribe');
    same(subscription.state, 'subscribed', 'state');
  },
};
