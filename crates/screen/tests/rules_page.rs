//! The page that lists the rules is the code's own list. `UPDATE_RULES=1` writes it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use tollgate_screen::scan::Scanner;

#[test]
fn the_page_of_rules_is_up_to_date() {
    let mut rules = BTreeMap::new();
    for rule in Scanner::builtin().rules() {
        rules
            .entry((rule.category, rule.id.to_string()))
            .or_insert(rule);
    }
    let mut page = String::from(
        "# Rules of the scanners\n\nWritten by `UPDATE_RULES=1 cargo test -p tollgate-screen --test rules_page`.\n",
    );
    let mut last = None;
    for ((category, id), rule) in &rules {
        if last != Some(*category) {
            write!(
                page,
                "\n## {category}\n\n| rule | severity | what |\n|---|---|---|\n"
            )
            .unwrap();
            last = Some(*category);
        }
        writeln!(
            page,
            "| `{id}` | {} | {} |",
            rule.severity, rule.description
        )
        .unwrap();
    }
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/screening-rules.md");
    if std::env::var_os("UPDATE_RULES").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference/screening-rules.md is out of date: run with UPDATE_RULES=1"
    );
}
