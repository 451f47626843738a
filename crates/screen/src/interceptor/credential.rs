//! Credentials where they belong: a request is there to show them to whom they are for.

use crate::scan::Finding;

/// Header fields that carry a credential.
const FIELDS: [&str; 8] = [
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-amz-security-token",
    "x-auth-token",
    "private-token",
];

/// Parameters of URLs that carry a credential of the host, by the end of its name.
const PARAMETERS: [(&str, &[&str]); 5] = [
    (".googleapis.com", &["key", "access_token"]),
    (".amazonaws.com", &["AWSAccessKeyId", "Signature"]),
    (".windows.net", &["sig"]),
    (".githubusercontent.com", &["sig", "jwt", "token"]),
    (".cloudfront.net", &["Signature", "Policy"]),
];

/// Parameters of a signed URL of S3 and Google's storage, which many hosts speak. They hold the name
/// of a key and what was signed with it, never the key.
const SIGNED: [&str; 6] = [
    "X-Amz-Credential",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Goog-Credential",
    "X-Goog-Signature",
    "GoogleAccessId",
];

/// Whether a header field is there to carry a credential.
pub(super) fn carries(name: &[u8]) -> bool {
    FIELDS
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether what was found in a request line is the credential that this URL is there to carry.
pub(super) fn belongs(line: &[u8], host: &str, finding: &Finding) -> bool {
    let (Ok(start), Ok(end)) = (
        usize::try_from(finding.range.start),
        usize::try_from(finding.range.end),
    ) else {
        return false;
    };
    let Some(before) = line.get(..start) else {
        return false;
    };
    let Some(name_at) = before.iter().rposition(|b| matches!(b, b'?' | b'&')) else {
        return false;
    };
    // A finding may begin with the parameter's name, but not reach beyond its value.
    let parameter = line.get(name_at + 1..).unwrap_or_default();
    let parameter = parameter.split(|&b| b == b'&').next().unwrap_or_default();
    if end > name_at + 1 + parameter.len() {
        return false;
    }
    let name = parameter.split(|&b| b == b'=').next().unwrap_or_default();
    let host = host.to_ascii_lowercase();
    let of_host = PARAMETERS
        .iter()
        .filter(|(suffix, _)| host.ends_with(suffix))
        .flat_map(|(_, names)| names.iter());
    of_host.chain(&SIGNED).any(|known| name == known.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{Kind, Scanner, Severity};

    fn refused(host: &str, path: &str) -> usize {
        let line = format!("GET https://{host}{path}");
        let mut found = Scanner::builtin().scan(Kind::Outbound, line.as_bytes());
        assert!(!found.is_empty(), "{line}");
        // Opaque data in an address is told, and refuses nothing.
        found.retain(|finding| {
            finding.severity >= Severity::High && !belongs(line.as_bytes(), host, finding)
        });
        found.len()
    }

    #[test]
    fn a_signed_url_and_a_key_for_its_own_host_may_pass() {
        let key = format!("AS{}", "IAY3T6DKCNFLR2QWZ4");
        let signed = format!("/k?X-Amz-Credential={key}%2F20261126%2Feu&X-Amz-Expires=60");
        assert_eq!(refused("minio.example", &signed), 0);
        assert!(refused("minio.example", &format!("/k?note={key}&X-Amz-Expires=60")) > 0);
        assert!(refused("minio.example", &format!("/{key}?X-Amz-Credential=x")) > 0);

        let key = format!("AI{}", "zaSyB4k9Xq2Lw7Rt5Vn8Zp3Mc6Jd1Hf0Gs2Ke");
        let path = format!("/v1beta/models/g:generateContent?alt=sse&key={key}");
        assert_eq!(refused("generativelanguage.googleapis.com", &path), 0);
        assert!(refused("googleapis.com.evil.example", &path) > 0);
    }
}
