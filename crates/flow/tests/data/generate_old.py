"""Writes flows with an old mitmproxy, or upgrades such a file with a new one: Tollgate has to read the first as the second.

    old/bin/python crates/flow/tests/data/generate_old.py write 7.0.4 > old-14.mitm
    new/bin/python crates/flow/tests/data/generate_old.py upgrade < old-14.mitm > old-14.upgraded.mitm

Versions of the format, and of a mitmproxy that writes it: 7 (5.0.1), 10 (6.0.2), 14 (7.0.4), 17 (8.1.1), 18 (9.0.1),
20 (10.2.4).
"""

import io
import sys


def write(out):
    from mitmproxy.io import FlowWriter
    from mitmproxy.test import tflow

    writer = FlowWriter(out)
    http = tflow.tflow(resp=True)
    http.metadata["note"] = "kept"
    flows = [http, tflow.tflow(err=True)]
    websocket = tflow.twebsocketflow()
    handshake = getattr(websocket, "handshake_flow", None)
    if handshake is not None:
        # Up to format 11 the messages are a flow of their own.
        flows.append(handshake)
    flows.append(websocket)
    flows[0].marked = True if handshake is not None else ":default:"
    flows[0].server_conn.sni = None
    if hasattr(tflow, "tdnsflow"):
        flows.append(tflow.tdnsflow(resp=True))
    # Last, because mitmproxy fails at those of format 11 and older.
    flows.append(tflow.ttcpflow())
    for number, f in enumerate(flows):
        f.id = "0000000%d-0000-4000-8000-000000000000" % number
    if handshake is not None:
        websocket.metadata["websocket_handshake"] = handshake.id
        handshake.metadata["websocket"] = True
    for f in flows:
        writer.add(f)


def upgrade(data, out):
    from mitmproxy.io import FlowReader, FlowWriter

    writer = FlowWriter(out)
    try:
        for f in FlowReader(io.BytesIO(data)).stream():
            writer.add(f)
    except AssertionError:
        pass


if sys.argv[1] == "write":
    write(sys.stdout.buffer)
else:
    upgrade(sys.stdin.buffer.read(), sys.stdout.buffer)
