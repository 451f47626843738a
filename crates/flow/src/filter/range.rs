//! Numbers and ranges of them, as `~size`, `~duration` and `~status` take them.

use std::fmt;

use super::operators::Argument;

/// Numbers that lie between two bounds, as they were written.
#[derive(Clone, Debug)]
pub(super) struct Range {
    source: String,
    /// The smallest that lies in it, and the largest; either may itself be left out.
    low: Bound,
    high: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    None,
    Including(f64),
    Excluding(f64),
}

impl Range {
    /// Reads `5`, `=5`, `>5`, `>=5`, `<5`, `<=5`, `5..7`, with the units of the argument.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn parse(text: &str, argument: Argument) -> Result<Self, String> {
        let number = |text: &str| match argument {
            Argument::Size => scaled(text, SIZES),
            Argument::Duration => scaled(text, DURATIONS),
            _ => scaled(text, &[("", 1.0)]),
        };
        let expected = || match argument {
            Argument::Size => "expected a size such as >10k, <=1m or 10k..20k".to_owned(),
            Argument::Duration => "expected a time such as >500ms, <=2s or 1s..2s".to_owned(),
            _ => "expected a status such as 404, 5xx, >=400 or 400..404".to_owned(),
        };
        let text = text.trim();
        let bounds = if let Some((low, high)) = text.split_once("..") {
            number(low)
                .zip(number(high))
                .map(|(low, high)| (Bound::Including(low), Bound::Including(high)))
        } else if let Some(rest) = text.strip_prefix(">=") {
            number(rest).map(|low| (Bound::Including(low), Bound::None))
        } else if let Some(rest) = text.strip_prefix('>') {
            number(rest).map(|low| (Bound::Excluding(low), Bound::None))
        } else if let Some(rest) = text.strip_prefix("<=") {
            number(rest).map(|high| (Bound::None, Bound::Including(high)))
        } else if let Some(rest) = text.strip_prefix('<') {
            number(rest).map(|high| (Bound::None, Bound::Excluding(high)))
        } else if let Some(class) = text
            .strip_suffix("xx")
            .filter(|_| argument == Argument::Status)
        {
            let class = number(class).filter(|class| (1.0..=9.0).contains(class));
            class.map(|class| {
                (
                    Bound::Including(class * 100.0),
                    Bound::Including(class * 100.0 + 99.0),
                )
            })
        } else {
            let equal = number(text.strip_prefix('=').unwrap_or(text));
            equal.map(|equal| (Bound::Including(equal), Bound::Including(equal)))
        };
        let (low, high) = bounds.ok_or_else(expected)?;
        Ok(Self {
            source: text.to_owned(),
            low,
            high,
        })
    }

    /// Whether a number lies in it.
    pub fn contains(&self, number: f64) -> bool {
        let above = match self.low {
            Bound::None => true,
            Bound::Including(low) => number >= low,
            Bound::Excluding(low) => number > low,
        };
        above
            && match self.high {
                Bound::None => true,
                Bound::Including(high) => number <= high,
                Bound::Excluding(high) => number < high,
            }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

const SIZES: &[(&str, f64)] = &[
    ("", 1.0),
    ("b", 1.0),
    ("k", 1024.0),
    ("kb", 1024.0),
    ("m", 1_048_576.0),
    ("mb", 1_048_576.0),
    ("g", 1_073_741_824.0),
    ("gb", 1_073_741_824.0),
];

/// In seconds.
const DURATIONS: &[(&str, f64)] = &[
    ("", 1.0),
    ("s", 1.0),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
];

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let number: f64 = digits.parse().ok()?;
    let unit = unit.trim().to_ascii_lowercase();
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, scale)| number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_bounds_and_units() {
        let size = |text: &str| Range::parse(text, Argument::Size).unwrap();
        assert!(size(">1k").contains(1025.0) && !size(">1k").contains(1024.0));
        assert!(size(">=1K").contains(1024.0));
        assert!(size("<1.5kb").contains(1535.0) && !size("<1.5kb").contains(1536.0));
        assert!(size("<= 7 b").contains(7.0));
        assert!(size("=0").contains(0.0) && !size("0").contains(1.0));
        assert!(size("1..2m").contains(1.0) && size("1..2m").contains(2_097_152.0));
        let time = |text: &str| Range::parse(text, Argument::Duration).unwrap();
        assert!(time(">500ms").contains(0.6) && !time(">500ms").contains(0.5));
        assert!(time("1min..1h").contains(60.0));
        let status = |text: &str| Range::parse(text, Argument::Status).unwrap();
        assert!(status("4xx").contains(499.0) && !status("4xx").contains(500.0));
        assert!(status("404").contains(404.0));
        for (text, argument) in [
            ("", Argument::Size),
            (">", Argument::Size),
            ("4xx", Argument::Size),
            ("1q", Argument::Size),
            ("1..", Argument::Duration),
            ("1.2.3", Argument::Duration),
            ("xx", Argument::Status),
            ("0xx", Argument::Status),
            ("4k", Argument::Status),
            ("-1", Argument::Status),
        ] {
            assert!(Range::parse(text, argument).is_err(), "{text}");
        }
    }
}
