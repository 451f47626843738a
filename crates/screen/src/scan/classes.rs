//! Which bytes belong to an alphabet, 64 at a time and a bit for each: what runs of an encoding and numbers are found by.

use std::ops::Range;

use wide::i8x16;

/// So many bytes are asked at once.
const WORD: usize = 64;

/// Where the next 16 bytes in a row begin that may be base64 or hexadecimal, if they begin within `starts`.
pub(super) fn next_run(text: &[u8], starts: Range<usize>) -> Option<usize> {
    let row = |bits: u128| {
        let two = bits & bits >> 1;
        let four = two & two >> 2;
        let eight = four & four >> 4;
        eight & eight >> 8
    };
    let mut at = starts.start;
    let mut now = in_run_bits(&word(text, at));
    while at < starts.end {
        let next = in_run_bits(&word(text, at + WORD));
        let found = row(u128::from(now) | u128::from(next) << WORD) as u64;
        if found != 0 {
            let start = at + found.trailing_zeros() as usize;
            return (start < starts.end).then_some(start);
        }
        at += WORD;
        now = next;
    }
    None
}

/// Where the next eight digits begin that stand in one piece or as twice four with a space or a hyphen between, if they
/// begin within `starts`: no payment card and no bank account is without.
pub(super) fn next_number(text: &[u8], starts: Range<usize>) -> Option<usize> {
    let mut at = starts.start;
    let mut now = number_bits(&word(text, at));
    while at < starts.end {
        let next = number_bits(&word(text, at + WORD));
        let digits = u128::from(now.0) | u128::from(next.0) << WORD;
        let two = digits & digits >> 1;
        let four = two & two >> 2;
        if four as u64 != 0 {
            let between = u128::from(now.1) | u128::from(next.1) << WORD;
            let found = (four & (four >> 4 | (between >> 4 & four >> 5))) as u64;
            if found != 0 {
                let start = at + found.trailing_zeros() as usize;
                return (start < starts.end).then_some(start);
            }
        }
        at += WORD;
        now = next;
    }
    None
}

/// The bytes from a place on; behind the text are zeros, which belong to nothing.
fn word(text: &[u8], at: usize) -> [u8; WORD] {
    let rest = text.get(at..).unwrap_or_default();
    match rest.first_chunk() {
        Some(word) => *word,
        None => {
            let mut word = [0; WORD];
            for (to, from) in word.iter_mut().zip(rest) {
                *to = *from;
            }
            word
        }
    }
}

/// The alphabets of base64, both, and of hexadecimal.
#[expect(
    clippy::indexing_slicing,
    reason = "a byte can't be outside a table of 256"
)]
pub(super) fn in_run(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            let b = byte as u8;
            table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_');
            byte += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

/// A bit for each byte that belongs to a run.
fn in_run_bits(bytes: &[u8; WORD]) -> u64 {
    bits(bytes, |vector| {
        let letter = within(vector | i8x16::splat(0x20), b'a', 26);
        let sign = [b'+', b'/', b'-', b'_'].map(|sign| equal(vector, sign));
        sign.into_iter()
            .fold(letter | within(vector, b'0', 10), |any, sign| any | sign)
    })
}

/// A bit for each digit, and one for each space or hyphen.
fn number_bits(bytes: &[u8; WORD]) -> (u64, u64) {
    (
        bits(bytes, |vector| within(vector, b'0', 10)),
        bits(bytes, |vector| equal(vector, b' ') | equal(vector, b'-')),
    )
}

fn bits(bytes: &[u8; WORD], belongs: impl Fn(i8x16) -> i8x16) -> u64 {
    let (vectors, _) = bytes.as_chunks::<16>();
    vectors.iter().rev().fold(0, |bits, sixteen| {
        let vector = i8x16::new(sixteen.map(|byte| byte as i8));
        bits << 16 | u64::from(belongs(vector).to_bitmask())
    })
}

/// Which bytes are among `count` that follow one another from `first` on. Comparing is signed: they are moved to where
/// the least are.
fn within(vector: i8x16, first: u8, count: u8) -> i8x16 {
    let moved = vector + i8x16::splat(0x80_u8.wrapping_sub(first) as i8);
    moved.simd_lt(i8x16::splat(0x80_u8.wrapping_add(count) as i8))
}

fn equal(vector: i8x16, byte: u8) -> i8x16 {
    vector.simd_eq(i8x16::splat(byte as i8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_what_one_byte_after_the_other_says() {
        for at in 0..WORD {
            for byte in 0..=u8::MAX {
                let bit = |belongs: bool| u64::from(belongs) << at;
                let mut bytes = [b'\n'; WORD];
                bytes[at] = byte;
                assert_eq!(in_run_bits(&bytes), bit(in_run(byte)), "{byte}");
                let number = (bit(byte.is_ascii_digit()), bit(matches!(byte, b' ' | b'-')));
                assert_eq!(number_bits(&bytes), number, "{byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_next_run_is_the_first_of_sixteen(
            text in "(a{0,40}[. ]){0,6}[aZ+/_-]{0,90}",
            from in 0_usize..200,
            len in 0_usize..200,
        ) {
            let text = text.as_bytes();
            let from = from.min(text.len());
            let starts = from..(from + len).min(text.len());
            let first = starts.clone().find(|&start| {
                text.get(start..start + 16).is_some_and(|run| run.iter().all(|&byte| in_run(byte)))
            });
            prop_assert_eq!(next_run(text, starts), first);
        }

        #[test]
        fn the_next_number_is_the_first_of_eight_digits(
            text in "([0-9]{0,9}[- a]){0,20}[0-9]{0,90}",
            from in 0_usize..200,
            len in 0_usize..200,
        ) {
            let text = text.as_bytes();
            let from = from.min(text.len());
            let starts = from..(from + len).min(text.len());
            let digits = |range: Range<usize>| {
                text.get(range).is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
            };
            let first = starts.clone().find(|&start| {
                let apart = matches!(text.get(start + 4), Some(b' ' | b'-'));
                digits(start..start + 4) && (digits(start + 4..start + 8) || apart && digits(start + 5..start + 9))
            });
            prop_assert_eq!(next_number(text, starts), first);
        }
    }
}
