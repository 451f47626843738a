use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::gate::Messages;

fn key(n: u8) -> String {
    // Put together here, so that nobody takes them for real ones.
    let tail = ["Y3T6DKCNFLR2QWZ4", "Q7LM2XKBVN5TRWP3", "Z4HJ6YCDGS2MKQX7"];
    format!("AK{}{}", "IA", tail[usize::from(n) % 3])
}

fn keys(_: &[u8], finding: &Finding) -> bool {
    &*finding.rule == "aws-access-key-id"
}

fn redactor() -> Redactor {
    Redactor::new(Scanner::builtin())
}

fn replaced(placeholder: &str, secret: &[u8]) -> Replaced {
    Replaced {
        placeholder: placeholder.to_owned(),
        finding: Scanner::builtin()
            .scan(Kind::Outbound, key(0).as_bytes())
            .remove(0),
        secret: secret.into(),
    }
}

fn originals(redacted: &Redacted) -> Originals {
    let mut originals = Originals::default();
    redacted
        .replaced
        .iter()
        .for_each(|one| originals.remember(one));
    originals
}

#[test]
fn what_is_taken_out_has_a_stable_name_that_tells_nothing() {
    let redactor = redactor();
    let text = format!("a {} b {} c {}", key(0), key(1), key(0));
    let redacted = redactor.redact(text.as_bytes(), Shape::Plain, &keys);
    assert!(redacted.left.is_empty());
    assert_eq!(redacted.replaced.len(), 2);
    let (one, two) = (
        redactor.placeholder("aws-access-key-id", key(0).as_bytes()),
        redactor.placeholder("aws-access-key-id", key(1).as_bytes()),
    );
    assert_eq!(one.len(), "[tollgate:aws-access-key-id:12345678]".len());
    let text = String::from_utf8(redacted.text.clone()).unwrap();
    assert_eq!(text, format!("a {one} b {two} c {one}"));
    assert!(!format!("{redacted:?} {redactor:?} {:?}", originals(&redacted)).contains(&key(0)));
    // Another process has another key.
    assert_ne!(
        one,
        self::redactor().placeholder("aws-access-key-id", key(0).as_bytes())
    );
    // What is there already is left alone.
    let again = redactor.redact(text.as_bytes(), Shape::Plain, &|_, _| true);
    assert_eq!((again.text, again.left), (text.into_bytes(), Vec::new()));
}

#[test]
fn json_and_forms_stay_what_they_are() {
    let redactor = redactor();
    let (a, b) = (key(0), key(1));
    let escaped = a.replacen("AK", "\\u0041\\u004b", 1);
    let nested = json!({"command": format!("x \"{b}\" \n")}).to_string();
    let card = format!("411111111111{}", 1111);
    let body = format!(
        "{{\"a\": \"\\\"{escaped}\\\"\", \"b\": {}, \"{b}\": [\"\\n{a}\\n\", {card}, \"caf\\u00e9\"]}}",
        json!({"arguments": nested}),
    );
    let wanted = |text: &[u8], f: &Finding| keys(text, f) || &*f.rule == "payment-card";
    let redacted = redactor.redact(body.as_bytes(), Shape::Json, &wanted);
    assert!(redacted.left.is_empty(), "{:?}", redacted.left);
    let text = String::from_utf8(redacted.text.clone()).unwrap();
    let read: Json = serde_json::from_str(&text).unwrap();
    let (pa, pb) = (
        redactor.placeholder("aws-access-key-id", a.as_bytes()),
        redactor.placeholder("aws-access-key-id", b.as_bytes()),
    );
    assert_eq!(read["a"], format!("\"{pa}\""));
    let inner: Json = serde_json::from_str(read["b"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(inner["command"], format!("x \"{pb}\" \n"));
    assert_eq!(read[&pb][0], format!("\n{pa}\n"));
    assert!(
        read[&pb][1]
            .as_str()
            .unwrap()
            .starts_with("[tollgate:payment-card:")
    );
    // What isn't touched keeps its escapes.
    assert!(text.contains("caf\\u00e9"));

    let form = format!("x=%41%4B{}&y=1&{b}=z+z", a.get(2..).unwrap());
    let redacted = redactor.redact(form.as_bytes(), Shape::Form, &keys);
    assert!(redacted.left.is_empty(), "{:?}", redacted.left);
    let coded = |p: &str| {
        p.replace('[', "%5B")
            .replace(']', "%5D")
            .replace(':', "%3A")
    };
    let expected = format!("x={}&y=1&{}=z+z", coded(&pa), coded(&pb));
    assert_eq!(String::from_utf8(redacted.text).unwrap(), expected);
}

#[test]
fn what_is_seen_only_behind_an_encoding_is_left_and_said() {
    use base64::Engine as _;
    let coded = base64::engine::general_purpose::STANDARD.encode(format!("the key is {}", key(0)));
    for (body, shape) in [
        (coded.clone(), Shape::Plain),
        (json!({ "a": coded }).to_string(), Shape::Json),
    ] {
        let redacted = redactor().redact(body.as_bytes(), shape, &keys);
        assert!(!redacted.left.is_empty(), "{body}");
        assert!(redacted.replaced.is_empty());
    }
}

#[test]
fn a_placeholder_that_is_none_hides_nothing() {
    let redactor = redactor();
    for text in [
        format!("[tollgate:{}:12345678]", key(0)),
        format!("[tollgate:aws-access-key-id:{}]", key(0)),
        format!("[tollgate:aws-access-key-id:12345678]{}", key(0)),
    ] {
        let found = Scanner::builtin().scan(Kind::Outbound, text.as_bytes());
        let found = found.iter().find(|f| keys(&[], f)).unwrap();
        assert!(!redactor.is_ours(text.as_bytes(), found), "{text}");
    }
}

#[test]
fn signed_messages_are_known() {
    let signed = |name: &str, value: &str, query: &str| {
        let fields = [(name.as_bytes(), value.as_bytes())];
        signed_by(fields.into_iter(), query.as_bytes())
    };
    for (name, value) in [
        ("Authorization", "AWS4-HMAC-SHA256 Credential=x"),
        ("authorization", "OAuth oauth_signature=x"),
        ("X-Amz-Content-Sha256", "abc"),
        ("Signature-Input", "sig1=()"),
        ("Content-Digest", "sha-256=:x:"),
        ("Digest", "SHA-256=x"),
        ("Content-MD5", "x"),
        ("X-Hub-Signature-256", "sha256=x"),
        ("Stripe-Signature", "t=1"),
    ] {
        assert!(signed(name, value, "").is_some(), "{name}");
    }
    assert!(signed("Authorization", "Bearer x", "a=1").is_none());
    assert!(signed("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD", "").is_none());
    assert!(signed("Accept", "*/*", "X-Amz-Signature=1").is_some());
}

/// A chat's answer in pieces: each is a delta of its own.
fn events(pieces: &[String], nested: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let delta = match nested {
            false => json!({"content": piece}),
            true => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
        };
        let event = json!({"choices": [{"index": 0, "delta": delta}]});
        out.extend(format!("data: {event}\n\n: ping\n\n").into_bytes());
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
    out
}

fn joined(stream: &[u8], nested: bool) -> String {
    let text = String::from_utf8(stream.to_vec()).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| {
            let event: Json = serde_json::from_str(data).unwrap();
            let delta = &event["choices"][0]["delta"];
            let piece = match nested {
                false => &delta["content"],
                true => &delta["tool_calls"][0]["function"]["arguments"],
            };
            piece.as_str().unwrap().to_owned()
        })
        .collect()
}

fn cut(text: &str, cuts: &[usize]) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (chars.len() + 1)).collect();
    ends.push(chars.len());
    ends.sort_unstable();
    let mut at = 0;
    ends.into_iter()
        .map(|end| {
            let piece = chars[at..end].iter().collect();
            at = end;
            piece
        })
        .collect()
}

fn fed(restorer: &mut Restorer, stream: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in stream.chunks(size.max(1)) {
        restorer.feed(piece, &mut out);
    }
    restorer.finish(&mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn redacted_json_is_json_and_comes_back_whole(
        before in "[ -~\u{e9}\u{1f600}\n\"\\\\]{0,40}",
        after in "[ -~\n\"\\\\\\[]{0,40}",
        which in 0_u8..3,
        cuts in prop::collection::vec(0_usize..200, 0..12),
        size in 1_usize..300,
    ) {
        let redactor = redactor();
        let said = format!("{before} {} {after}", key(which));
        let body = json!({"messages": [{"role": "user", "content": said}]}).to_string();
        let redacted = redactor.redact(body.as_bytes(), Shape::Json, &keys);
        prop_assert!(redacted.left.is_empty());
        let sent: Json = serde_json::from_slice(&redacted.text).unwrap();
        let sent = sent["messages"][0]["content"].as_str().unwrap();
        prop_assert!(!sent.contains(&key(which)));
        let originals = originals(&redacted);
        prop_assert_eq!(originals.restored(sent), said.clone());

        // It comes back in deltas, cut anywhere; and the stream is cut anywhere.
        let pieces = cut(sent, &cuts);
        let stream = events(&pieces, false);
        let sse = Some("text/event-stream");
        let mut restorer = Restorer::new(originals.clone(), sse, None);
        let whole = fed(&mut restorer, &stream, usize::MAX);
        prop_assert_eq!(joined(&whole, false), said.clone());
        let mut restorer = Restorer::new(originals.clone(), sse, None);
        prop_assert_eq!(&fed(&mut restorer, &stream, size), &whole);

        // The same in the arguments of a call, and in an answer that isn't JSON.
        let arguments = json!({ "text": sent }).to_string();
        let stream = events(&cut(&arguments, &cuts), true);
        let mut restorer = Restorer::new(originals.clone(), sse, None);
        let back: Json = serde_json::from_str(&joined(&fed(&mut restorer, &stream, size), true)).unwrap();
        prop_assert_eq!(back["text"].as_str().unwrap(), said.clone());
        let mut restorer = Restorer::new(originals, Some("text/plain"), None);
        prop_assert_eq!(fed(&mut restorer, sent.as_bytes(), size), said.into_bytes());
    }

    #[test]
    fn what_has_no_placeholder_passes_byte_for_byte(
        text in "[ -~\n\\[]{0,60}",
        cuts in prop::collection::vec(0_usize..60, 0..6),
        size in 1_usize..100,
    ) {
        let redactor = redactor();
        let redacted = redactor.redact(key(0).as_bytes(), Shape::Plain, &keys);
        let stream = events(&cut(&text, &cuts), false);
        let mut restorer =
            Restorer::new(originals(&redacted), Some("text/event-stream"), None);
        prop_assert_eq!(fed(&mut restorer, &stream, size), stream);
    }
}

#[test]
fn a_secret_with_quotes_and_line_breaks_comes_back_in_every_place() {
    let mut originals = Originals::default();
    let one = replaced("[tollgate:private-key:00000000]", b"a\"b\\\nc");
    originals.remember(&one);
    let said = format!("<{}>", one.placeholder);
    let body = json!({"content": said, "arguments": json!({ "k": said }).to_string()});
    let mut restorer = Restorer::new(originals, Some("application/json"), None);
    let out = fed(&mut restorer, body.to_string().as_bytes(), 7);
    let out: Json = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["content"], "<a\"b\\\nc>");
    let inner: Json = serde_json::from_str(out["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(inner["k"], "<a\"b\\\nc>");
}

#[test]
fn messages_of_a_websocket_stay_apart_and_none_waits_for_ever() {
    let redacted = redactor().redact(key(0).as_bytes(), Shape::Plain, &keys);
    let placeholder = redacted.replaced[0].placeholder.clone();
    let (head, tail) = placeholder.split_at(9);
    let delta = |text: &str| {
        json!({"type": "response.output_text.delta", "item_id": "a", "delta": text}).to_string()
    };
    let done = json!({"type": "response.output_text.done", "item_id": "a"}).to_string();
    let mut restorer = Restorer::for_messages(originals(&redacted));
    let mut out = Messages::default();
    restorer.feed(delta(head).as_bytes(), &mut out);
    assert!(out.0.is_empty());
    restorer.feed(delta(tail).as_bytes(), &mut out);
    let said: Vec<Json> = out
        .0
        .iter()
        .map(|m| serde_json::from_slice(m).unwrap())
        .collect();
    assert_eq!(
        (said[0]["delta"].as_str().unwrap(), &said[1]["delta"]),
        (&*key(0), &json!(""))
    );
    let mut out = Messages::default();
    restorer.feed(delta("see [").as_bytes(), &mut out);
    assert!(out.0.is_empty());
    restorer.feed(done.as_bytes(), &mut out);
    assert_eq!(out.0, [delta("see [").into_bytes(), done.into_bytes()]);
}

#[test]
fn the_table_is_bounded() {
    let mut originals = Originals::default();
    for n in 0..=MAX_RESTORED {
        let name = format!("[tollgate:x:{n:08x}]");
        originals.remember(&replaced(&name, n.to_string().as_bytes()));
    }
    let last = format!("[tollgate:x:{MAX_RESTORED:08x}]");
    assert_eq!(originals.restored(&last), last);
    // Two secrets of one name: neither is put back.
    let clash = replaced("[tollgate:x:00000000]", b"other");
    originals.remember(&clash);
    assert_eq!(originals.restored(&clash.placeholder), clash.placeholder);
}

/// A key of several lines, in the escapes of JSON; and a value that was named, in the middle of a word.
#[test]
fn keys_of_several_lines_and_known_values_are_taken_out_and_come_back() {
    let body: String = (0_u32..12)
        .map(|line| {
            let letters = |at: u32| char::from_u32(65 + (line * 7 + at * 5) % 26).unwrap();
            (0..64).map(letters).collect::<String>() + "\n"
        })
        .collect();
    let word = "PRIVATE";
    let pem = format!("-----BEGIN {word} KEY-----\n{body}-----END {word} KEY-----");
    let mut known = crate::scan::KnownSecrets::new();
    known.add("db", b"correct horse \"battery\"").unwrap();
    let scanner = Scanner::builder().known(known).build().unwrap();
    let redactor = Redactor::new(scanner);
    let text = json!({
        "content": format!("here:\n{pem}\nand <correct horse \"battery\">"),
        "nested": json!({ "file": pem }).to_string(),
    });
    let wanted = |_: &[u8], f: &Finding| {
        matches!(
            f.category,
            crate::scan::Category::Secret | crate::scan::Category::KnownSecret
        )
    };
    let redacted = redactor.redact(text.to_string().as_bytes(), Shape::Json, &wanted);
    assert!(redacted.left.is_empty(), "{:?}", redacted.left);
    let sent: Json = serde_json::from_slice(&redacted.text).unwrap();
    let sent_text = sent.to_string();
    assert!(
        !sent_text.contains("ABCD") && !sent_text.contains("battery"),
        "{sent_text}"
    );
    let originals = originals(&redacted);
    let mut restorer = Restorer::new(originals, Some("application/json"), None);
    let back: Json = serde_json::from_slice(&fed(&mut restorer, &redacted.text, 11)).unwrap();
    assert_eq!(back["content"], text["content"]);
    assert_eq!(
        serde_json::from_str::<Json>(back["nested"].as_str().unwrap()).unwrap(),
        json!({ "file": pem })
    );
}

/// Text that looks like a key's, of this many lines.
fn lines(count: u32) -> String {
    (0..count)
        .map(|line| {
            let letters =
                |at: u32| char::from_u32(65 + (line * 7 + at * (line % 23 + 3)) % 26).unwrap();
            (0..64).map(letters).collect::<String>() + "\n"
        })
        .collect()
}

/// Scanners see the beginning of what is long; what leaves is nothing of it.
#[test]
fn a_long_secret_is_taken_out_to_its_end_or_the_text_is_not_sent() {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let body = lines(60);
    let word = "PRIVATE";
    let pem = format!("-----BEGIN RSA {word} KEY-----\n{body}-----END RSA {word} KEY-----");
    let putty = format!(
        "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\nPublic-Lines: 9\n{}Private-Lines: 60\n\
         {body}Private-MAC: {}",
        lines(9),
        "0f".repeat(20)
    );
    let token = [
        url_safe.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string()),
        url_safe.encode(json!({"sub": body, "iat": 1}).to_string()),
        url_safe.encode(lines(1)),
    ]
    .join(".");
    let wrapped: String = engine
        .encode(&pem)
        .as_bytes()
        .chunks(76)
        .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
        .collect();
    let wanted = |_: &[u8], f: &Finding| f.category == Category::Secret;
    let redactor = redactor();
    for secret in [&pem, &putty, &token, wrapped.trim_end()] {
        let said = format!("here: {secret}\nand that was it");
        for (text, shape) in [
            (said.clone(), Shape::Plain),
            (json!({ "content": said }).to_string(), Shape::Json),
        ] {
            let redacted = redactor.redact(text.as_bytes(), shape, &wanted);
            let sent = String::from_utf8(redacted.text.clone()).unwrap();
            assert!(redacted.left.is_empty(), "{:?}", redacted.left);
            assert!(
                sent.len() < 120 && sent.contains("and that was it"),
                "{sent}"
            );
            let content_type = match shape {
                Shape::Json => "application/json",
                _ => "text/plain",
            };
            let mut restorer = Restorer::new(originals(&redacted), Some(content_type), None);
            let back = fed(&mut restorer, &redacted.text, 9);
            assert_eq!(String::from_utf8(back).unwrap(), text);
        }
    }
    // Where the end can't be told, the text is not to be sent.
    let (head, tail) = pem.split_at(pem.len() / 2);
    let (file, _) = putty.split_at(putty.len() / 2);
    let long = lines(9).replace('\n', " ");
    let mut known = crate::scan::KnownSecrets::new();
    known.add("long", long.as_bytes()).unwrap();
    let scanner = Scanner::builder().known(known).build().unwrap();
    let redactor = Redactor::new(scanner);
    let apart = json!([head, tail]).to_string();
    for (text, shape) in [
        (head, Shape::Plain),
        (file, Shape::Plain),
        (&*long, Shape::Plain),
        (&*apart, Shape::Json),
    ] {
        let all =
            |_: &[u8], f: &Finding| matches!(f.category, Category::Secret | Category::KnownSecret);
        let redacted = redactor.redact(text.as_bytes(), shape, &all);
        assert!(!redacted.left.is_empty(), "{text:.60}");
    }
}
