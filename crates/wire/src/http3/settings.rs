//! SETTINGS (RFC 9114 section 7.2.4).

use super::code;
use super::varint::{read_varint, write_varint};

const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;

/// What an endpoint says of itself, as far as it is known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The largest field section that it takes, in bytes: names, values and 32 for each field.
    /// `None`: it names no limit.
    pub max_field_section_size: Option<u64>,
    /// It serves extended CONNECT (RFC 9220).
    pub enable_connect_protocol: bool,
}

/// Why SETTINGS are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The payload ends in the middle of a setting.
    #[error("SETTINGS end in the middle of a setting")]
    Truncated,
    /// A setting that HTTP/3 took out of HTTP/2 (RFC 9114 section 7.2.4.1).
    #[error("the setting {0:#x} belongs to HTTP/2")]
    Reserved(u64),
    /// A setting that stands twice.
    #[error("the setting {0:#x} stands twice")]
    Repeated(u64),
    /// A value that the setting can't have.
    #[error("the setting {0:#x} can't have that value")]
    Value(u64),
    /// More settings than anybody has reason to send: 64.
    #[error("there are too many settings")]
    TooMany,
}

impl SettingsError {
    /// The code that the connection is closed with.
    pub fn code(self) -> u64 {
        match self {
            Self::Truncated => code::FRAME_ERROR,
            Self::TooMany => code::EXCESSIVE_LOAD,
            _ => code::SETTINGS_ERROR,
        }
    }
}

impl Settings {
    /// Settings that name the largest field section, in bytes.
    pub fn with_max_field_section_size(bytes: u64) -> Self {
        Self {
            max_field_section_size: Some(bytes),
            enable_connect_protocol: false,
        }
    }

    /// Reads the payload of a SETTINGS frame. Unknown settings are skipped.
    pub fn parse(mut payload: &[u8]) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        let mut seen = Vec::new();
        while !payload.is_empty() {
            let mut next = || {
                let (value, length) = read_varint(payload).ok_or(SettingsError::Truncated)?;
                payload = payload.get(length..).unwrap_or_default();
                Ok(value)
            };
            let (id, value) = (next()?, next()?);
            if seen.len() >= 64 {
                return Err(SettingsError::TooMany);
            }
            if seen.contains(&id) {
                return Err(SettingsError::Repeated(id));
            }
            seen.push(id);
            match (id, value) {
                (0x02..=0x05, _) => return Err(SettingsError::Reserved(id)),
                (MAX_FIELD_SECTION_SIZE, bytes) => settings.max_field_section_size = Some(bytes),
                (ENABLE_CONNECT_PROTOCOL, 0 | 1) => settings.enable_connect_protocol = value == 1,
                (ENABLE_CONNECT_PROTOCOL, _) => return Err(SettingsError::Value(id)),
                _ => {}
            }
        }
        Ok(settings)
    }

    /// Appends the payload of a SETTINGS frame.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        if let Some(bytes) = self.max_field_section_size {
            write_varint(MAX_FIELD_SECTION_SIZE, out);
            write_varint(bytes, out);
        }
        if self.enable_connect_protocol {
            write_varint(ENABLE_CONNECT_PROTOCOL, out);
            write_varint(1, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_back() {
        let settings = Settings {
            max_field_section_size: Some(65_536),
            enable_connect_protocol: true,
        };
        let mut payload = Vec::new();
        settings.write_to(&mut payload);
        assert_eq!(Settings::parse(&payload), Ok(settings));
    }

    #[test]
    fn what_a_peer_may_not_send_is_refused() {
        assert_eq!(Settings::parse(&[0x06]), Err(SettingsError::Truncated));
        assert_eq!(Settings::parse(&[0x02, 0]), Err(SettingsError::Reserved(2)));
        assert_eq!(
            Settings::parse(&[0x06, 1, 0x06, 1]),
            Err(SettingsError::Repeated(6))
        );
        assert_eq!(Settings::parse(&[0x08, 2]), Err(SettingsError::Value(8)));
        // Reserved for greasing: skipped.
        assert_eq!(Settings::parse(&[0x21, 7]), Ok(Settings::default()));
        let many: Vec<u8> = (0..65_u8).flat_map(|i| [0x41, i, 0]).collect();
        assert_eq!(Settings::parse(&many), Err(SettingsError::TooMany));
    }
}
