"""The official SDKs against recorded answers that passed a gate.

    gated_streams.py GATE STREAMS [SDK]…
    gated_streams.py tollgate=PROGRAM STREAMS [SDK]…
    gated_streams.py … node=FOLDER

With FOLDER, which has a `node_modules`, it is the libraries for Node.js that are asked: clients.mjs.

GATE is the example binary `gate` of tollgate-screen, STREAMS the folder with the recorded answers. A server imitates
each provider; what it answers is piped through the gate, or passes a proxy with `--screen` in front of the server, whose
rules judge the calls. For every SDK, streamed and not, with both calls allowed, one
of them blocked, and both:

* no exception, although signs of life are written while a call is held;
* a blocked call isn't delivered, an allowed one is, with its arguments; the text is there;
* the text is delivered while the call that follows it hasn't begun to arrive;
* the next turn, made of what the SDK returned, is one that the provider would take.
"""

import base64
import contextlib
import functools
import json
import queue
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GATE, STREAMS = sys.argv[1], Path(sys.argv[2])
TOLLGATE = GATE.removeprefix("tollgate=") if GATE.startswith("tollgate=") else None
NODE = next((argument.removeprefix("node=") for argument in sys.argv[3:] if argument.startswith("node=")), None)
TEXT = "Let me look at that \U0001f600."
BASH, READ = ("bash", {"command": "rm -rf / # A ü"}), ("read_file", {"path": "notes/a.txt"})
# What the gate blocks, and what must arrive.
CASES = {
    "allowed": ([], [BASH, READ]),
    "one": (["rm -rf"], [READ]),
    "both": (["rm -rf", "notes/a.txt"], []),
}
if TOLLGATE:
    # Nothing but the rules decides there, and they have nothing against the second call.
    del CASES["both"]
LIMIT = 30


def aws(name, payload):
    headers = b""
    for key, value in ((":event-type", name), (":content-type", "application/json"), (":message-type", "event")):
        headers += bytes([len(key)]) + key.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    head = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = head + struct.pack(">I", zlib.crc32(head)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def messages(name):
    """The messages of a recorded answer, each in its bytes."""
    if name == "invoke":
        lines = [line[6:] for line in (STREAMS / "anthropic.sse").read_text().splitlines() if line.startswith("data: ")]
        wrap = lambda line: json.dumps({"bytes": base64.b64encode(line.encode()).decode(), "p": "ab"}).encode()
        return [aws("chunk", wrap(line)) for line in lines]
    data = (STREAMS / name).read_bytes()
    if name.endswith(".events"):
        return [aws(*(part.decode() if at == 0 else part for at, part in enumerate(line.split(b"\t"))))
                for line in data.splitlines()]
    if name.endswith(".ndjson"):
        return data.splitlines(keepends=True)
    if name.endswith(".sse"):
        end = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
        return [message + end for message in data.split(end) if message]
    return [data]


class Turn:
    """What the server answers next, and what it learns."""

    def __init__(self, dialect, content_type, name, blocked):
        self.dialect, self.content_type, self.blocked = dialect, content_type, blocked
        self.messages = messages(name) if isinstance(name, str) else name
        self.text_seen = threading.Event()
        self.waited_in_vain = False
        self.request = None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.turns = queue.Queue()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        # A library's process is killed with its idle connection.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        turn = self.server.turns.get(timeout=LIMIT)
        turn.request = json.loads(body)
        self.send_response(200)
        self.send_header("Content-Type", turn.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if TOLLGATE:
            self.answer(turn, self.write)
            self.wfile.write(b"0\r\n\r\n")
            return
        gate = subprocess.Popen([GATE, turn.dialect, turn.content_type, "--keep-alive", *turn.blocked],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        relay = threading.Thread(target=self.relay, args=(gate.stdout,))
        relay.start()

        def feed(message):
            gate.stdin.write(message)
            gate.stdin.flush()

        self.answer(turn, feed)
        gate.stdin.close()
        relay.join()
        gate.wait()
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, turn, feed):
        held_back = len(turn.messages) > 1
        for message in turn.messages:
            if held_back and (b"bash" in message or b"bash" in unwrapped(message)):
                # The call comes only after the client has read the text before it.
                held_back = False
                turn.waited_in_vain = not turn.text_seen.wait(LIMIT)
            feed(message)

    def relay(self, pipe):
        while piece := pipe.read1(65536):
            self.write(piece)

    def write(self, piece):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()


def unwrapped(message):
    if b'{"bytes"' not in message:
        return b""
    payload = message[message.index(b'{"bytes"'):-4]
    return base64.b64decode(json.loads(payload)["bytes"])


class Told:
    """Collects the text of an answer and tells the server when it is complete."""

    def __init__(self, turn):
        self.turn, self.text = turn, ""

    def add(self, text):
        self.text += text or ""
        if TEXT in self.text:
            self.turn.text_seen.set()


SDKS = {}


def sdk(dialect, stream, whole, stream_type="text/event-stream"):
    def register(make):
        SDKS[make.__name__] = (dialect, stream, whole, stream_type, make)
        return make
    return register


# Each of these makes a client and returns a function `ask(streamed, told, history)` that returns (calls, next history).
# `calls` are pairs of name and arguments. The history of the first turn is None.

TOOL_SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}, "path": {"type": "string"}}}


@sdk("anthropic_messages", "anthropic.sse", "anthropic.json")
def anthropic_messages(url):
    import anthropic
    return anthropic_client(anthropic.Anthropic(base_url=url, api_key="k", max_retries=0))


@sdk("bedrock_invoke", "invoke", "anthropic.json", "application/vnd.amazon.eventstream")
def anthropic_bedrock(url):
    import anthropic
    return anthropic_client(anthropic.AnthropicBedrock(
        base_url=url, aws_access_key="k", aws_secret_key="s", aws_region="us-east-1", max_retries=0))


def anthropic_client(client):
    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        tools = [{"name": name, "input_schema": TOOL_SCHEMA} for name in ("bash", "read_file")]
        arguments = dict(model="m", max_tokens=100, messages=history, tools=tools)
        if streamed:
            with client.messages.stream(**arguments) as stream:
                for text in stream.text_stream:
                    told.add(text)
                message = stream.get_final_message()
        else:
            message = client.messages.create(**arguments)
            told.add("".join(block.text for block in message.content if block.type == "text"))
        calls = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
        assert message.stop_reason == ("tool_use" if calls else "end_turn"), message.stop_reason
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "ok"}
                   for block in message.content if block.type == "tool_use"]
        said = [block.model_dump(exclude_none=True) for block in message.content]
        return calls, [*history, {"role": "assistant", "content": said},
                       {"role": "user", "content": results or "and now?"}]
    return ask


@sdk("openai_chat", "openai_chat.sse", "openai_chat.json")
def openai_chat(url):
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        tools = [{"type": "function", "function": {"name": name, "parameters": TOOL_SCHEMA}}
                 for name in ("bash", "read_file")]
        if streamed:
            with client.chat.completions.stream(model="m", messages=history, tools=tools) as stream:
                for event in stream:
                    if event.type == "content.delta":
                        told.add(event.delta)
                choice = stream.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(model="m", messages=history, tools=tools).choices[0]
            told.add(choice.message.content)
        made = choice.message.tool_calls or []
        assert choice.finish_reason == ("tool_calls" if made else "stop"), choice.finish_reason
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in made]
        said = choice.message.model_dump(exclude_none=True)
        said.pop("parsed", None)
        results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in made]
        return calls, [*history, said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


@sdk("openai_chat", "openai_chat.sse", "openai_chat.json")
def openai_chat_raw(url):
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        made = {}
        if streamed:
            for chunk in client.chat.completions.create(model="m", messages=history, stream=True):
                for choice in chunk.choices:
                    told.add(choice.delta.content)
                    for call in choice.delta.tool_calls or []:
                        known = made.setdefault(call.index, ["", "", ""])
                        known[0] += call.id or ""
                        known[1] += call.function.name or ""
                        known[2] += call.function.arguments or ""
            assert sorted(made) == list(range(len(made))), made
        else:
            message = client.chat.completions.create(model="m", messages=history).choices[0].message
            told.add(message.content)
            for at, call in enumerate(message.tool_calls or []):
                made[at] = [call.id, call.function.name, call.function.arguments]
        calls = [(name, json.loads(arguments)) for _, name, arguments in made.values()]
        entries = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                   for id, name, arguments in made.values()]
        said = {"role": "assistant", "content": told.text, **({"tool_calls": entries} if entries else {})}
        results = [{"role": "tool", "tool_call_id": entry["id"], "content": "ok"} for entry in entries]
        return calls, [*history, said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


@sdk("openai_responses", "openai_responses.sse", "openai_responses.json")
def openai_responses(url):
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        tools = [{"type": "function", "name": name, "parameters": TOOL_SCHEMA, "strict": False}
                 for name in ("bash", "read_file")]
        if streamed:
            items = []
            with client.responses.stream(model="m", input=history, tools=tools) as stream:
                for event in stream:
                    if event.type == "response.output_text.delta":
                        told.add(event.delta)
                    if event.type == "response.output_item.done":
                        items.append(event.item)
                response = stream.get_final_response()
            assert [item.id for item in items] == [item.id for item in response.output]
        else:
            response = client.responses.create(model="m", input=history, tools=tools)
            told.add(response.output_text)
        made = [item for item in response.output if item.type == "function_call"]
        calls = [(item.name, json.loads(item.arguments)) for item in made]
        said = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
        results = [{"type": "function_call_output", "call_id": item.call_id, "output": "ok"} for item in made]
        return calls, [*history, *said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


def google(url):
    from google import genai
    from google.genai import types
    client = genai.Client(api_key="k", http_options=types.HttpOptions(base_url=url))

    def ask(streamed, told, history):
        history = history or [types.Content(role="user", parts=[types.Part(text="go")])]
        parts = []
        if streamed:
            for chunk in client.models.generate_content_stream(model="gemini-x", contents=history):
                found = (chunk.candidates[0].content.parts if chunk.candidates else None) or []
                told.add("".join(part.text or "" for part in found))
                parts += found
        else:
            parts = client.models.generate_content(model="gemini-x", contents=history).candidates[0].content.parts
            told.add("".join(part.text or "" for part in parts))
        made = [part.function_call for part in parts if part.function_call and part.function_call.name]
        results = [types.Part(function_response=types.FunctionResponse(name=call.name, response={"result": "ok"}))
                   for call in made]
        calls = [(call.name, call.args) for call in made]
        return calls, [*history, types.Content(role="model", parts=parts),
                       types.Content(role="user", parts=results or [types.Part(text="and now?")])]
    return ask


@sdk("gemini", "gemini.sse", "gemini.json")
def google_genai(url):
    return google(url)


def boto(url):
    import boto3
    return boto3.client("bedrock-runtime", endpoint_url=url, region_name="us-east-1",
                        aws_access_key_id="k", aws_secret_access_key="s")


@sdk("bedrock_converse", "converse.events", "converse.json", "application/vnd.amazon.eventstream")
def boto3_converse(url):
    client = boto(url)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": [{"text": "go"}]}]
        if streamed:
            blocks, stop = {}, None
            for event in client.converse_stream(modelId="m", messages=history)["stream"]:
                if "contentBlockStart" in event:
                    start = event["contentBlockStart"]
                    blocks[start["contentBlockIndex"]] = {"toolUse": {**start["start"]["toolUse"], "input": ""}}
                if "contentBlockDelta" in event:
                    at, delta = event["contentBlockDelta"]["contentBlockIndex"], event["contentBlockDelta"]["delta"]
                    if "text" in delta:
                        told.add(delta["text"])
                        blocks.setdefault(at, {"text": ""})["text"] += delta["text"]
                    if "toolUse" in delta:
                        blocks[at]["toolUse"]["input"] += delta["toolUse"]["input"]
                if "messageStop" in event:
                    stop = event["messageStop"]["stopReason"]
            content = [block for _, block in sorted(blocks.items())]
            for block in content:
                if "toolUse" in block:
                    block["toolUse"]["input"] = json.loads(block["toolUse"]["input"] or "{}")
        else:
            answer = client.converse(modelId="m", messages=history)
            content, stop = answer["output"]["message"]["content"], answer["stopReason"]
            told.add("".join(block.get("text", "") for block in content))
        made = [block["toolUse"] for block in content if "toolUse" in block]
        assert stop == ("tool_use" if made else "end_turn"), stop
        results = [{"toolResult": {"toolUseId": call["toolUseId"], "content": [{"text": "ok"}]}} for call in made]
        calls = [(call["name"], call["input"]) for call in made]
        return calls, [*history, {"role": "assistant", "content": content},
                       {"role": "user", "content": results or [{"text": "and now?"}]}]
    return ask


@sdk("cohere_chat", "cohere.sse", "cohere.json")
def cohere_v2(url):
    import cohere
    client = cohere.ClientV2(api_key="k", base_url=url)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        made, finish = [], None
        if streamed:
            for event in client.chat_stream(model="m", messages=history):
                if event.type == "content-delta":
                    told.add(event.delta.message.content.text)
                if event.type == "tool-call-start":
                    call = event.delta.message.tool_calls
                    assert event.index == len(made), event
                    made.append([call.id, call.function.name, call.function.arguments])
                if event.type == "tool-call-delta":
                    made[event.index][2] += event.delta.message.tool_calls.function.arguments
                if event.type == "message-end":
                    finish = event.delta.finish_reason
        else:
            answer = client.chat(model="m", messages=history)
            finish = answer.finish_reason
            told.add("".join(block.text for block in answer.message.content))
            made = [[call.id, call.function.name, call.function.arguments] for call in answer.message.tool_calls or []]
        assert finish == ("TOOL_CALL" if made else "COMPLETE"), finish
        calls = [(name, json.loads(arguments)) for _, name, arguments in made]
        entries = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                   for id, name, arguments in made]
        said = {"role": "assistant", "tool_calls": entries} if entries else {"role": "assistant", "content": told.text}
        results = [{"role": "tool", "tool_call_id": entry["id"], "content": "ok"} for entry in entries]
        return calls, [*history, said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


@sdk("openai_chat", "mistral.sse", "mistral.json")
def mistral(url):
    from mistralai.client import Mistral
    client = Mistral(api_key="k", server_url=url)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        made, finish = [], None
        if streamed:
            for event in client.chat.stream(model="m", messages=history):
                choice = event.data.choices[0]
                told.add(choice.delta.content if isinstance(choice.delta.content, str) else "")
                made += choice.delta.tool_calls or []
                finish = choice.finish_reason or finish
        else:
            choice = client.chat.complete(model="m", messages=history).choices[0]
            told.add(choice.message.content)
            made, finish = choice.message.tool_calls or [], choice.finish_reason
        assert finish == ("tool_calls" if made else "stop"), finish
        assert [call.index or 0 for call in made] in ([], [0], [0, 1], [0, 0]), made
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in made]
        entries = [{"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments}}
                   for call in made]
        said = {"role": "assistant", "content": told.text, **({"tool_calls": entries} if entries else {})}
        results = [{"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "ok"}
                   for call in made]
        return calls, [*history, said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


@sdk("ollama", "ollama.ndjson", "ollama.json", "application/x-ndjson")
def ollama_client(url):
    import ollama
    client = ollama.Client(host=url)

    def ask(streamed, told, history):
        history = history or [{"role": "user", "content": "go"}]
        answers = client.chat(model="m", messages=history, stream=streamed)
        made = []
        for answer in answers if streamed else [answers]:
            told.add(answer.message.content)
            made += answer.message.tool_calls or []
        calls = [(call.function.name, dict(call.function.arguments)) for call in made]
        said = {"role": "assistant", "content": told.text, "tool_calls": [call.model_dump() for call in made]}
        results = [{"role": "tool", "tool_name": name, "content": "ok"} for name, _ in calls]
        return calls, [*history, said, *(results or [{"role": "user", "content": "and now?"}])]
    return ask


class Node:
    """A library for Node.js, in a process of its own."""

    def __init__(self, name, url):
        script = (Path(__file__).parent / "clients.mjs").read_text()
        self.process = subprocess.Popen(
            ["node", "--no-warnings", "--input-type=module", "--eval", script, name, url],
            cwd=NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, streamed, told, history):
        print(json.dumps({"streamed": streamed, "history": history}), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            said = json.loads(line)
            if "text" not in said:
                break
            told.add(said["text"])
        else:
            raise EOFError("the library's process ended")
        assert "error" not in said, said["error"]
        return [tuple(call) for call in said["calls"]], said["history"]

    def close(self):
        self.process.kill()
        self.process.wait()


if NODE:
    SDKS = {name: (*rest, functools.partial(Node, name)) for name, *rest in (
        ("node_anthropic", "anthropic_messages", "anthropic.sse", "anthropic.json", "text/event-stream"),
        ("node_anthropic_bedrock", "bedrock_invoke", "invoke", "anthropic.json",
         "application/vnd.amazon.eventstream"),
        ("node_openai_chat", "openai_chat", "openai_chat.sse", "openai_chat.json", "text/event-stream"),
        ("node_openai_responses", "openai_responses", "openai_responses.sse", "openai_responses.json",
         "text/event-stream"),
        ("node_google_genai", "gemini", "gemini.sse", "gemini.json", "text/event-stream"),
        ("node_bedrock_converse", "bedrock_converse", "converse.events", "converse.json",
         "application/vnd.amazon.eventstream"),
        ("node_cohere", "cohere_chat", "cohere.sse", "cohere.json", "text/event-stream"),
        ("node_mistral", "openai_chat", "mistral.sse", "mistral.json", "text/event-stream"),
        ("node_ollama", "ollama", "ollama.ndjson", "ollama.json", "application/x-ndjson"),
    )}


CALL_KEYS = {"toolUseId", "tool_use_id", "tool_call_id", "call_id"}


def check_history(request):
    """What a provider checks: every call has its result, every result its call."""
    made, answered, names, responded = set(), set(), [], []

    def walk(value):
        if isinstance(value, list):
            for item in value:
                walk(item)
        if not isinstance(value, dict):
            return
        kind = value.get("type")
        if kind == "tool_use" or "function" in value and "id" in value:
            made.add(value["id"])
        elif kind == "function_call":
            made.add(value["call_id"])
        elif "functionCall" in value:
            names.append(value["functionCall"]["name"])
        elif "functionResponse" in value:
            responded.append(value["functionResponse"]["name"])
        elif "toolUse" in value:
            made.add(value["toolUse"]["toolUseId"])
        else:
            answered.update(str(value[key]) for key in CALL_KEYS & value.keys())
        for item in value.values():
            if not (kind == "function_call"):
                walk(item)

    def strip(value):
        # Bedrock's own call also has a `toolUseId`; it is counted where it stands in `toolUse`.
        if isinstance(value, list):
            return [strip(item) for item in value]
        if isinstance(value, dict):
            return {key: strip(item) if key != "toolUse" else {"toolUseId": item["toolUseId"]}
                    for key, item in value.items() if key not in ("tools", "toolConfig")}
        return value

    history = strip(request)
    walk(history)
    assert made == answered and names == responded, (made, answered, names, responded)
    return json.dumps(history)


def run(server, url, make, dialect, stream, whole, stream_type, streamed, case):
    blocked, expected = CASES[case]
    name, content_type = (stream, stream_type) if streamed else (whole, "application/json")
    with contextlib.ExitStack() as stack:
        ask = make(url)
        if NODE:
            stack.callback(ask.close)
        converse(server, ask, dialect, content_type, name, streamed, blocked, expected, case)


def converse(server, ask, dialect, content_type, name, streamed, blocked, expected, case):
    turn = Turn(dialect, content_type, name, blocked)
    server.turns.put(turn)
    told = Told(turn)
    calls, history = ask(streamed, told, None)
    assert calls == expected, (calls, expected)
    assert told.text.startswith(TEXT), told.text
    assert told.text.count("was blocked by policy") == 2 - len(expected), told.text
    assert not turn.waited_in_vain, "the text was held back"
    # The next turn: the same answer, all of it blocked.
    turn = Turn(dialect, content_type, name, ["rm -rf", "notes/a.txt"])
    turn.text_seen.set()
    server.turns.put(turn)
    again, _ = ask(streamed, Told(turn), history)
    assert again == (expected if TOLLGATE else []), again
    sent = check_history(turn.request)
    if case != "allowed":
        assert "rm -rf" not in sent.replace('\\"rm -rf\\"', ""), sent


class Proxy:
    """Tollgate in front of the server."""

    def __init__(self, server, screen):
        self.process = subprocess.Popen(
            [TOLLGATE, "--mode", f"reverse:{server.url}@127.0.0.1:0", "--screen", screen,
             "--data-dir", tempfile.mkdtemp(), "--flow-detail", "0"],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if " at 127.0.0.1:" in line:
                self.url = "http://" + line.split(" at ")[1].strip()
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()


def main():
    wanted = [name for name in sys.argv[3:] if "=" not in name] or list(SDKS)
    server, failed = Server(), 0
    urls = dict.fromkeys(CASES, server.url)
    proxies = []
    if TOLLGATE:
        proxies = [Proxy(server, "monitor"), Proxy(server, "enforce")]
        urls = {"allowed": proxies[0].url, "one": proxies[1].url}
    for name in wanted:
        dialect, stream, whole, stream_type, make = SDKS[name]
        for streamed in (True, False):
            for case in CASES:
                label = f"{name} {'streamed' if streamed else 'whole'} {case}"
                try:
                    run(server, urls[case], make, dialect, stream, whole, stream_type, streamed, case)
                    print(f"ok {label}")
                except Exception:
                    failed += 1
                    print(f"FAILED {label}")
                    traceback.print_exc(file=sys.stdout)
                    while not server.turns.empty():
                        server.turns.get()
    for proxy in proxies:
        proxy.process.kill()
        proxy.process.wait()
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
