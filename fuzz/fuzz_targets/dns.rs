//! DNS messages from arbitrary bytes: an error changes nothing, a change keeps every length, and a second look
//! finds nothing more. The input is also read as the parameters of an HTTPS record in a good response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_wire::dns::{self, Strip};

fuzz_target!(|input: &[u8]| {
    check(input);
    if let Ok(len) = u16::try_from(3 + input.len()) {
        let mut answer = b"\0\0\x80\0\0\0\0\x01\0\0\0\0\0\0\x41\0\x01\0\0\x0e\x10".to_vec();
        answer.extend(len.to_be_bytes());
        answer.extend(b"\0\x01\0");
        answer.extend_from_slice(input);
        check(&answer);
    }
});

fn check(input: &[u8]) {
    if let Ok(Some(question)) = dns::first_question(input) {
        assert!(!question.name.is_empty() && question.name.len() <= 1012);
        assert!(
            question
                .to_string()
                .bytes()
                .all(|byte| (0x20..0x7f).contains(&byte))
        );
    }
    let mut message = input.to_vec();
    match dns::strip(&mut message, Strip::ALL) {
        Ok(true) => {
            assert_eq!(message.len(), input.len());
            assert_ne!(message, input);
            assert_eq!(dns::strip(&mut message, Strip::ALL), Ok(false));
            assert_eq!(dns::first_question(&message), dns::first_question(input));
            for (ech, h3) in [(true, false), (false, true)] {
                let mut partly = input.to_vec();
                dns::strip(&mut partly, Strip { ech, h3 }).expect("it was read before");
                dns::strip(&mut partly, Strip::ALL).expect("ours");
                assert_eq!(partly, message);
            }
        }
        Ok(false) | Err(_) => assert_eq!(message, input),
    }
}
