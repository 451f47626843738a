//! `Alt-Svc` from arbitrary bytes: what is kept is kept as it came, and a second look finds nothing more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_wire::alt_svc::{Stripped, strip_h3};

fuzz_target!(|input: &[u8]| {
    match strip_h3(input) {
        Stripped::Unchanged => {}
        Stripped::Changed(value) => {
            assert!(!value.is_empty() && value.len() <= input.len());
            assert_eq!(strip_h3(&value), Stripped::Unchanged);
        }
        // Something had to be there that could be meant.
        Stripped::Empty => assert!(input.len() >= 2),
    }
});
