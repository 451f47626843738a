//! Loading rule packs: an error or a pack, and a pack scans.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_screen::scan::{Kind, RulePack, Scanner};

fuzz_target!(|text: &str| {
    if let Ok(pack) = RulePack::gitleaks(text, "fuzz") {
        let scanner = Scanner::builder().without_builtin().pack(pack).build().unwrap();
        let _ = scanner.scan(Kind::Outbound, text.as_bytes());
    }
});
