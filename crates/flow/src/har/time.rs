//! Times as ISO 8601 writes them.

/// In UTC to the microsecond, as Python's `isoformat` shows it: without a fraction where there is none.
pub(super) fn iso_format(seconds: f64) -> String {
    // To the nearest microsecond, ties to even.
    let whole = seconds.floor();
    let mut micros = ((seconds - whole) * 1e6).round_ties_even() as i64;
    // What no calendar has becomes its end.
    let mut whole = whole.clamp(-62_135_596_800.0, 253_402_300_799.0) as i64;
    if micros >= 1_000_000 {
        micros -= 1_000_000;
        whole += 1;
    }
    let (days, second) = (whole.div_euclid(86_400), whole.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let fraction = match micros {
        0 => String::new(),
        micros => format!(".{micros:06}"),
    };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}+00:00",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Seconds since the epoch. A time without an offset counts as UTC.
pub(super) fn parse_iso(text: &str) -> Option<f64> {
    let text = text.trim();
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day) as f64;
    let Some(time) = rest.strip_prefix(['T', 't', ' ']) else {
        return rest.is_empty().then_some(days * 86_400.0);
    };
    let zone = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at_checked(zone)?;
    let offset = match zone {
        "" | "Z" | "z" => 0.0,
        zone => {
            let (sign, zone) = zone.split_at_checked(1)?;
            let minutes = match zone.split_once(':') {
                Some((hours, minutes)) => unsigned(hours)? * 60.0 + unsigned(minutes)?,
                None if zone.len() == 4 => {
                    let (hours, minutes) = zone.split_at_checked(2)?;
                    unsigned(hours)? * 60.0 + unsigned(minutes)?
                }
                None => unsigned(zone)? * 60.0,
            };
            if sign == "-" {
                -minutes * 60.0
            } else {
                minutes * 60.0
            }
        }
    };
    let mut parts = clock.splitn(3, ':');
    let (hours, minutes) = (unsigned(parts.next()?)?, unsigned(parts.next()?)?);
    let seconds = match parts.next() {
        Some(seconds) => unsigned(&seconds.replace(',', "."))?,
        None => 0.0,
    };
    // Whole seconds first, so that the fraction is not rounded twice.
    let fraction = seconds.fract();
    Some(days * 86_400.0 + hours * 3600.0 + minutes * 60.0 + seconds.trunc() - offset + fraction)
}

fn unsigned(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    (text.starts_with(|c: char| c.is_ascii_digit()) && number < 100.0).then_some(number)
}

/// Howard Hinnant's `civil_from_days`: year, month and day of a day since 1970.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// The inverse of it.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_python_writes_them() {
        assert_eq!(iso_format(946681200.0), "1999-12-31T23:00:00+00:00");
        assert_eq!(
            iso_format(1700000000.125),
            "2023-11-14T22:13:20.125000+00:00"
        );
        assert_eq!(iso_format(0.9999999), "1970-01-01T00:00:01+00:00");
        assert_eq!(iso_format(-1.5), "1969-12-31T23:59:58.500000+00:00");
        assert_eq!(iso_format(f64::INFINITY), "9999-12-31T23:59:59+00:00");
        assert_eq!(iso_format(f64::NAN), "1970-01-01T00:00:00+00:00");
    }

    #[test]
    fn times_are_read_in_the_forms_that_programs_write() {
        for (text, seconds) in [
            ("2023-11-14T22:13:20.125Z", Some(1700000000.125)),
            ("2023-11-14T22:13:20.125+00:00", Some(1700000000.125)),
            ("2023-11-14T23:13:20+01:00", Some(1700000000.0)),
            ("2023-11-14T16:43:20-0530", Some(1700000000.0)),
            ("2023-11-14 22:13:20", Some(1700000000.0)),
            ("2023-11-14T22:13", Some(1699999980.0)),
            ("2023-11-14", Some(1699920000.0)),
            ("2000-02-29T00:00:00Z", Some(951782400.0)),
            ("", None),
            ("2023-13-14", None),
            ("2023-11-14T", None),
            ("2023-11-14T22", None),
            ("2023-11-14Tx:y", None),
            ("yesterday!", None),
        ] {
            assert_eq!(parse_iso(text), seconds, "{text}");
        }
        for day in [-719_000, -1, 0, 59, 60, 11_016, 20_000, 2_000_000] {
            let (year, month, of_month) = civil_from_days(day);
            assert_eq!(days_from_civil(year, month, of_month), day);
        }
    }
}
