//! Records and segments: however a hello is cut, it is the same hello.

use proptest::prelude::*;
use tollgate_wire::tls::{
    HelloError, HelloStatus, MAX_HELLO_INPUT, MAX_HELLO_LEN, MAX_HELLO_RECORDS, parse_client_hello,
};

use crate::builder::{HelloBuilder, complete, handshake, records, vec16};

/// The answer of every prefix is `Partial` until there is another one, which then stands.
fn settled(input: &[u8]) -> Result<HelloStatus, HelloError> {
    let mut answer = Ok(HelloStatus::Partial);
    for len in 0..=input.len() {
        let now = parse_client_hello(&input[..len]);
        assert!(
            answer == Ok(HelloStatus::Partial) || now == answer,
            "at {len}: {answer:?} became {now:?}"
        );
        answer = now;
    }
    answer
}

#[test]
fn every_truncation_is_partial() {
    let message = HelloBuilder::browser().message();
    for input in [
        records(&message, &[]),
        records(&message, &[1, 2, 3, 100]),
        records(&message, &vec![1; message.len()]),
    ] {
        for len in 0..input.len() {
            assert_eq!(parse_client_hello(&input[..len]), Ok(HelloStatus::Partial));
        }
        assert_eq!(complete(&input).raw_len, input.len());
    }
}

#[test]
fn what_follows_the_hello_is_left_alone() {
    let input = HelloBuilder::browser().record();
    let hello = complete(&input);
    for follow in [
        &[0x17, 3, 3, 0, 5][..],
        &[0x14, 3, 3, 0, 1, 1],
        b"anything",
        &input,
    ] {
        assert_eq!(complete(&[&input[..], follow].concat()), hello);
    }
}

#[test]
fn bytes_that_cannot_begin_a_hello_are_refused_at_once() {
    for (input, expected) in [
        (&[0x17][..], HelloError::NotTls),
        (b"G", HelloError::NotTls),
        (&[0x80], HelloError::NotTls),
        (&[0x16, 2], HelloError::NotTls),
        (&[0x16, 3, 5], HelloError::NotTls),
        (&[0x16, 3, 1, 0, 9, 2], HelloError::NotClientHello),
        (&[0x16, 3, 1, 0, 9, 1, 1, 0, 0], HelloError::TooLarge),
    ] {
        assert_eq!(settled(input), Err(expected));
        let before = &input[..input.len() - 1];
        assert_eq!(parse_client_hello(before), Ok(HelloStatus::Partial));
    }
}

#[test]
fn records_that_break_rfc_8446_are_malformed() {
    let start = records(&HelloBuilder::browser().message()[..40], &[]);
    for bad in [
        // An empty fragment, one that is too long, a record of another type or version in the middle.
        &[0x16, 3, 1, 0, 0][..],
        &[0x16, 3, 1, 0x40, 1],
        &[0x15],
        &[0x16, 2],
    ] {
        let input = [&start[..], bad].concat();
        let answer = settled(&input);
        assert!(
            matches!(answer, Err(HelloError::Malformed(_))),
            "{answer:?}"
        );
    }
    // Another message behind the hello, in its record.
    let message = HelloBuilder::browser().message();
    let input = records(&[message, handshake(20, &[])].concat(), &[]);
    assert!(matches!(settled(&input), Err(HelloError::Malformed(_))));
}

#[test]
fn the_limits_are_reached_and_not_passed() {
    let overhead = HelloBuilder::new().with(21, &[]).message().len();
    let padded = |len: usize| HelloBuilder::new().with(21, &vec![0; len - overhead]);
    let longest = padded(MAX_HELLO_LEN).message();
    assert_eq!(longest.len(), MAX_HELLO_LEN);
    let input = records(&longest, &[]);
    assert_eq!(complete(&input).raw_len, input.len());
    let longer = [&[1, 1, 0, 0][..], &[0; 8]].concat();
    let answer = parse_client_hello(&records(&longer, &[]));
    assert_eq!(answer, Err(HelloError::TooLarge));

    // As many records as there may be, the last of them carrying all the rest.
    let lengths = |records: usize| vec![1; records - 1];
    let message = padded(MAX_HELLO_RECORDS + 1000).message();
    let input = records(&message, &lengths(MAX_HELLO_RECORDS));
    assert_eq!(complete(&input).raw_len, input.len());
    let input = records(&message, &lengths(MAX_HELLO_RECORDS + 1));
    assert_eq!(parse_client_hello(&input), Err(HelloError::TooManyRecords));

    let longest = records(&longest, &[16; MAX_HELLO_RECORDS]);
    assert_eq!(longest.len(), MAX_HELLO_INPUT);
    assert_eq!(complete(&longest).raw_len, MAX_HELLO_INPUT);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_fragmentation_gives_the_same_hello(
        lengths in prop::collection::vec(prop_oneof![1..8_usize, 1..200_usize], 0..64),
    ) {
        let builder = HelloBuilder::browser();
        let input = records(&builder.message(), &lengths);
        let mut expected = builder.parse();
        expected.raw_len = input.len();
        prop_assert_eq!(settled(&input), Ok(HelloStatus::Complete(Box::new(expected))));
    }

    #[test]
    fn an_answer_stands_whatever_follows(
        start in prop::sample::select(vec![&[][..], &[0x16], &[0x16, 3, 1, 0], &[0x16, 3, 1, 0, 40, 1, 0, 0]]),
        tail in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(3), Just(0x16), any::<u8>()], 0..96),
    ) {
        let _ = settled(&[start, &tail].concat());
    }

    #[test]
    fn a_changed_byte_gives_an_answer_that_stands(
        lengths in prop::collection::vec(1..300_usize, 0..4),
        index in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut input = records(&HelloBuilder::browser().message(), &lengths);
        let index = index.index(input.len());
        input[index] = byte;
        let _ = settled(&input);
    }

    #[test]
    fn any_bytes_in_a_framed_body_are_survived(body in prop::collection::vec(any::<u8>(), 0..400)) {
        let message = handshake(1, &body);
        let _ = parse_client_hello(&[&[0x16, 3, 3][..], &vec16(&message)].concat());
    }
}
