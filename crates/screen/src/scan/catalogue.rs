//! Every rule that is code and not a pattern, in one table.

use super::finding::{Category, Severity};
use super::rule::RuleInfo;

/// Id, description, category, severity.
type Row = (&'static str, &'static str, Category, Severity);

/// The table, by id.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("assigned-password", "a password is written next to its name", Category::Secret, Severity::High),
    ("assigned-secret", "a random string is written next to the name of a key, token or secret", Category::Secret, Severity::High),
    ("bidi-override", "characters that turn the order of text around", Category::HiddenText, Severity::Medium),
    ("canary", "a canary left its place", Category::KnownSecret, Severity::Critical),
    ("disguised-private-address", "private address in an unusual spelling", Category::Destination, Severity::High),
    ("domain-fronting", "a request names another host than its connection", Category::Destination, Severity::High),
    ("drop-site", "a host where anybody can leave and fetch data", Category::Exfiltration, Severity::Medium),
    ("encoded-random-string", "a random string that was encoded once more", Category::Secret, Severity::Medium),
    ("hidden-tag-characters", "text in Unicode tag characters, which nothing shows", Category::HiddenText, Severity::High),
    ("hidden-variation-selectors", "data in variation selectors, which nothing shows", Category::HiddenText, Severity::High),
    ("hidden-zero-width", "data in a row of zero-width characters", Category::HiddenText, Severity::Medium),
    ("hostname-exfiltration", "a host name carries data", Category::Exfiltration, Severity::High),
    ("iban", "bank account number (IBAN)", Category::PersonalData, Severity::Medium),
    ("invisible-in-words", "zero-width characters inside words", Category::HiddenText, Severity::Low),
    ("known-secret", "a secret that is known here", Category::KnownSecret, Severity::Critical),
    ("link-exfiltration", "a link or picture carries data out when it is shown or followed", Category::Exfiltration, Severity::High),
    ("metadata-address", "address of a service that hands out credentials", Category::Destination, Severity::High),
    ("multiply-encoded", "data is percent-encoded three times or more", Category::Exfiltration, Severity::Medium),
    ("payment-card", "payment card number", Category::PersonalData, Severity::High),
    ("private-address", "request to this machine or a private network", Category::Destination, Severity::Medium),
    ("prompt-injection", "text that gives orders to a model", Category::Injection, Severity::Medium),
    ("terminal-escape", "an escape sequence does more than colour", Category::HiddenText, Severity::Medium),
    ("tool-sensitive-path", "a tool call touches credentials or what is run at a start", Category::Command, Severity::High),
    ("url-payload", "an address carries data", Category::Exfiltration, Severity::Low),
    ("wallet-address", "address of a wallet", Category::PersonalData, Severity::Medium),
    ("wallet-private-key", "private key of a wallet", Category::Secret, Severity::Critical),
];

/// The rule with this id.
pub(super) fn own(id: &'static str) -> RuleInfo {
    let row = ROWS.iter().find(|row| row.0 == id);
    let &(_, description, category, severity) =
        row.unwrap_or(&("", "", Category::Secret, Severity::Medium));
    RuleInfo {
        id: id.into(),
        description: description.into(),
        category,
        severity,
    }
}

/// Every rule of the table.
pub(super) fn all() -> impl Iterator<Item = RuleInfo> {
    ROWS.iter().map(|row| own(row.0))
}
