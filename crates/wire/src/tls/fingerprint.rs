//! JA3 and JA4: names for "a client that says hello like this".
//!
//! JA3 (Salesforce, 2017) depends on the order of the extensions, which browsers now shuffle on every connection. JA4
//! (FoxIO, 2023) sorts them, and its first part can be read by a person. Both leave GREASE values out.

use std::fmt::Write as _;

use md5::Md5;
use sha2::{Digest, Sha256};

use super::{ClientHello, extension};

impl ClientHello {
    /// The JA3 string: `version,ciphers,extensions,groups,point formats`, decimal, each list joined by `-` in the client's
    /// order, without GREASE.
    pub fn ja3_string(&self) -> String {
        let point_formats = self.point_formats.iter().copied().map(u16::from);
        [
            self.legacy_version.to_string(),
            join(without_grease(&self.cipher_suites), "-", decimal),
            join(without_grease(&self.extensions), "-", decimal),
            join(without_grease(&self.groups), "-", decimal),
            join(point_formats, "-", decimal),
        ]
        .join(",")
    }

    /// The JA3 fingerprint: the MD5 of [`ja3_string`](Self::ja3_string), 32 lower-case hexadecimal digits.
    pub fn ja3(&self) -> String {
        hex_digits(&Md5::digest(self.ja3_string()))
    }

    /// The JA4 fingerprint: 36 characters such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
    ///
    /// The first letter is always `t`: this is a hello that arrived over TCP.
    pub fn ja4(&self) -> String {
        Ja4::sorted(self).hashed()
    }

    /// JA4_r: the JA4 fingerprint with its lists written out in place of their hashes.
    pub fn ja4_raw(&self) -> String {
        Ja4::sorted(self).raw()
    }

    /// JA4_o: the JA4 fingerprint over the client's own order, SNI and ALPN extensions included.
    pub fn ja4_o(&self) -> String {
        Ja4::original(self).hashed()
    }

    /// JA4_ro: [`ja4_o`](Self::ja4_o) with its lists written out in place of their hashes.
    pub fn ja4_ro(&self) -> String {
        Ja4::original(self).raw()
    }
}

/// The parts of a JA4 fingerprint, between the underscores.
struct Ja4 {
    a: String,
    ciphers: String,
    /// Extensions, and behind an underscore the signature algorithms if there are any.
    extensions: String,
    /// Whether there is an extension other than SNI and ALPN. If not, the last hash is written as zeros, in JA4_o too,
    /// although that would have something to hash.
    has_extensions: bool,
}

impl Ja4 {
    fn sorted(hello: &ClientHello) -> Self {
        let mut ciphers: Vec<u16> = without_grease(&hello.cipher_suites).collect();
        let mut extensions: Vec<u16> = unnamed_extensions(hello).collect();
        ciphers.sort_unstable();
        extensions.sort_unstable();
        Self::new(hello, &ciphers, &extensions)
    }

    fn original(hello: &ClientHello) -> Self {
        let ciphers: Vec<u16> = without_grease(&hello.cipher_suites).collect();
        let extensions: Vec<u16> = without_grease(&hello.extensions).collect();
        Self::new(hello, &ciphers, &extensions)
    }

    fn new(hello: &ClientHello, ciphers: &[u16], extensions: &[u16]) -> Self {
        let signature_algorithms = without_grease(&hello.signature_algorithms);
        let signature_algorithms = join(signature_algorithms, ",", hex4);
        let mut extensions = join(extensions.iter().copied(), ",", hex4);
        if !signature_algorithms.is_empty() {
            extensions.push('_');
            extensions.push_str(&signature_algorithms);
        }
        Self {
            a: readable_part(hello),
            ciphers: join(ciphers.iter().copied(), ",", hex4),
            extensions,
            has_extensions: unnamed_extensions(hello).next().is_some(),
        }
    }

    fn hashed(&self) -> String {
        let ciphers = hash12(&self.ciphers, !self.ciphers.is_empty());
        let extensions = hash12(&self.extensions, self.has_extensions);
        format!("{}_{ciphers}_{extensions}", self.a)
    }

    fn raw(&self) -> String {
        format!("{}_{}_{}", self.a, self.ciphers, self.extensions)
    }
}

/// Transport, version, SNI, counts and ALPN: `t13d1516h2`.
fn readable_part(hello: &ClientHello) -> String {
    let version = match hello.max_version() {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    };
    // The extension counts, whatever name is in it.
    let sni = match hello.has_extension(extension::SERVER_NAME) {
        true => 'd',
        false => 'i',
    };
    let ciphers = without_grease(&hello.cipher_suites).count().min(99);
    let extensions = without_grease(&hello.extensions).count().min(99);
    let alpn = alpn_ends(hello.alpn.first().map_or(&[], Vec::as_slice));
    format!("t{version}{sni}{ciphers:02}{extensions:02}{alpn}")
}

/// The first and the last character of a protocol name; of its hexadecimal form when either is not an ASCII letter or digit.
fn alpn_ends(name: &[u8]) -> String {
    let (Some(&first), Some(&last)) = (name.first(), name.last()) else {
        return "00".to_owned();
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [first, last].map(char::from).iter().collect();
    }
    format!("{:x}{:x}", first >> 4, last & 0x0f)
}

/// The extensions that the last part hashes: SNI and ALPN are told by the first part, and change with the destination.
fn unnamed_extensions(hello: &ClientHello) -> impl Iterator<Item = u16> {
    without_grease(&hello.extensions)
        .filter(|kind| !matches!(*kind, extension::SERVER_NAME | extension::ALPN))
}

fn without_grease(values: &[u16]) -> impl Iterator<Item = u16> {
    let values = values.iter().copied();
    values.filter(|value| !ClientHello::is_grease(*value))
}

fn join(values: impl Iterator<Item = u16>, separator: &str, write: fn(&mut String, u16)) -> String {
    let mut out = String::new();
    for value in values {
        if !out.is_empty() {
            out.push_str(separator);
        }
        write(&mut out, value);
    }
    out
}

// Writing to a String cannot fail, so the results below have nothing to say.

fn decimal(out: &mut String, value: u16) {
    let _ = write!(out, "{value}");
}

fn hex4(out: &mut String, value: u16) {
    let _ = write!(out, "{value:04x}");
}

fn hex_digits(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The first twelve digits of the SHA-256, or zeros, which show at a glance that there was nothing to hash.
fn hash12(list: &str, has_items: bool) -> String {
    match Sha256::digest(list).first_chunk::<6>() {
        Some(start) if has_items => hex_digits(start),
        _ => "0".repeat(12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the JA4 specification, section "ALPN Extension Value".
    #[test]
    fn alpn_ends_of_the_specification() {
        for (name, expected) in [
            (&b""[..], "00"),
            (b"h2", "h2"),
            (b"http/1.1", "h1"),
            (b"h", "hh"),
            (&[0xab], "ab"),
            (&[0x20], "20"),
            (&[0xab, 0xcd], "ad"),
            (&[0x20, 0x61], "21"),
            (&[0x30, 0xab], "3b"),
            (&[0x61, 0x20], "60"),
            (&[0x30, 0x31, 0xab, 0xcd], "3d"),
            (&[0x30, 0xab, 0xcd, 0x31], "01"),
        ] {
            assert_eq!(alpn_ends(name), expected, "{name:02x?}");
        }
    }

    #[test]
    fn versions_and_caps() {
        let mut hello = ClientHello::default();
        for (version, expected) in [
            (0x0304, "t13i000000"),
            (0x0303, "t12i000000"),
            (0x0302, "t11i000000"),
            (0x0301, "t10i000000"),
            (0x0300, "ts3i000000"),
            (0x0002, "ts2i000000"),
            (0x7f1c, "t00i000000"),
        ] {
            hello.legacy_version = version;
            assert_eq!(readable_part(&hello), expected);
        }
        assert_eq!(hello.ja4(), "t00i000000_000000000000_000000000000");
        hello.cipher_suites = (0..100).collect();
        hello.extensions = (0..200).collect();
        assert_eq!(readable_part(&hello), "t00d999900");
    }
}
