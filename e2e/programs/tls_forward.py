"""Lets a client that knows neither TLS nor proxies use both: `tls_forward.py HOST:PORT CA [PROXY_HOST:PROXY_PORT]`.

Listens on 127.0.0.1 (the first line of output is the port), opens TLS to HOST:PORT for each connection, through a CONNECT
of the proxy if there is one, and passes bytes both ways. CA is the one file with authorities it trusts.
"""

import asyncio
import ssl
import sys

CHUNK = 64 * 1024


def split(authority):
    host, _, port = authority.rpartition(":")
    return host, int(port)


async def connect(target, context, proxy):
    host, port = split(target)
    if proxy is None:
        return await asyncio.open_connection(host, port, ssl=context)
    reader, writer = await asyncio.open_connection(*split(proxy))
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ConnectionError(head.decode("latin-1"))
    await writer.start_tls(context, server_hostname=host)
    return reader, writer


async def relay(reader, writer):
    try:
        while piece := await reader.read(CHUNK):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        # TLS has no half-closed connections here: the end of one direction is the end of both.
        writer.close()


async def serve(reader, writer, target, context, proxy):
    try:
        far_reader, far_writer = await connect(target, context, proxy)
    except OSError as error:
        print(error, file=sys.stderr)
        writer.close()
        return
    await asyncio.gather(relay(reader, far_writer), relay(far_reader, writer))


async def main():
    target, ca, *rest = sys.argv[1:]
    proxy = rest[0] if rest else None
    context = ssl.create_default_context(cafile=ca)
    server = await asyncio.start_server(
        lambda reader, writer: serve(reader, writer, target, context, proxy), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
