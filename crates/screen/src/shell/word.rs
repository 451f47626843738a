//! Expanding a word: quotes, variables, braces, fields.

use super::{MAX_ARGV, MAX_SCRIPT};

/// At most this many words come out of one.
const MAX_FIELDS: usize = MAX_ARGV;
/// At most this many characters are in one word: as many as a script may have, for a shorter one would hide what stands
/// at the end of a long string.
const MAX_WORD: usize = MAX_SCRIPT;

/// Words that mean something where a command begins.
const KEYWORDS: [&str; 20] = [
    "if", "then", "else", "elif", "fi", "do", "done", "while", "until", "!", "{", "}", "time",
    "coproc", "esac", "function", "for", "select", "case", "[[",
];

/// The keyword that these characters are, if they are one.
pub(super) fn keyword(word: &[char]) -> Option<&'static str> {
    let is =
        |keyword: &&str| keyword.len() == word.len() && keyword.chars().eq(word.iter().copied());
    KEYWORDS.into_iter().find(is)
}

/// A character of a word, and what may still happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Written without quotes: braces and tildes still mean something.
    Bare(char),
    /// Quoted or escaped: it stands for itself.
    Quoted(char),
    /// From an unquoted expansion: it may be split into fields.
    Expanded(char),
    /// A pair of quotes, even an empty one, makes a word.
    Mark,
}

/// A word in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// The names of commands that were substituted and whose output isn't known.
    pub(super) substituted: Option<String>,
    /// It was too long, and its end is missing.
    pub(super) cut: bool,
}

/// What expanding may still cost.
pub(super) struct Room {
    /// How many characters may be copied.
    pub(super) left: usize,
    /// Something found no room.
    pub(super) cut: bool,
}

impl Word {
    pub(super) fn push(&mut self, piece: Piece) {
        if self.pieces.len() < MAX_WORD {
            self.pieces.push(piece);
        } else {
            self.cut = true;
        }
    }

    pub(super) fn quoted(&mut self, text: &str) {
        for c in text.chars() {
            self.push(Piece::Quoted(c));
        }
    }

    pub(super) fn expanded(&mut self, text: &str, quoted: bool) {
        for c in text.chars() {
            self.push(if quoted {
                Piece::Quoted(c)
            } else {
                Piece::Expanded(c)
            });
        }
    }

    /// The text without splitting, as an assignment takes it.
    pub(super) fn text(&self) -> String {
        self.pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Bare(c) | Piece::Quoted(c) | Piece::Expanded(c) => Some(*c),
                Piece::Mark => None,
            })
            .collect()
    }

    /// The keyword that the word is, if it is one: bare characters alone, for a keyword can't be quoted.
    pub(super) fn keyword(&self) -> Option<&'static str> {
        KEYWORDS.into_iter().find(|keyword| self.is_bare(keyword))
    }

    /// Whether the word is this text in bare characters.
    pub(super) fn is_bare(&self, text: &str) -> bool {
        text.len() == self.pieces.len()
            && text
                .chars()
                .zip(&self.pieces)
                .all(|(c, piece)| *piece == Piece::Bare(c))
    }

    /// Braces, then fields, as long as there is room for more words. `room` is how many characters may still be copied
    /// for that, here and for the words to come; where it is at its end, braces stay as they are.
    pub(super) fn fields(&self, ifs: &str, out: &mut Vec<String>, room: &mut Room) {
        if !self.pieces.contains(&Piece::Bare('{')) {
            split(&self.pieces, ifs, out, room);
            return;
        }
        let mut words = Vec::new();
        braces(&self.pieces, &mut words, room);
        for word in words {
            split(&word, ifs, out, room);
        }
    }
}

/// `a{b,c}d` is `abd acd`, and `{1..3}` is `1 2 3`.
fn braces(pieces: &[Piece], out: &mut Vec<Vec<Piece>>, room: &mut Room) {
    if out.len() >= MAX_FIELDS {
        room.cut = true;
        return;
    }
    let mut depth = 0_usize;
    let mut open = None;
    let mut commas = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Bare('{') => {
                if depth == 0 {
                    open = Some(at);
                    commas.clear();
                }
                depth += 1;
            }
            Piece::Bare(',') if depth == 1 => commas.push(at),
            Piece::Bare('}') if depth > 0 => {
                depth -= 1;
                if depth > 0 {
                    continue;
                }
                let Some(start) = open else { continue };
                let before = pieces.get(..start).unwrap_or_default();
                let after = pieces.get(at + 1..).unwrap_or_default();
                let inner = pieces.get(start + 1..at).unwrap_or_default();
                let mut choices: Vec<Vec<Piece>> = Vec::new();
                if commas.is_empty() {
                    match range(inner) {
                        Some(range) => choices = range,
                        None => continue,
                    }
                } else {
                    let mut from = start + 1;
                    for &comma in commas.iter().chain([&at]) {
                        choices.push(pieces.get(from..comma).unwrap_or_default().to_vec());
                        from = comma + 1;
                    }
                }
                for choice in choices {
                    let length = before.len() + choice.len() + after.len();
                    let Some(left) = room.left.checked_sub(length) else {
                        room.cut = true;
                        break;
                    };
                    room.left = left;
                    let mut whole = before.to_vec();
                    whole.extend(choice);
                    whole.extend_from_slice(after);
                    braces(&whole, out, room);
                }
                return;
            }
            _ => {}
        }
    }
    out.push(pieces.to_vec());
}

fn range(inner: &[Piece]) -> Option<Vec<Vec<Piece>>> {
    let text: Option<String> = inner
        .iter()
        .map(|piece| match piece {
            Piece::Bare(c) => Some(*c),
            _ => None,
        })
        .collect();
    let text = text?;
    let (from, to) = text.split_once("..")?;
    let to = to.split("..").next()?;
    let word = |text: &str| text.chars().map(Piece::Bare).collect::<Vec<_>>();
    if let (Ok(from), Ok(to)) = (from.parse::<i64>(), to.parse::<i64>()) {
        let (low, high) = (from.min(to), from.max(to));
        let high = high.min(low.saturating_add(8));
        return Some((low..=high).map(|n| word(&n.to_string())).collect());
    }
    let mut letters = (from.chars(), to.chars());
    match (
        letters.0.next(),
        letters.0.next(),
        letters.1.next(),
        letters.1.next(),
    ) {
        (Some(from), None, Some(to), None) => {
            Some((from..=to).take(26).map(|c| vec![Piece::Bare(c)]).collect())
        }
        _ => None,
    }
}

fn split(word: &[Piece], ifs: &str, out: &mut Vec<String>, room: &mut Room) {
    let mut put = |field: String| {
        if out.len() < MAX_FIELDS {
            out.push(field);
        } else {
            room.cut = true;
        }
    };
    let mut field = String::with_capacity(word.len());
    let mut exists = false;
    for piece in word {
        match piece {
            Piece::Mark => exists = true,
            Piece::Expanded(c) if ifs.contains(*c) => {
                if exists {
                    put(std::mem::take(&mut field));
                }
                exists = false;
            }
            Piece::Bare(c) | Piece::Quoted(c) | Piece::Expanded(c) => {
                field.push(*c);
                exists = true;
            }
        }
    }
    if exists {
        put(field);
    }
}
