"""Calls every method of `grpc_server.py`: `grpc_client.py HOST:PORT`. Takes proxy and authority from its environment.

Prints a line for each call that came out as it must, and ends with an error at the first that didn't.
"""

import os
import queue
import sys

import grpc

LIMIT = 60
LARGE = bytes(range(256)) * 4096  # 1 MiB


def main():
    with open(os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"], "rb") as roots:
        credentials = grpc.ssl_channel_credentials(roots.read())
    options = [("grpc.enable_http_proxy", 1)]
    with grpc.secure_channel(sys.argv[1], credentials, options=options) as channel:
        for call in (unary, large, compressed, collect, spread, both, refuse, break_off, deadline, cancel):
            call(channel)
            print(call.__name__, flush=True)


def unary(channel):
    answer, call = channel.unary_unary("/e2e.Echo/Unary").with_call(
        b"hello", metadata=(("x-request", "first"),), timeout=LIMIT
    )
    assert answer == b"hello", answer
    assert dict(call.initial_metadata()).get("x-response") == "first"
    trailers = dict(call.trailing_metadata())
    assert trailers.get("x-trailer") == "last", trailers
    assert trailers.get("x-bytes-bin") == b"\x00\xff\x01", trailers
    assert call.code() == grpc.StatusCode.OK


def large(channel):
    assert channel.unary_unary("/e2e.Echo/Unary")(LARGE, timeout=LIMIT) == LARGE


def compressed(channel):
    answer = channel.unary_unary("/e2e.Echo/Unary")(
        LARGE, compression=grpc.Compression.Gzip, timeout=LIMIT
    )
    assert answer == LARGE


def collect(channel):
    pieces = [b"a", b"", b"bc", LARGE]
    answer = channel.stream_unary("/e2e.Echo/Collect")(iter(pieces), timeout=LIMIT)
    assert answer == b"".join(pieces)


def spread(channel):
    answers = list(channel.unary_stream("/e2e.Echo/Spread")(b"pieces", timeout=LIMIT))
    assert answers == [b"p", b"i", b"e", b"c", b"e", b"s"], answers


def both(channel):
    # The next message leaves only when the last has come back: a proxy that waits for the end would hang here.
    to_send = queue.Queue()
    answers = channel.stream_stream("/e2e.Echo/Both")(iter(to_send.get, None), timeout=LIMIT)
    for number in range(100):
        message = b"message %d" % number
        to_send.put(message)
        assert next(answers) == message
    to_send.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK


def refuse(channel):
    try:
        channel.unary_unary("/e2e.Echo/Refuse")(b"", timeout=LIMIT)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
        assert error.details() == "not now: 100% of \u00fcbermut", error
        assert dict(error.trailing_metadata()).get("x-why") == "because", error
    else:
        raise AssertionError("it was not refused")


def break_off(channel):
    answers = channel.unary_stream("/e2e.Echo/Break")(b"one", timeout=LIMIT)
    assert next(answers) == b"one"
    try:
        next(answers)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DATA_LOSS, error
        assert error.details() == "the rest is lost", error
    else:
        raise AssertionError("it did not break off")


def deadline(channel):
    answers = channel.unary_stream("/e2e.Echo/Wait")(b"", timeout=2)
    left = int(next(answers))
    # The origin knows the deadline, less the way; gRPC rounds it up to two or three digits.
    assert 0 < left < 2100, left
    try:
        next(answers)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    else:
        raise AssertionError("there was no deadline")


def cancel(channel):
    answers = channel.unary_stream("/e2e.Echo/Wait")(b"", timeout=LIMIT)
    next(answers)
    answers.cancel()
    assert answers.code() == grpc.StatusCode.CANCELLED


main()
