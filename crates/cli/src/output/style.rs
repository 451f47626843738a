//! Colours, and text that can't play tricks on a terminal.

use std::borrow::Cow;
use std::env;
use std::fmt::Write as _;

/// Whether and how to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

/// A colour of the eight that every terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Success, and GET.
    Green,
    /// Errors, and DELETE.
    Red,
    /// Redirects, and other methods.
    Magenta,
    /// Header names, and marks.
    Blue,
    /// Warnings.
    Yellow,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { colours: false };

    /// Colours on a terminal, if neither `--no-color` nor `NO_COLOR` forbids them. `CLICOLOR_FORCE` wants them everywhere.
    pub fn detect(forbidden: bool, is_terminal: bool) -> Self {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: !forbidden && !no_color && (is_terminal || set("CLICOLOR_FORCE")),
        }
    }

    /// Appends text in bold, and in a colour if one is given.
    pub fn bold(self, out: &mut String, text: &str, colour: Option<Colour>) {
        if !self.colours || text.is_empty() {
            return out.push_str(text);
        }
        out.push_str("\x1b[");
        if let Some(colour) = colour {
            let _ = write!(out, "{};", code(colour));
        }
        out.push_str("1m");
        out.push_str(text);
        out.push_str("\x1b[0m");
    }

    /// Appends text in a colour.
    pub fn colour(self, out: &mut String, text: &str, colour: Colour) {
        if !self.colours || text.is_empty() {
            return out.push_str(text);
        }
        let _ = write!(out, "\x1b[{}m{text}\x1b[0m", code(colour));
    }
}

fn code(colour: Colour) -> u8 {
    match colour {
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Blue => 34,
        Colour::Magenta => 35,
    }
}

/// Replaces what a terminal would act upon: control characters by their pictures (as mitmproxy does), the second set of them
/// and characters that turn the writing direction by U+FFFD. `multiline` leaves line ends and tabs alone.
pub fn harmless(text: &str, multiline: bool) -> Cow<'_, str> {
    let acts = |c: char| {
        (c.is_control() && !(multiline && matches!(c, '\n' | '\t')))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let picture = |c: char| match c {
        '\u{7f}' => '\u{2421}',
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        _ => '\u{fffd}',
    };
    Cow::Owned(
        text.chars()
            .map(|c| if acts(c) { picture(c) } else { c })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_wanted() {
        let mut out = String::new();
        Style::PLAIN.bold(&mut out, "GET", Some(Colour::Green));
        assert_eq!(out, "GET");
        out.clear();
        let style = Style { colours: true };
        style.bold(&mut out, "GET", Some(Colour::Green));
        style.colour(&mut out, "x", Colour::Blue);
        style.bold(&mut out, "", None);
        assert_eq!(out, "\x1b[32;1mGET\x1b[0m\x1b[34mx\x1b[0m");
    }

    #[test]
    fn a_terminal_is_not_played_with() {
        assert_eq!(harmless("plain ü", false), "plain ü");
        assert_eq!(harmless("\x1b[2J\r\n", false), "␛[2J␍␊");
        assert_eq!(harmless("a\n\tb\r", true), "a\n\tb␍");
        assert_eq!(harmless("\u{9b}2J\u{202e}", true), "\u{fffd}2J\u{fffd}");
    }
}
