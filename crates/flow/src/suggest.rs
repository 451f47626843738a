//! What somebody may have meant.

/// The known name that is the fewest edits away, if that is few enough to be a slip.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (edit_distance(name, known), known))
        .min()
        .filter(|(distance, found)| *distance <= (found.len() / 3).clamp(1, 4))
        .map(|(_, found)| found)
}

/// What serde says of a key that it doesn't know, with the one that may have been meant; any other message as it is.
///
/// ```
/// let said = "unknown field `blok`, expected `block` or `allow`";
/// assert_eq!(tollgate_flow::with_suggestion(said), "unknown key 'blok'; did you mean 'block'?");
/// assert_eq!(tollgate_flow::with_suggestion("expected `=`"), "expected `=`");
/// ```
pub fn with_suggestion(message: &str) -> String {
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'));
    let Some((key, rest)) = unknown else {
        return message.to_owned();
    };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    match closest(key, known.iter().copied()) {
        Some(meant) => format!("unknown key '{key}'; did you mean '{meant}'?"),
        None => format!("unknown key '{key}'; there are {}", known.join(", ")),
    }
}

/// Levenshtein's, over bytes: names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let replaced = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
        assert_eq!(closest("blok", ["block", "allow"]), Some("block"));
        assert_eq!(closest("quux", ["block", "allow"]), None);
    }
}
