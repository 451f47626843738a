//! Flow files of mitmproxy from arbitrary bytes: flows and typed errors with places inside of the file; what was read is
//! written, and read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_flow::mitm::{FlowReader, FlowWriter};

fuzz_target!(|input: &[u8]| {
    let mut reader = FlowReader::new(input).max_flow_bytes(1 << 20);
    let mut flows = 0;
    while let Some(next) = reader.next() {
        match next {
            Ok(record) => {
                flows += 1;
                let mut file = Vec::new();
                FlowWriter::new(&mut file).write(&record).unwrap();
                let mut again = FlowReader::new(&file[..]);
                let back = again.next().unwrap().unwrap();
                // Not by value: no number is equal to NaN.
                assert_eq!(format!("{back:?}"), format!("{record:?}"));
                assert!(again.next().is_none());
                assert_eq!(again.unknown_keys().count(), 0);
                let mut twice = Vec::new();
                FlowWriter::new(&mut twice).write(&back).unwrap();
                assert_eq!(twice, file);
            }
            Err(error) => {
                assert!(error.offset <= input.len() as u64 && error.flows == flows, "{error}");
            }
        }
    }
    assert!(reader.offset() <= input.len() as u64);
});
