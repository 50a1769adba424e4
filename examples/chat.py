"""A chat in the terminal. pip install centrifuge-python && python chat.py

With BONGSU_ACCESS_TOKEN=$(bongsu token bob) the others see who you are.
"""

import asyncio
import os
import sys

from centrifuge import Client, PublicationContext, SubscribedContext


async def main() -> None:
    url = os.environ.get("BONGSU_URL", "http://127.0.0.1:8000").replace("http", "ws", 1)
    client = Client(f"{url}/connection/websocket", token=os.environ.get("BONGSU_ACCESS_TOKEN", ""))
    room = client.new_subscription("chat:lobby")

    async def on_subscribed(_: SubscribedContext) -> None:
        print("You are in the room.", flush=True)

    async def on_publication(context: PublicationContext) -> None:
        user = context.pub.info.user if context.pub.info else ""
        print(f"{user or 'somebody'}: {context.pub.data['text']}", flush=True)

    room.events.on_subscribed, room.events.on_publication = on_subscribed, on_publication
    await client.connect()
    await room.subscribe()
    while line := await asyncio.to_thread(sys.stdin.readline):
        await room.publish({"text": line.rstrip("\n")})
    await client.disconnect()


asyncio.run(main())
