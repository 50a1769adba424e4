// Socket.IO with its Redis adapter. Usage: node server.js PORT REDIS_URL
//
// The adapter is not told of 'ws' options: compression is off by default there, as everywhere in this bench.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [port, redisUrl] = process.argv.slice(2);
const publisher = createClient({ url: redisUrl });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);

const server = createServer();
const io = new Server(server, { adapter: createAdapter(publisher, subscriber), transports: ["websocket"] });

io.on("connection", (socket) => {
  socket.on("join", async (room) => {
    await socket.join(room);
    socket.emit("joined", room);
  });
  socket.on("publish", (room, data) => {
    io.to(room).emit("message", data);
  });
});

server.listen(Number(port), "127.0.0.1");
