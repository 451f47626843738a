//! Verdicts to a web service: `POST` with JSON, signed with a shared secret.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::hmac;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};

use super::format::escaped;
use super::remote::{Deliver, Failure, connect_any};
use crate::tls::client_config;

/// Verdicts of one request.
const MOST: usize = 100;
/// How long the first of them waits for others.
const WINDOW: Duration = Duration::from_millis(500);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read of an answer.
const MAX_HEAD: usize = 16 << 10;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookUrl {
    tls: bool,
    host: String,
    port: u16,
    /// Path and query.
    target: String,
}

impl FromStr for WebhookUrl {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = text
            .split_once("://")
            .context("expected http:// or https://")?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => bail!("expected http:// or https://"),
        };
        ensure!(
            rest.bytes().all(|b| b.is_ascii_graphic()),
            "a URL has visible ASCII only"
        );
        let rest = rest.split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(at).unwrap_or((rest, ""));
        ensure!(
            !authority.contains('@'),
            "a URL with a password is not taken: sign with --audit-webhook-secret"
        );
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().context("no port number")?)
            }
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ensure!(!host.is_empty(), "there is no host in it");
        let target = match target.starts_with('/') {
            true => target.to_owned(),
            false => format!("/{target}"),
        };
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            target,
        })
    }
}

/// A service that takes verdicts.
pub struct Webhook {
    url: WebhookUrl,
    secret: Option<hmac::Key>,
    tls: Option<Arc<ClientConfig>>,
}

impl Webhook {
    /// The service there. With a secret, each request is signed.
    ///
    /// # Errors
    /// When there is no authority that a service could be verified by.
    pub fn new(url: WebhookUrl, secret: Option<&[u8]>) -> anyhow::Result<Self> {
        let tls = match url.tls {
            true => Some(Arc::new(client_config(&[])?)),
            false => None,
        };
        Ok(Self {
            url,
            secret: secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret)),
            tls,
        })
    }

    /// The head of a request, with the signature of its time and its body.
    fn head(&self, body: &[u8], time: u64) -> String {
        let WebhookUrl {
            host, port, target, ..
        } = &self.url;
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.clone(),
        };
        let mut head = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: tollgate/{}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n",
            env!("CARGO_PKG_VERSION"),
            body.len()
        );
        if let Some(key) = &self.secret {
            let text = [format!("{time}.").as_bytes(), body].concat();
            let tag = hmac::sign(key, &text);
            let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            head.push_str(&format!(
                "X-Tollgate-Timestamp: {time}\r\nX-Tollgate-Signature: sha256={hex}\r\n"
            ));
        }
        head.push_str("\r\n");
        head
    }

    fn post(&self, body: &[u8]) -> std::io::Result<u16> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let head = self.head(body, time.unwrap_or_default().as_secs());
        let request = [head.as_bytes(), body].concat();
        let deadline = Instant::now() + PATIENCE;
        let stream = connect_any((self.url.host.as_str(), self.url.port), |to| {
            TcpStream::connect_timeout(&to, PATIENCE)
        })?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        self.exchange(stream, &request, deadline)
    }

    fn exchange(
        &self,
        stream: TcpStream,
        request: &[u8],
        deadline: Instant,
    ) -> std::io::Result<u16> {
        let Some(config) = &self.tls else {
            return talk(stream, request, deadline);
        };
        let name = ServerName::try_from(self.url.host.clone()).map_err(std::io::Error::other)?;
        let client = ClientConnection::new(Arc::clone(config), name);
        let client = client.map_err(std::io::Error::other)?;
        talk(StreamOwned::new(client, stream), request, deadline)
    }
}

/// Sends a request, and gives the status of the answer.
fn talk(mut stream: impl Read + Write, request: &[u8], deadline: Instant) -> std::io::Result<u16> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    loop {
        if let Some(status) = status_of(&head)? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let count = stream.read(&mut piece)?;
        if count == 0 || head.len() > MAX_HEAD {
            return Err(std::io::Error::other("no answer of HTTP/1"));
        }
        head.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
}

/// The status of the final answer, as soon as its first line is there.
fn status_of(mut head: &[u8]) -> std::io::Result<Option<u16>> {
    loop {
        let Some(end) = head.iter().position(|&b| b == b'\n') else {
            return Ok(None);
        };
        let line = head.get(..end).unwrap_or_default();
        let line = std::str::from_utf8(line).unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
        let status: Option<u16> = words.next().and_then(|word| word.parse().ok());
        let status = status.filter(|_| http);
        let status = status.ok_or_else(|| std::io::Error::other("no answer of HTTP/1"))?;
        if status >= 200 {
            return Ok(Some(status));
        }
        // 100 Continue and its like: the final answer follows.
        let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        head = head.get(at + 4..).unwrap_or_default();
    }
}

impl Deliver for Webhook {
    type Event = Value;

    fn name(&self) -> String {
        // The path may hold a token.
        format!("webhook at {}:{}", self.url.host, self.url.port)
    }

    fn batch(&self) -> (usize, Duration) {
        (MOST, WINDOW)
    }

    fn deliver(&mut self, events: &[Value], dropped: u64) -> Result<(), Failure> {
        let body = escaped(&json!({ "verdicts": events, "dropped": dropped }).to_string());
        match self.post(body.as_bytes()) {
            Ok(200..=299) => Ok(()),
            Ok(status @ (408 | 425 | 429 | 500..)) => {
                Err(Failure::Later(format!("it answered {status}")))
            }
            Ok(status) => Err(Failure::Never(format!("it answered {status}"))),
            Err(error) => Err(Failure::Later(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::super::remote::Remote;

    /// A service that gives one answer after the other, and tells what it was sent.
    fn service(answers: &'static [&'static str]) -> (WebhookUrl, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook?t=1", listener.local_addr().unwrap());
        let (tell, told) = channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let request = read_request(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                tell.send(request).unwrap();
            }
        });
        (url.parse().unwrap(), told)
    }

    fn read_request(stream: &mut impl Read) -> String {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let head = String::from_utf8(request.clone()).unwrap();
        let length = head.split("Content-Length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    fn body(request: &str) -> Value {
        serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    #[test]
    fn a_request_is_signed_and_a_failure_is_tried_again() {
        let (url, told) = service(&[
            "HTTP/1.1 503 Busy\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        ]);
        let remote = Remote::start(Webhook::new(url, Some(b"secret")).unwrap()).unwrap();
        remote.send(json!({"reason": "a\u{85}"}));
        let first = told.recv().unwrap();
        let second = told.recv().unwrap();
        assert_eq!(
            body(&first),
            json!({"verdicts": [{"reason": "a\u{85}"}], "dropped": 0})
        );
        assert_eq!(body(&second), body(&first));
        assert!(
            second.starts_with("POST /hook?t=1 HTTP/1.1\r\nHost: 127.0.0.1:"),
            "{second}"
        );
        // As a service checks it.
        let header = |name: &str| {
            let rest = second.split(&format!("{name}: ")).nth(1).unwrap();
            rest.split("\r\n").next().unwrap().to_owned()
        };
        let text = format!(
            "{}.{}",
            header("X-Tollgate-Timestamp"),
            second.split_once("\r\n\r\n").unwrap().1
        );
        let signature = header("X-Tollgate-Signature");
        let hex = signature.strip_prefix("sha256=").unwrap();
        let digits = |two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16);
        let tag: Vec<u8> = hex
            .as_bytes()
            .chunks(2)
            .map(|two| digits(two).unwrap())
            .collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        hmac::verify(&key, text.as_bytes(), &tag).unwrap();
        remote.close();
    }

    #[test]
    fn what_is_refused_for_good_is_counted_and_said_next_time() {
        let (url, told) = service(&["HTTP/1.1 400 No\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"]);
        let remote = Remote::start(Webhook::new(url, None).unwrap()).unwrap();
        remote.send(json!(1));
        assert!(!told.recv().unwrap().contains("X-Tollgate-Signature"));
        remote.send(json!(2));
        assert_eq!(
            body(&told.recv().unwrap()),
            json!({"verdicts": [2], "dropped": 1})
        );
        remote.close();
    }

    #[test]
    fn a_service_that_is_not_there_holds_nobody_up() {
        // Nobody listens there any more.
        let url = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let remote = Remote::start(Webhook::new(url.parse().unwrap(), None).unwrap()).unwrap();
        for n in 0..10_000 {
            remote.send(json!(n));
        }
        // Ends although nothing was delivered.
        remote.close();
    }

    #[test]
    fn urls_are_read() {
        let url: WebhookUrl = "https://[::1]:8443?a=b#c".parse().unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.target.as_str()),
            (true, "::1", 8443, "/?a=b")
        );
        let url: WebhookUrl = "http://hook.example/x".parse().unwrap();
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.target.as_str()),
            (false, "hook.example", 80, "/x")
        );
        for text in [
            "",
            "ftp://a",
            "http://",
            "http://u:p@a/",
            "http://a/\r\nX: y",
            "http://a:b/",
        ] {
            assert!(text.parse::<WebhookUrl>().is_err(), "{text:?}");
        }
    }
}
