//! Reading shell: nothing panics or runs away, limits hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_screen::shell::{MAX_COMMANDS, Script};

fuzz_target!(|text: &str| {
    let script = Script::parse(text);
    assert!(script.commands.len() <= MAX_COMMANDS + 64);
    for command in &script.commands {
        assert!(command.reads_from.is_none_or(|from| from < script.commands.len()));
    }
});
