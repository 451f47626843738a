//! Verdicts to a syslog server (RFC 5424): over UDP (RFC 5426), TCP (RFC 6587, octets counted), or a Unix socket.

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use tollgate_screen::Verdict;

use super::format::{Format, syslog};
use super::remote::{Deliver, Failure, connect_any};

/// How long a connection, or a write, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAt {
    /// `udp://host:port`
    Udp(String),
    /// `tcp://host:port`
    Tcp(String),
    /// `unix:///dev/log`
    Unix(String),
}

impl FromStr for SyslogAt {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = text
            .split_once("://")
            .context("expected udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH")?;
        let address = || {
            let (host, port) = rest.rsplit_once(':').context("expected HOST:PORT")?;
            port.parse::<u16>().context("expected HOST:PORT")?;
            anyhow::ensure!(!host.is_empty(), "expected HOST:PORT");
            Ok::<_, anyhow::Error>(rest.to_owned())
        };
        match scheme {
            "udp" => Ok(Self::Udp(address()?)),
            "tcp" => Ok(Self::Tcp(address()?)),
            "unix" if rest.starts_with('/') && cfg!(unix) => Ok(Self::Unix(rest.to_owned())),
            "unix" if cfg!(unix) => bail!("expected unix:///PATH"),
            _ => bail!("expected udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH"),
        }
    }
}

/// An event on its way.
#[derive(Debug)]
pub struct Event {
    time: SystemTime,
    refused: bool,
    text: String,
}

impl Event {
    /// A verdict that was just given.
    pub fn of(verdict: &Verdict, format: Format) -> Self {
        Self {
            time: SystemTime::now(),
            refused: verdict.refused,
            text: format.event(verdict),
        }
    }
}

/// A syslog server.
pub struct Syslog {
    at: SyslogAt,
    host: String,
    open: Option<Open>,
}

enum Open {
    Udp(UdpSocket),
    Tcp(TcpStream),
    #[cfg(unix)]
    Datagrams(std::os::unix::net::UnixDatagram),
    #[cfg(unix)]
    Stream(std::os::unix::net::UnixStream),
}

impl Syslog {
    /// The server there. It is connected to when there is something to say.
    pub fn new(at: SyslogAt) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            at,
            host: host.trim().to_owned(),
            open: None,
        }
    }

    fn connect(&self) -> std::io::Result<Open> {
        match &self.at {
            SyslogAt::Udp(address) => connect_any(address, |to| {
                let from = match to.is_ipv4() {
                    true => "0.0.0.0:0",
                    false => "[::]:0",
                };
                let socket = UdpSocket::bind(from)?;
                socket.connect(to)?;
                Ok(Open::Udp(socket))
            }),
            SyslogAt::Tcp(address) => connect_any(address, |to| {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Open::Tcp(stream))
            }),
            #[cfg(unix)]
            SyslogAt::Unix(path) => {
                let socket = std::os::unix::net::UnixDatagram::unbound()?;
                if socket.connect(path).is_ok() {
                    socket.set_write_timeout(Some(PATIENCE))?;
                    return Ok(Open::Datagrams(socket));
                }
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Open::Stream(stream))
            }
            #[cfg(not(unix))]
            SyslogAt::Unix(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Open {
    fn send(&mut self, message: &[u8]) -> std::io::Result<()> {
        let counted = || [format!("{} ", message.len()).as_bytes(), message].concat();
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => stream.write_all(&counted()),
            #[cfg(unix)]
            Self::Datagrams(socket) => socket.send(message).map(drop),
            #[cfg(unix)]
            Self::Stream(stream) => stream.write_all(&counted()),
        }
    }
}

impl Deliver for Syslog {
    type Event = Event;

    fn name(&self) -> String {
        match &self.at {
            SyslogAt::Udp(at) => format!("syslog at udp://{at}"),
            SyslogAt::Tcp(at) => format!("syslog at tcp://{at}"),
            SyslogAt::Unix(at) => format!("syslog at unix://{at}"),
        }
    }

    fn batch(&self) -> (usize, Duration) {
        (1, Duration::ZERO)
    }

    fn deliver(&mut self, events: &[Event], dropped: u64) -> Result<(), Failure> {
        let later = |error: std::io::Error| Failure::Later(error.to_string());
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().map_err(later)?,
        };
        if dropped > 0 {
            let text = format!("{dropped} verdicts were dropped");
            let message = syslog(&self.host, SystemTime::now(), false, &text);
            open.send(&message).map_err(later)?;
        }
        for event in events {
            let message = syslog(&self.host, event.time, event.refused, &event.text);
            open.send(&message).map_err(later)?;
        }
        // Only what works is kept: after a failure there is a new connection.
        self.open = Some(open);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::super::remote::Remote;

    fn event(text: &str) -> Event {
        Event {
            time: SystemTime::UNIX_EPOCH,
            refused: true,
            text: text.to_owned(),
        }
    }

    #[test]
    fn places_are_read() {
        for (text, at) in [
            (
                "udp://log.example:514",
                SyslogAt::Udp("log.example:514".to_owned()),
            ),
            ("tcp://[::1]:6514", SyslogAt::Tcp("[::1]:6514".to_owned())),
        ] {
            assert_eq!(text.parse::<SyslogAt>().unwrap(), at);
        }
        for text in [
            "",
            "log.example:514",
            "udp://log.example",
            "udp://:514",
            "tls://a:1",
            "unix://dev/log",
            "tcp://a:x",
        ] {
            assert!(text.parse::<SyslogAt>().is_err(), "{text}");
        }
    }

    #[test]
    fn over_udp_an_event_is_a_datagram() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let at = SyslogAt::Udp(server.local_addr().unwrap().to_string());
        let remote = Remote::start(Syslog::new(at)).unwrap();
        remote.send(event("one"));
        remote.send(event("two"));
        let mut buffer = [0; 2048];
        for text in ["one", "two"] {
            let length = server.recv(&mut buffer).unwrap();
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(
                message.starts_with("<108>1 1970-01-01T00:00:00.000Z "),
                "{message}"
            );
            assert!(
                message.ends_with(&format!(" verdict - {text}")),
                "{message}"
            );
        }
    }

    /// Reads a message with its count.
    fn counted(stream: &mut impl std::io::Read) -> String {
        let mut length = 0;
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            match byte[0] {
                b' ' => break,
                digit => length = length * 10 + usize::from(digit - b'0'),
            }
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).unwrap();
        String::from_utf8(message).unwrap()
    }

    #[test]
    fn over_tcp_octets_are_counted_and_a_lost_connection_is_made_again() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = SyslogAt::Tcp(server.local_addr().unwrap().to_string());
        let remote = Remote::start(Syslog::new(at)).unwrap();
        remote.send(event("one\u{e9}"));
        let (mut stream, _) = server.accept().unwrap();
        assert!(counted(&mut stream).ends_with("one\u{e9}"));
        drop(stream);
        // What goes into a connection that is being closed is lost; what follows arrives on a new one.
        let (told, accepted) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(server.accept().unwrap().0));
        let mut stream = loop {
            match accepted.try_recv() {
                Ok(stream) => break stream,
                Err(_) => remote.send(event("again")),
            }
            std::thread::yield_now();
        };
        loop {
            let message = counted(&mut stream);
            if message.ends_with("again") {
                break;
            }
            // More than the queue holds.
            assert!(message.ends_with("verdicts were dropped"), "{message}");
        }
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        remote.close();
    }

    #[cfg(unix)]
    #[test]
    fn a_unix_socket_may_be_of_either_kind() {
        use std::os::unix::net::{UnixDatagram, UnixListener};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let server = UnixDatagram::bind(&path).unwrap();
        let at: SyslogAt = format!("unix://{}", path.display()).parse().unwrap();
        let remote = Remote::start(Syslog::new(at.clone())).unwrap();
        remote.send(event("one"));
        let mut buffer = [0; 2048];
        let length = server.recv(&mut buffer).unwrap();
        assert!(buffer[..length].ends_with(b"one"));
        remote.close();
        drop(server);
        std::fs::remove_file(&path).unwrap();

        let server = UnixListener::bind(&path).unwrap();
        let remote = Remote::start(Syslog::new(at)).unwrap();
        remote.send(event("two"));
        let (mut stream, _) = server.accept().unwrap();
        assert!(counted(&mut stream).ends_with("two"));
        remote.close();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}
