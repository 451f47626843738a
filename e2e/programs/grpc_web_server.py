"""An origin of gRPC-Web over TLS (HTTP/1.1): `grpc_web_server.py CERT KEY`. Its first line is its port.

`POST /e2e.Echo/Stream` answers with the request's message, waits for `POST /release`, sends the message again, and then the
frame with the trailers: as `application/grpc-web+proto`, or in base64, frame by frame, as `application/grpc-web-text`.
"""

import base64
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RELEASED = threading.Semaphore(0)


def frame(flags, payload):
    return struct.pack(">BI", flags, len(payload)) + payload


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/release":
            RELEASED.release()
            self.send_response(204)
            self.end_headers()
            return
        kind = self.headers["content-type"]
        text = kind.startswith("application/grpc-web-text")
        if text:
            body = base64.b64decode(body)
        flags, length = struct.unpack(">BI", body[:5])
        assert flags == 0 and length == len(body) - 5, body
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.piece(body, text)
        RELEASED.acquire()
        self.piece(body, text)
        self.piece(frame(0x80, b"grpc-status: 5\r\ngrpc-message: not%20found\r\n"), text)
        self.wfile.write(b"0\r\n\r\n")

    def piece(self, data, text):
        if text:
            data = base64.b64encode(data)
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_):
        pass


def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


main()
