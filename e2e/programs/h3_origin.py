"""An origin that speaks HTTP/3 alone: `h3_origin.py CERT KEY`. Its first line is its port (UDP).

Answers every request with its version, `HTTP/3`, and what else came as a body.
"""

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated


class Origin(QuicConnectionProtocol):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.http = None
        self.bodies = {}

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        if self.http is None:
            return
        for part in self.http.handle_event(event):
            if not isinstance(part, (HeadersReceived, DataReceived)):
                continue
            body = self.bodies.setdefault(part.stream_id, bytearray(b"HTTP/3"))
            if isinstance(part, DataReceived):
                body += part.data
            if part.stream_ended:
                self.answer(part.stream_id, bytes(self.bodies.pop(part.stream_id)))

    def answer(self, stream, body):
        length = str(len(body)).encode()
        self.http.send_headers(stream, [(b":status", b"200"), (b"content-length", length)])
        self.http.send_data(stream, body, end_stream=True)
        self.transmit()


async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Origin)
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
