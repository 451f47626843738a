"""A WebSocket echo server over TLS, with permessage-deflate: `ws_echo.py CERT KEY`. Its first line is its port.

It stands on `websockets`, a library that nothing of Tollgate's vouches for.
"""

import asyncio
import ssl
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        # What is wrong with it is the client's finding, not this server's.
        pass


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    async with serve(
        echo,
        "127.0.0.1",
        0,
        ssl=context,
        max_size=None,
        # Pings of its own would come between what a test expects.
        ping_interval=None,
        # The extension with every parameter that a client may ask for.
        compression=None,
        extensions=[ServerPerMessageDeflateFactory()],
    ) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
