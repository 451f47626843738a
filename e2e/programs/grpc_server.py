"""A gRPC server over TLS: `grpc_server.py CERT KEY`. Its first line is its port. Messages are plain bytes.

| method | what it does |
|---|---|
| `/e2e.Echo/Unary` | answers with the message, repeats the metadata `x-request` in `x-response`, and ends with the trailer `x-trailer` |
| `/e2e.Echo/Collect` | takes a stream, answers with its messages joined |
| `/e2e.Echo/Spread` | answers a message with each of its bytes as a message |
| `/e2e.Echo/Both` | answers each message before it reads the next |
| `/e2e.Echo/Refuse` | fails before it has sent anything: the answer is trailers alone |
| `/e2e.Echo/Break` | sends one message and then fails |
| `/e2e.Echo/Wait` | waits until the call is over; what is left of the deadline comes back first, in milliseconds |
"""

import sys
import threading
from concurrent import futures

import grpc


def unary(message, context):
    metadata = dict(context.invocation_metadata())
    if "x-request" in metadata:
        context.send_initial_metadata((("x-response", metadata["x-request"]),))
    context.set_trailing_metadata((("x-trailer", "last"), ("x-bytes-bin", b"\x00\xff\x01")))
    return message


def collect(messages, context):
    return b"".join(messages)


def spread(message, context):
    for byte in message:
        yield bytes([byte])


def both(messages, context):
    for message in messages:
        yield message


def refuse(message, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100% of \u00fcbermut")


def break_off(message, context):
    yield message
    context.abort(grpc.StatusCode.DATA_LOSS, "the rest is lost")


def wait(message, context):
    over = threading.Event()
    if not context.add_callback(over.set):
        return
    yield str(int(context.time_remaining() * 1000)).encode()
    over.wait()


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Spread": grpc.unary_stream_rpc_method_handler(spread),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Break": grpc.unary_stream_rpc_method_handler(break_off),
    "Wait": grpc.unary_stream_rpc_method_handler(wait),
}


def main():
    with open(sys.argv[1], "rb") as cert, open(sys.argv[2], "rb") as key:
        credentials = grpc.ssl_server_credentials([(key.read(), cert.read())])
    server = grpc.server(
        futures.ThreadPoolExecutor(8),
        compression=grpc.Compression.Gzip,
        options=[("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e2e.Echo", METHODS),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


main()
