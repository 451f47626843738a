"""Makes the files in this folder by running mitmproxy: what Tollgate has to agree with.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install mitmproxy==12.3.1
    /tmp/venv/bin/python crates/flow/tests/data/generate.py

flows.mitm       one flow of each kind, and some with everything that a flow can have
filters.json     filter expressions: what mitmproxy takes them for, and which of the flows they match
patterns.json    regular expressions of Python with texts, and whether they match
flows.har        the same flows as HAR
exports.json     the same flows in every export format; null where mitmproxy refuses
browser.har      what browsers and other programs write; this one is written by hand
browser.mitm     what mitmproxy reads from it
"""

import io
import json
import random
import re
from pathlib import Path

from mitmproxy import certs, connection, dns, exceptions, flowfilter, http
from mitmproxy.addons import export, savehar
from mitmproxy.flow import Error
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketMessage

HERE = Path(__file__).parent
random.seed(7)


def an_id() -> str:
    return "%08x-%04x-4%03x-a%03x-%012x" % tuple(random.getrandbits(n) for n in (32, 16, 12, 12, 48))


def flows():
    made = [
        tflow.tflow(resp=True),
        tflow.tflow(err=True),
        tflow.twebsocketflow(),
        tflow.ttcpflow(),
        tflow.ttcpflow(err=True),
        tflow.tudpflow(),
        tflow.tudpflow(err=True),
        tflow.tdnsflow(resp=True),
        tflow.tdnsflow(),
        tflow.tdnsflow(err=True),
    ]

    f = tflow.tflow(resp=True)
    f.request = http.Request.make(
        "POST",
        "https://www.example.com:8443/api/v1/login?user=ann&token=%20x",
        gzip_body(b'{"user": "ann", "password": "hunter2"}'),
        {"Host": "www.example.com:8443", "Content-Type": "application/json", "Content-Encoding": "gzip", "X-Id": "1"},
    )
    f.request.raw_content = gzip_body(b'{"user": "ann", "password": "hunter2"}')
    f.request.timestamp_start, f.request.timestamp_end = 1700000000.125, 1700000000.25
    f.response = http.Response.make(404, b"<p>not here\n</p>", {"Content-Type": "text/html", "Server": "x"})
    f.response.timestamp_start, f.response.timestamp_end = 1700000000.5, 1700000001.0
    f.timestamp_created = 1700000000.125
    f.marked, f.comment = ":red_circle:", "look at\nthis"
    f.metadata["one"] = {"a": [1, 2.5, None, True, b"\xff", "ü"], "b": 2**70}
    f.metadata["two"] = "second"
    f.is_replay = "request"
    f.client_conn.peername = ("::1", 4711, 0, 3)
    f.client_conn.alpn_offers = [b"h2", b"http/1.1"]
    f.client_conn.cipher_list = ["A", "B"]
    f.server_conn.via = ("http", ("proxy.example", 3128))
    f.server_conn.certificate_list = [certs.Cert.from_pem((HERE / "cert.pem").read_bytes())]
    made.append(f)

    f = tflow.tflow(resp=True)
    f.request = http.Request.make("GET", "https://cdn.example.net/style.css", b"", {"accept": "text/css"})
    f.request.http_version, f.request.authority = "HTTP/2.0", "cdn.example.net"
    f.request.timestamp_start, f.request.timestamp_end = 1700000002.0, 1700000002.0
    f.response = http.Response.make(200, b"body { color: red }", {"content-type": "text/css"})
    f.response.http_version, f.response.reason = "HTTP/2.0", ""
    f.response.trailers = http.Headers(((b"x-sum", b"1"),))
    f.response.timestamp_start, f.response.timestamp_end = 1700000002.5, 1700000003.5
    f.is_replay = "response"
    made.append(f)

    f = tflow.tflow()
    f.request = http.Request.make("CONNECT", "http://a.example:443/", b"")
    f.request.scheme, f.request.path, f.request.authority = "", "", "a.example:443"
    f.request.timestamp_start, f.request.timestamp_end = 1700000004.0, None
    f.error = Error("connection refused", 1700000005.0)
    f.server_conn = connection.Server(address=("a.example", 443))
    f.intercepted = True
    made.append(f)

    f = tflow.tflow(resp=True)
    f.backup()
    f.request.path = "/changed"
    f.request.content = None
    f.response.content = None
    f.request.headers = http.Headers(((b"Host", b"xn--mnchen-3ya.example"), (b"X", b"a"), (b"x", b"b"), (b"\xfcber", b"\xe4")))
    made.append(f)

    f = tflow.tflow(resp=True)
    f.request = http.Request.make("OPTIONS", "http://example.org/", b"")
    f.request.path = "*"
    f.request.timestamp_start, f.request.timestamp_end = 1700000006.0, 1700000006.5
    f.response.headers["content-type"] = "image/png"
    f.response.status_code = 500
    f.response.raw_content = bytes(range(256))
    made.append(f)

    f = tflow.twebsocketflow(err=True)
    f.websocket.messages.append(WebSocketMessage(2, False, b"\x00\x01", 946681206.5, True, True))
    f.websocket.close_code, f.websocket.close_reason, f.websocket.closed_by_client = None, None, None
    f.websocket.timestamp_end = None
    made.append(f)

    f = tflow.tdnsflow(resp=True)
    f.response.answers += [
        dns.ResourceRecord.CNAME("a.example", "b.example"),
        dns.ResourceRecord.TXT("a.example", "it's text"),
        dns.ResourceRecord("a.example", dns.types.MX, dns.classes.IN, 60, b"\x00\x0amail"),
        dns.ResourceRecord("a.example", dns.types.HTTPS, dns.classes.IN, 60, b"\x00\x01\x00\x00\x01\x00\x03\x02h2"),
        dns.ResourceRecord("a.example", dns.types.A, dns.classes.IN, 60, b"\x01"),
    ]
    f.request.timestamp, f.response.timestamp = 1700000007.0, None
    f.comment = "dns"
    made.append(f)

    for f in made:
        f.id = an_id()
        if f.timestamp_created > 1.75e9:  # now
            f.timestamp_created = 946681200
        f.client_conn.id, f.server_conn.id = an_id(), an_id()
        if f._backup:
            f._backup["id"] = f.id
            f._backup["client_conn"]["id"], f._backup["server_conn"]["id"] = f.client_conn.id, f.server_conn.id
    return made


def gzip_body(data: bytes) -> bytes:
    from mitmproxy.net import encoding

    return encoding.encode(data, "gzip")


EXPRESSIONS = """
~a | ~all | ~e | ~http | ~tcp | ~udp | ~dns | ~websocket | ~marked | ~q | ~s | ~replay | ~replayq | ~replays
""".split("|") + [
    "~b content", "~b message", "~b hello", "~b 'it.s me'", "~b hunter", "~b '[0-9]+'", "~b ^$", "~b .", "~b '\\\\x00'",
    "~b 'not here.</p>'", "~b 8.8.4.4", "~b b.example", "~b 0x000a", "~b invalid", "~b h2", "~bq content", "~bq hello",
    "~bq dns.google", "~bs message", "~bs me", "~bs 8.8", "~c 200", "~c 404", "~c 0200", "~c 99999999999999999999999",
    "~comment this", "~comment ^this$", "~comment ''", "~comment .", "~d address", "~d example", "~d ^www", "~d münchen",
    "~d xn--", "~dst :22", "~dst :443$", "~dst nope", "~h header", "~h 'header: qvalue'", "~h '^content-length: 7'",
    "~h '^x: b'", "~h 'X-Id: 1.$'", "~hq header", "~hq host", "~hs header-response", "~hs ^server", "~m get", "~m ^POST$",
    "~m .", "~marker red", "~marker ''", "~marker .", "~meta two", "~meta ^two:", "~meta second$", "~meta None",
    "~meta 'True, b'", "~meta 1180591620717411303424", "~src 127.0.0.1", "~src ::1:4711", "~t json", "~t css", "~t image/",
    "~tq json", "~ts text", "~u address", "~u path", "~u dns.google", "~u 'https://www.example.com:8443/api'", "~u ^http:",
    "~u a.example:443$", "~u org$", "~u user=ann", "~u xn--", "address", "'path$'", '"/api/v1"', "foo|path", "foo&bar", "''",
    "! ~http", "!~http", "!!~http", "! ! ~http", "!address", "!(~u nope | ~c 404)", "!( ~http )", "~q & ~http", "~q | ~tcp",
    "~http ~q", "~q ~s | ~a", "~u a | ~u b & ~c 200", "~u a & ~u b | ~c 200", "( ~q | ~s )", "( ( ~q ) )", "(address)",
    "~u a ~u b ~u c", "~u a & ~u b & ~u c", "~u a | ~u b | ~u c", "a (b | c) d", "~b \"x|hello\"", "~m \"^(GET|POST)$\"",
    "~m ^(GET|POST)$", "~u foo(bar)", "~u path(address)", "~c 2.*", "~c 200x", "~c 200 x", "a &", "a |", "a & & b", "a && b",
    "a & | b", "& a", "| a", "!", "! a &", "a !", "a and b", "~u \"a\\d\"", "~u \"a\\\\d\"", "~u 'a\\'b'", "~u \"a\\tb\"",
    "~u a\"b\"", "a\"b\"c", "'a'b'c'", "~h \"^X: a\\r\\n\"", "~b [[:alpha:]]", "~u [a&&b]", "~u (?i)x", "~u a{,2}b",
    "~u \\\\Z", "~u path\\Z", "~u path$", "~q\n~http", "  ~q  ", "~qü", "ü", "~u ü", "~b ü", "~h \\xfcber", "~u a#b",
    # refused
    "", " ", "~b", "~b ~q", "(~q)", "~q&~s", "~c200", "~c abc", "~c", "~h [", "(~u a ~u b)", "~u a~b", "~b\"x\"", "~foo",
    "()", "~Q", "(", ")", "(a", "a)", "~u (", "~u )", "'a", "\"a", "~u 'a", "(a &)", "(!)", "~", "~ q", "~u *", "~u a**",
    "~u (?P<a", "~u \\q", "~u a{2}{3}", "a'", "~q~s", "( ~q & )", "! ~foo", "a & ~foo", "a | )",
]  # fmt: skip

WORDS = ["~q", "~s", "~http", "~tcp", "~c 200", "~u a", "~m get", "~b hello", "~h x", "address", "'path'", "~a", "~e", "~d e"]


def random_expressions(n):
    def node(depth):
        kind = random.random()
        if depth == 0 or kind < 0.35:
            return random.choice(WORDS)
        if kind < 0.5:
            return "!" + random.choice(["", " "]) + node(depth - 1)
        if kind < 0.65:
            return "( " + node(depth - 1) + " )"
        between = random.choice([" & ", " | ", " & ", " | ", " "])
        return node(depth - 1) + between + node(depth - 1)

    return [node(4) for _ in range(n)]


def filters(made):
    table = []
    for expression in [e.strip() if "\n" not in e[:-1] else e for e in EXPRESSIONS] + random_expressions(150):
        row = {"expression": expression}
        try:
            compiled = flowfilter.parse(expression)
        except ValueError:
            row["accepted"] = False
        else:
            row["accepted"] = True
            row["words"] = str(compiled)
            row["matches"] = "".join("1" if compiled(f) else "0" for f in made)
        if row not in table:
            table.append(row)
    return table


ATOMS = ["a", "b", "c", ".", r"\d", r"\w", r"\s", r"\W", "[ab]", "[^a]", "[a-c]", "[]a]", "[^]a]", "[a-]", r"[\w-]", "[[b]",
         "[a&&b]", "^", "$", r"\b", r"\B", r"\A", r"\Z", r"\n", r"\x61", r"\.", r"\-", r"\_", "ü", "[ü]", "{", "}", "]", "(a|b)",
         "(?:ab|c)", "(?P<n>a)", "(?i:A)", "(?-i:a)", "(?s:.)", "(?#x)", r"\141", r"\0", "#", " ", "&", "~", "-"]  # fmt: skip
QUANTIFIERS = [""] * 8 + ["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{2,}", "{", "{a}", "{1"]
TEXTS = ["", "a", "b", "ab", "aab", "abc", "A", "B\n", "a\nb", "\n", "a b", "1", "a1_", "ü", "Ü", "aüb", "a-b", "[b]", "a{", "}", "&",
         "ac.", "a\n\n", "\0", "#", "x" * 40, "é", "_", "]"]  # fmt: skip


def patterns(n):
    """Each with the flags of one of the operators."""
    table = []
    while len(table) < n:
        pattern = "".join(random.choice(ATOMS) + random.choice(QUANTIFIERS) for _ in range(random.randint(1, 4)))
        operator, flags, is_bytes = random.choice(
            [("~u", 0, False), ("~comment", re.M, False), ("~m", 0, True), ("~b", re.S, True)]
        )
        row = {"operator": operator, "pattern": pattern}
        try:
            compiled = re.compile(pattern.encode() if is_bytes else pattern, flags | re.I)
        except re.error:
            continue
        found = (compiled.search(t.encode() if is_bytes else t) for t in TEXTS)
        row["matches"] = "".join("1" if match else "0" for match in found)
        table.append(row)
    return {"texts": TEXTS, "patterns": table}


def exports(made):
    table = []
    with taddons.context(export.Export()):
        for f in made:
            row = {}
            for name, make in export.formats.items():
                try:
                    made_of = make(f)
                except (exceptions.CommandError, ValueError, AssertionError):
                    row[name] = None
                else:
                    if isinstance(made_of, str):
                        made_of = made_of.encode("utf-8", "surrogateescape")
                    row[name] = made_of.decode("latin-1")
            table.append(row)
    return table


def main():
    made = flows()
    out = io.BytesIO()
    for f in made:
        FlowWriter(out).add(f)
    (HERE / "flows.mitm").write_bytes(out.getvalue())
    # The filters are asked about what was read back, as Tollgate does.
    read = list(FlowReader(io.BytesIO(out.getvalue())).stream())
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in filters(read))
    (HERE / "filters.json").write_text(f"[\n{rows}\n]\n")
    har = savehar.SaveHar().make_har(list(FlowReader(io.BytesIO(out.getvalue())).stream()))
    (HERE / "flows.har").write_text(json.dumps(har, indent=4))
    (HERE / "exports.json").write_text(json.dumps(exports(read), indent=1) + "\n")
    imported = io.BytesIO()
    for number, f in enumerate(FlowReader(io.BytesIO((HERE / "browser.har").read_bytes())).stream()):
        f.id, f.client_conn.id, f.server_conn.id = str(number), "", ""
        f.timestamp_created = f.request.timestamp_start
        FlowWriter(imported).add(f)
    (HERE / "browser.mitm").write_bytes(imported.getvalue())
    table = patterns(800)
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in table["patterns"])
    texts = json.dumps(table["texts"], ensure_ascii=False)
    (HERE / "patterns.json").write_text(f'{{"texts": {texts}, "patterns": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
