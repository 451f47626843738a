"""The official SDKs at the end of a budget.

    budgets.py PROGRAM [SDK]…

A server imitates each provider and tells how many tokens it used; PROGRAM, Tollgate, stands in front of it with a budget
that one answer uses up. For every SDK, made as its documentation says, retries included:

* the first request is answered;
* the second raises what the SDK raises at a limit of its provider, with the budget in its text;
* it was made once: no library asks again at once (Cohere's can't be told not to, and asks three times).
"""

import collections
import json
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROGRAM = sys.argv[1]
BUDGET = "tokens=100,per=1h,each=model"
LIMIT = 60

CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [
    {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}}
ANSWERS = {
    "/chat/completions": CHAT,
    "/messages": {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
                  "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 90, "output_tokens": 10}},
    "/responses": {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [],
                   "usage": {"input_tokens": 90, "output_tokens": 10, "total_tokens": 100}},
    ":generateContent": {"candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]},
                                         "finishReason": "STOP"}],
                         "usageMetadata": {"promptTokenCount": 90, "candidatesTokenCount": 10}},
    "/converse": {"output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
                  "stopReason": "end_turn", "usage": {"inputTokens": 90, "outputTokens": 10, "totalTokens": 100},
                  "metrics": {"latencyMs": 1}},
    "/v2/chat": {"id": "c", "finish_reason": "COMPLETE",
                 "message": {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
                 "usage": {"billed_units": {"input_tokens": 90, "output_tokens": 10}}},
    "/api/chat": {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop",
                  "message": {"role": "assistant", "content": "hi"}, "prompt_eval_count": 90, "eval_count": 10},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        answer = next(answer for end, answer in ANSWERS.items() if path.endswith(end))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# Each makes a client and returns a request, the error that it must raise, and how often it may be made.
SDKS = {}


def sdk(make):
    SDKS[make.__name__] = make
    return make


@sdk
def anthropic(url):
    import anthropic
    client = anthropic.Anthropic(base_url=url, api_key="k")
    return lambda: client.messages.create(
        model="anthropic", max_tokens=9, messages=[{"role": "user", "content": "hi"}]), anthropic.RateLimitError, 1


@sdk
def openai_chat(url):
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="k")
    return lambda: client.chat.completions.create(
        model="openai_chat", messages=[{"role": "user", "content": "hi"}]), openai.RateLimitError, 1


@sdk
def openai_responses(url):
    import openai
    client = openai.OpenAI(base_url=url + "/v1", api_key="k")
    return lambda: client.responses.create(model="openai_responses", input="hi"), openai.RateLimitError, 1


@sdk
def gemini(url):
    from google import genai
    client = genai.Client(api_key="k", http_options={"base_url": url})
    return lambda: client.models.generate_content(model="gemini", contents="hi"), genai.errors.ClientError, 1


@sdk
def bedrock(url):
    import boto3
    client = boto3.client("bedrock-runtime", endpoint_url=url, region_name="us-east-1", aws_access_key_id="k",
                          aws_secret_access_key="s")
    return lambda: client.converse(modelId="bedrock", messages=[{"role": "user", "content": [{"text": "hi"}]}]), \
        client.exceptions.ServiceQuotaExceededException, 1


@sdk
def ollama(url):
    import ollama
    client = ollama.Client(host=url)
    return lambda: client.chat(model="ollama", messages=[{"role": "user", "content": "hi"}]), ollama.ResponseError, 1


@sdk
def cohere(url):
    import cohere
    client = cohere.ClientV2(api_key="k", base_url=url)
    return lambda: client.chat(model="cohere", messages=[{"role": "user", "content": "hi"}]), \
        cohere.errors.TooManyRequestsError, 3


@sdk
def mistral(url):
    try:
        from mistralai.client import Mistral, errors
        error = errors.SDKError
    except ImportError:
        from mistralai import Mistral, models
        error = models.SDKError
    client = Mistral(api_key="k", server_url=url)
    return lambda: client.chat.complete(model="mistral", messages=[{"role": "user", "content": "hi"}]), error, 1


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = subprocess.Popen(
        [PROGRAM, "--mode", f"reverse:http://127.0.0.1:{server.server_address[1]}@127.0.0.1:0", "--screen", "enforce",
         "--budget", BUDGET, "--data-dir", tempfile.mkdtemp(), "--store", "off", "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = None
    for line in proxy.stderr:
        if " at 127.0.0.1:" in line:
            url = "http://" + line.split(" at ")[1].strip()
            break
    said = []
    reader = threading.Thread(target=lambda: said.extend(proxy.stderr), daemon=True)
    reader.start()
    flows = []
    shown = threading.Thread(target=lambda: flows.extend(map(json.loads, proxy.stdout)), daemon=True)
    shown.start()
    failed, may = 0, {}
    for name in sys.argv[2:] or list(SDKS):
        try:
            ask, error, may[name] = SDKS[name](url)
            ask()
            try:
                ask()
            except error as raised:
                assert BUDGET in str(raised), str(raised)
            else:
                raise AssertionError("nothing was raised")
            print(f"ok {name}")
        except Exception:
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
    proxy.send_signal(signal.SIGTERM)
    proxy.wait(LIMIT)
    reader.join(LIMIT)
    shown.join(LIMIT)
    counted = collections.Counter(flow["usage"]["model"] for flow in flows if "usage" in flow)
    refused = [flow for flow in flows if flow["status"] != 200]
    for name, times in may.items():
        if counted[name] != 1:
            failed += 1
            print(f"FAILED {name}: {counted[name]} answers were counted")
    if len(refused) > sum(may.values()):
        failed += 1
        print(f"FAILED: {len(refused)} requests were refused: {[flow['url'] for flow in refused]}")
    totals = next((line for line in said if line.startswith("Models used: ")), "")
    if f"{len(may)} answers" not in totals or f"; {len(refused)} refused" not in totals:
        failed += 1
        print(f"FAILED: totals are {totals!r}")
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


main()
