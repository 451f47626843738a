"""A WebSocket client behind a proxy: `ws_client.py URL CA PROXY MESSAGE...`. Sends each message, and prints what came back,
a line each; at the end how it was closed.

It stands on `websockets`, with the compression that it offers by itself.
"""

import asyncio
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(url, ca, proxy, *messages):
    context = ssl.create_default_context(cafile=ca)
    async with connect(url, ssl=context, proxy=proxy) as socket:
        try:
            for message in messages:
                await socket.send(message)
            await socket.send("end")
            while (answer := await socket.recv()) != "end":
                print("got", answer, flush=True)
            await socket.close()
        except ConnectionClosed:
            # Printed below.
            pass
    print("closed", socket.close_code, socket.close_reason, flush=True)


asyncio.run(main(*sys.argv[1:]))
