//! A ClientHello, written down field by field.

use tollgate_wire::tls::{ClientHello, HelloStatus, parse_client_hello};

/// What goes into a hello; the rest (random, session id) is filled in.
#[derive(Clone)]
pub struct HelloBuilder {
    pub version: u16,
    pub cipher_suites: Vec<u16>,
    /// Types and bodies in order; `None` leaves out even the length of the list.
    pub extensions: Option<Vec<(u16, Vec<u8>)>>,
}

impl HelloBuilder {
    pub fn new() -> Self {
        Self {
            version: 0x0303,
            cipher_suites: vec![0x1301, 0xc02f],
            extensions: Some(Vec::new()),
        }
    }

    /// A hello such as a current browser sends, with GREASE and everything that is parsed.
    pub fn browser() -> Self {
        let mut hello = Self::new()
            .with(0x2a2a, &[])
            .with(0, &server_name(b"Example.COM"))
            .with(23, &[])
            .with(0xff01, &[0])
            .with(10, &vec16(&u16s(&[0x3a3a, 0x11ec, 0x001d, 0x0017])))
            .with(11, &vec8(&[0]))
            .with(35, &[])
            .with(16, &alpn(&[b"h2", b"http/1.1"]))
            .with(5, &[1, 0, 0, 0, 0])
            .with(13, &vec16(&u16s(&[0x0403, 0x0804, 0x0401])))
            .with(18, &[])
            .with(
                51,
                &vec16(&[key_share(0x3a3a, 1), key_share(0x001d, 32)].concat()),
            )
            .with(45, &vec8(&[1]))
            .with(43, &vec8(&u16s(&[0x4a4a, 0x0304, 0x0303])))
            .with(27, &vec8(&u16s(&[2])))
            .with(0xfe0d, &ech_outer(0x7f))
            .with(0x5a5a, &[0])
            .with(42, &[])
            .with(41, &[0; 40]);
        hello.cipher_suites = vec![0x1a1a, 0x1301, 0x1302, 0xc02b];
        hello
    }

    pub fn with(mut self, extension_type: u16, body: &[u8]) -> Self {
        let extensions = self.extensions.get_or_insert_default();
        extensions.push((extension_type, body.to_vec()));
        self
    }

    /// The handshake message, header included.
    pub fn message(&self) -> Vec<u8> {
        let mut body = u16s(&[self.version]);
        body.extend(0..32);
        body.extend(vec8(&[0xee; 32]));
        body.extend(vec16(&u16s(&self.cipher_suites)));
        body.extend(vec8(&[0]));
        if let Some(extensions) = &self.extensions {
            let write = |(kind, body): &(u16, Vec<u8>)| [u16s(&[*kind]), vec16(body)].concat();
            let list: Vec<u8> = extensions.iter().flat_map(write).collect();
            body.extend(vec16(&list));
        }
        handshake(1, &body)
    }

    /// The message in one record (in as many as it takes, when it is longer than one can hold).
    pub fn record(&self) -> Vec<u8> {
        records(&self.message(), &[])
    }

    pub fn parse(&self) -> ClientHello {
        complete(&self.record())
    }
}

/// The hello that `input` holds.
pub fn complete(input: &[u8]) -> ClientHello {
    match parse_client_hello(input) {
        Ok(HelloStatus::Complete(hello)) => *hello,
        other => panic!("{other:?}"),
    }
}

/// A handshake message with its header.
pub fn handshake(message_type: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[message_type], &length[..], body].concat()
}

/// Cuts `message` into records of these lengths, and what is left into records as long as they can be.
pub fn records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut lengths = lengths.iter().copied();
    let mut rest = message;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let len = lengths.next().unwrap_or(1 << 14).min(rest.len());
        let (fragment, tail) = rest.split_at(len);
        out.extend([0x16, 3, 1]);
        out.extend(vec16(fragment));
        rest = tail;
    }
    out
}

pub fn vec8(body: &[u8]) -> Vec<u8> {
    [&[u8::try_from(body.len()).unwrap()], body].concat()
}

pub fn vec16(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&length, body].concat()
}

pub fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

pub fn server_name(name: &[u8]) -> Vec<u8> {
    vec16(&host_name(name))
}

pub fn host_name(name: &[u8]) -> Vec<u8> {
    [vec![0], vec16(name)].concat()
}

pub fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| vec8(name)).collect();
    vec16(&list)
}

pub fn key_share(group: u16, len: usize) -> Vec<u8> {
    [u16s(&[group]), vec16(&vec![0xab; len])].concat()
}

pub fn ech_outer(config_id: u8) -> Vec<u8> {
    [
        vec![0, 0, 1, 0, 3, config_id],
        vec16(&[9; 32]),
        vec16(&[7; 128]),
    ]
    .concat()
}
