// A chat in the terminal. npm install centrifuge ws && node chat.mjs
// With BONGSU_ACCESS_TOKEN=$(bongsu token ada) the others see who you are.
import { createInterface } from 'node:readline';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const { BONGSU_URL = 'http://127.0.0.1:8000', BONGSU_ACCESS_TOKEN: token = '' } = process.env;
const address = `${BONGSU_URL.replace('http', 'ws')}/connection/websocket`;
const client = new Centrifuge(address, { token, websocket: WebSocket });
const room = client.newSubscription('chat:lobby');

room.on('subscribed', () => console.log('You are in the room.'));
room.on('publication', ({ data, info }) => console.log(`${info?.user || 'somebody'}: ${data.text}`));
for (const each of [room, client]) each.on('error', ({ error }) => console.error(error.message));
room.subscribe();
client.connect();

createInterface({ input: process.stdin })
  .on('line', (text) => room.publish({ text }).catch((error) => console.error(error.message)))
  .on('close', () => client.disconnect());
