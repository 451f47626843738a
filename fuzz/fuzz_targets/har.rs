//! HAR files from arbitrary bytes: flows and typed errors; what was read is written, and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_flow::har::{HarWriter, read_har};

fuzz_target!(|input: &[u8]| {
    let mut writer = HarWriter::new(Vec::new());
    let mut entries = 0;
    let _ = read_har(input, |entry| {
        if let Ok(record) = entry {
            assert!(writer.write(&record).unwrap());
            entries += 1;
        }
        true
    });
    let file = writer.finish().unwrap();
    let mut again = 0;
    read_har(&file[..], |entry| {
        entry.unwrap();
        again += 1;
        true
    })
    .unwrap();
    assert_eq!(again, entries);
});
