//! Scanning arbitrary bytes: nothing panics, and every cut finds the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tollgate_screen::scan::{Kind, Scanner};

static SCANNER: LazyLock<Scanner> = LazyLock::new(Scanner::builtin);

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (kind, cut, text) = input;
    let kind = [Kind::Outbound, Kind::Inbound, Kind::Command][usize::from(kind % 3)];
    let whole = SCANNER.scan(kind, text);
    let mut state = SCANNER.start(kind);
    let mut found = Vec::new();
    for piece in text.chunks(usize::from(cut).max(1)) {
        SCANNER.feed(&mut state, piece, &mut found);
        assert!(state.size() <= 4096);
    }
    SCANNER.finish(&mut state, &mut found);
    found.sort();
    assert_eq!(whole, found);
});
