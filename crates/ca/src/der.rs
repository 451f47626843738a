//! A small DER writer (X.690): what certificates and PKCS#12 files need, and no more.
//!
//! A general certificate library re-encodes the issuer's name from its parsed form and parses the authority again for
//! each leaf; here the issuer's bytes are copied as they are, and a mint costs little more than its signature.

/// Context-specific, constructed tag `[n]`.
pub(crate) const fn context(n: u8) -> u8 {
    0xa0 | n
}

/// Context-specific, primitive tag `[n]`.
pub(crate) const fn context_primitive(n: u8) -> u8 {
    0x80 | n
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// 9999-12-31T23:59:59Z, the last moment that `GeneralizedTime` can express (RFC 5280, 4.1.2.5: "no well-defined
/// expiration date").
pub(crate) const LAST_MOMENT: i64 = 253_402_300_799;

/// Bytes being written.
#[derive(Default)]
pub(crate) struct Der(Vec<u8>);

impl Der {
    /// Writes one value into fresh memory.
    pub(crate) fn build(write: impl FnOnce(&mut Der)) -> Vec<u8> {
        let mut der = Der(Vec::with_capacity(512));
        write(&mut der);
        der.0
    }

    /// Copies bytes that are DER already.
    pub(crate) fn raw(&mut self, der: &[u8]) {
        self.0.extend_from_slice(der);
    }

    /// A value whose content is known.
    pub(crate) fn value(&mut self, tag: u8, content: &[u8]) {
        self.nest(tag, |der| der.raw(content));
    }

    /// A value whose content is written by `write`.
    pub(crate) fn nest(&mut self, tag: u8, write: impl FnOnce(&mut Der)) {
        self.0.push(tag);
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let len = self.0.len() - at - 1;
        if let Ok(short @ 0..=0x7f) = u8::try_from(len) {
            if let Some(byte) = self.0.get_mut(at) {
                *byte = short;
            }
            return;
        }
        let big_endian = len.to_be_bytes();
        let significant = big_endian.iter().copied().skip_while(|byte| *byte == 0);
        let count = big_endian.len() - len.leading_zeros() as usize / 8;
        self.0.splice(
            at..=at,
            std::iter::once(0x80 | count as u8).chain(significant),
        );
    }

    pub(crate) fn sequence(&mut self, write: impl FnOnce(&mut Der)) {
        self.nest(SEQUENCE, write);
    }

    pub(crate) fn set(&mut self, write: impl FnOnce(&mut Der)) {
        self.nest(SET, write);
    }

    /// `OCTET STRING` around other DER.
    pub(crate) fn octets(&mut self, write: impl FnOnce(&mut Der)) {
        self.nest(OCTET_STRING, write);
    }

    pub(crate) fn octet_string(&mut self, bytes: &[u8]) {
        self.value(OCTET_STRING, bytes);
    }

    pub(crate) fn bit_string(&mut self, unused_bits: u8, bytes: &[u8]) {
        self.nest(BIT_STRING, |der| {
            der.0.push(unused_bits);
            der.raw(bytes);
        });
    }

    pub(crate) fn boolean(&mut self, value: bool) {
        self.value(BOOLEAN, &[if value { 0xff } else { 0 }]);
    }

    /// A non-negative number, most significant byte first.
    pub(crate) fn integer(&mut self, big_endian: &[u8]) {
        let leading = big_endian.iter().take_while(|byte| **byte == 0).count();
        let significant = big_endian.get(leading..).unwrap_or_default();
        self.nest(INTEGER, |der| {
            if significant.first().is_none_or(|byte| byte & 0x80 != 0) {
                der.0.push(0);
            }
            der.raw(significant);
        });
    }

    pub(crate) fn small_integer(&mut self, value: u32) {
        self.integer(&value.to_be_bytes());
    }

    pub(crate) fn null(&mut self) {
        self.value(NULL, &[]);
    }

    /// An object identifier from its encoded content.
    pub(crate) fn oid(&mut self, encoded: &[u8]) {
        self.value(OID, encoded);
    }

    pub(crate) fn utf8_string(&mut self, text: &str) {
        self.value(UTF8_STRING, text.as_bytes());
    }

    pub(crate) fn bmp_string(&mut self, text: &str) {
        self.nest(BMP_STRING, |der| {
            der.0.extend(text.encode_utf16().flat_map(u16::to_be_bytes))
        });
    }

    /// Seconds since 1970, as `UTCTime` until 2049 and `GeneralizedTime` after (RFC 5280, 4.1.2.5); what lies outside
    /// 1970 to 9999 is moved to the nearer end.
    pub(crate) fn time(&mut self, unix: i64) {
        let t = Civil::from_unix(unix.clamp(0, LAST_MOMENT));
        let rest = format!(
            "{:02}{:02}{:02}{:02}{:02}Z",
            t.month, t.day, t.hour, t.minute, t.second
        );
        if (1950..2050).contains(&t.year) {
            self.value(UTC_TIME, format!("{:02}{rest}", t.year % 100).as_bytes());
        } else {
            self.value(GENERALIZED_TIME, format!("{:04}{rest}", t.year).as_bytes());
        }
    }
}

/// RFC 3339, in UTC.
pub(crate) fn rfc3339(unix: i64) -> String {
    let t = Civil::from_unix(unix);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    )
}

struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Civil {
    /// Proleptic Gregorian calendar, counted in 400-year eras that begin on 1 March so that the leap day comes last.
    fn from_unix(unix: i64) -> Self {
        let (days, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
        let shifted = days + 719_468; // days since 0000-03-01
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: second / 3_600,
            minute: second % 3_600 / 60,
            second: second % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_short_form_and_then_as_few_bytes_as_needed() {
        for (len, head) in [
            (0usize, vec![4, 0]),
            (127, vec![4, 127]),
            (128, vec![4, 0x81, 128]),
            (256, vec![4, 0x82, 1, 0]),
        ] {
            let der = Der::build(|der| der.octet_string(&vec![7; len]));
            assert_eq!(der[..head.len()], head);
            assert_eq!(der.len(), head.len() + len);
        }
        let der = Der::build(|der| der.octet_string(&vec![7; 70_000]));
        assert_eq!(der[..5], [4, 0x83, 1, 0x11, 0x70]);
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        assert_eq!(Der::build(|der| der.integer(&[])), [2, 1, 0]);
        assert_eq!(Der::build(|der| der.small_integer(0)), [2, 1, 0]);
        assert_eq!(Der::build(|der| der.small_integer(127)), [2, 1, 127]);
        assert_eq!(Der::build(|der| der.small_integer(128)), [2, 2, 0, 128]);
    }

    #[test]
    fn times_switch_form_in_2050_and_stop_at_the_last_moment() {
        assert_eq!(
            Der::build(|der| der.time(951_782_399)),
            b"\x17\x0d000228235959Z"
        );
        assert_eq!(
            Der::build(|der| der.time(951_782_400)),
            b"\x17\x0d000229000000Z"
        );
        assert_eq!(
            Der::build(|der| der.time(2_524_607_999)),
            b"\x17\x0d491231235959Z"
        );
        assert_eq!(
            Der::build(|der| der.time(2_524_608_000)),
            b"\x18\x0f20500101000000Z"
        );
        assert_eq!(
            Der::build(|der| der.time(i64::MAX)),
            b"\x18\x0f99991231235959Z"
        );
        assert_eq!(rfc3339(LAST_MOMENT), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
    }
}
