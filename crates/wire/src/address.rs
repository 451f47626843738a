//! What is wrong with an address as a destination: the ranges with a special purpose.

use std::net::{IpAddr, Ipv4Addr};

/// What is wrong with an address as a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafe {
    /// A service that hands credentials to whoever asks from the machine.
    Metadata,
    /// This machine, this network, or a range with a special purpose.
    NotGlobal,
}

/// Judges an address: anything that is not globally reachable, also when an IPv4 address is inside
/// an IPv6 one (mapped, compatible, NAT64, 6to4, Teredo).
///
/// ```
/// use tollgate_wire::address::{Unsafe, unsafe_address};
///
/// assert_eq!(unsafe_address([169, 254, 169, 254].into()), Some(Unsafe::Metadata));
/// assert_eq!(unsafe_address([1, 1, 1, 1].into()), None);
/// ```
#[must_use]
pub fn unsafe_address(ip: IpAddr) -> Option<Unsafe> {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            if matches!(
                ip.octets(),
                [169, 254, 169, 254]
                    | [169, 254, 170, 2]
                    | [169, 254, 170, 23]
                    | [100, 100, 100, 200]
                    | [192, 0, 0, 192]
                    | [168, 63, 129, 16]
            ) {
                return Some(Unsafe::Metadata);
            }
            let special = a == 0
                || a == 10
                || a == 127
                || (a == 100 && (64..128).contains(&b))
                || (a == 169 && b == 254)
                || (a == 172 && (16..32).contains(&b))
                || (a == 192 && b == 168)
                || (a == 192 && b == 0 && (c == 0 || c == 2))
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && (b == 18 || b == 19))
                || (a == 198 && b == 51 && c == 100)
                || (a == 203 && b == 0 && c == 113)
                || a >= 224;
            special.then_some(Unsafe::NotGlobal)
        }
        IpAddr::V6(ip) => {
            let s = ip.segments();
            let v4 = |high: u16, low: u16| {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                unsafe_address(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            };
            if s == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
                || s == [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
            {
                return Some(Unsafe::Metadata);
            }
            match s {
                [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Some(Unsafe::NotGlobal),
                [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
                    v4(high, low)
                }
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
                [0x64, 0xff9b, 1, ..] => Some(Unsafe::NotGlobal),
                [0x2002, high, low, ..] => v4(high, low),
                [0x2001, 0, .., high, low] => v4(!high, !low).or(Some(Unsafe::NotGlobal)),
                [0x2001, 0x1..=0x1ff, ..]
                | [0x2001, 0xdb8, ..]
                | [0x3fff, 0..=0xfff, ..]
                | [0x5f00, ..]
                | [0x100, 0, 0, 0, ..] => Some(Unsafe::NotGlobal),
                [first, ..]
                    if first & 0xfe00 == 0xfc00
                        || first & 0xffc0 == 0xfe80
                        || first & 0xffc0 == 0xfec0
                        || first & 0xff00 == 0xff00 =>
                {
                    Some(Unsafe::NotGlobal)
                }
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_with_a_special_purpose_are_told_in_every_mapping() {
        let judge = |text: &str| unsafe_address(text.parse().unwrap());
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::",
            "2001:0:1:2:3:4:f5ff:fffe",
            "::7f00:1",
            "ff02::1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert_eq!(judge(text), Some(Unsafe::NotGlobal), "{text}");
        }
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
        ] {
            assert_eq!(judge(text), Some(Unsafe::Metadata), "{text}");
        }
        for text in ["1.1.1.1", "2606:4700::1111", "172.32.0.1", "::ffff:8.8.8.8"] {
            assert_eq!(judge(text), None, "{text}");
        }
    }
}
