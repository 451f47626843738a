//! What models used, in all: the last thing that is said.

use std::fmt::Write as _;

use tollgate_screen::usage::{Ledger, Spent};

use super::line::{pretty_cost, pretty_count};
use super::style::harmless;

/// Rows that are shown; the rest is one line.
const ROWS: usize = 10;

/// The totals, and a line for each model, host, process and user, the most expensive first; nothing if no model was
/// asked.
pub fn usage_totals(ledger: &Ledger) -> Option<String> {
    let (total, refused) = (ledger.total(), ledger.refused());
    if total.answers == 0 && refused == 0 {
        return None;
    }
    let currency = harmless(ledger.prices().currency(), false);
    let mut out = String::from("Models used: ");
    amounts(&mut out, &total, &currency);
    if refused > 0 {
        let _ = write!(out, "; {refused} refused");
    }
    out.push('\n');
    let rows = ledger.rows();
    for (asker, spent) in rows.iter().take(ROWS) {
        let unknown = |name: &str| {
            if name.is_empty() {
                "?".to_owned()
            } else {
                harmless(name, false).into_owned()
            }
        };
        let _ = write!(
            out,
            "  {} at {}",
            unknown(&asker.model),
            unknown(&asker.host)
        );
        for name in [asker.process.as_deref(), asker.user.as_deref()]
            .into_iter()
            .flatten()
        {
            let _ = write!(out, ", {}", harmless(name, false));
        }
        out.push_str(": ");
        amounts(&mut out, spent, &currency);
        out.push('\n');
    }
    if rows.len() > ROWS {
        let _ = writeln!(out, "  and {} more", rows.len() - ROWS);
    }
    Some(out)
}

fn amounts(out: &mut String, spent: &Spent, currency: &str) {
    let word = if spent.answers == 1 {
        "answer"
    } else {
        "answers"
    };
    let input = spent.input.saturating_add(spent.cache_write);
    let _ = write!(
        out,
        "{} {word}, {} tokens in",
        spent.answers,
        pretty_count(input)
    );
    if spent.cache_read > 0 {
        let _ = write!(out, " ({} cached)", pretty_count(spent.cache_read));
    }
    let _ = write!(out, ", {} out", pretty_count(spent.output));
    if spent.unpriced < spent.answers {
        let _ = write!(out, ", cost {}", pretty_cost(spent.cost()));
        if !currency.is_empty() {
            let _ = write!(out, " {currency}");
        }
        if spent.unpriced > 0 {
            let _ = write!(out, " ({} without a price)", spent.unpriced);
        }
    }
    if spent.estimated > 0 {
        let _ = write!(out, ", {} estimated", spent.estimated);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tollgate_screen::usage::{Asker, Prices};

    use super::*;

    #[test]
    fn totals_name_who_asked() {
        let prices = "currency = 'EUR'\n[[price]]\nmodel = 'm'\ninput = 1\noutput = 2\n";
        let ledger = Ledger::new(Prices::parse(prices).unwrap(), Vec::new());
        assert_eq!(usage_totals(&ledger), None);
        let asker = |model: &str, process: Option<&str>| Asker {
            model: model.to_owned(),
            host: "api.example".into(),
            process: process.map(str::to_owned),
            user: None,
        };
        let spent = Spent {
            answers: 1,
            input: 1_500_000,
            output: 250_000,
            cache_read: 9000,
            ..Spent::default()
        };
        ledger.charge(&asker("m", Some("python3")), spent, Instant::now());
        let spent = Spent {
            answers: 1,
            estimated: 1,
            output: 7,
            ..Spent::default()
        };
        ledger.charge(&asker("other", None), spent, Instant::now());
        ledger.count_refused();
        assert_eq!(
            usage_totals(&ledger).unwrap(),
            "Models used: 2 answers, 1.5m tokens in (9.0k cached), 250.0k out, cost 2.0090 EUR (1 without a price), \
             1 estimated; 1 refused\n  \
             m at api.example, python3: 1 answer, 1.5m tokens in (9.0k cached), 250.0k out, cost 2.0090 EUR\n  \
             other at api.example: 1 answer, 0 tokens in, 7 out, 1 estimated\n"
        );
    }
}
