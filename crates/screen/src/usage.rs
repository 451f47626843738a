//! Tokens and what they cost: counted by model, host, process and user, and kept within budgets.
//!
//! A [`Ledger`] is told what each answer of a model used ([`Ledger::charge`]) and asked before each request
//! ([`Ledger::check`]). Prices come from a file of one's own ([`Prices`]): none are built in, because a price that is
//! out of date is worse than none.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tollgate_flow::with_suggestion;

use crate::llm::Usage;

/// Rows of the totals; what comes later is counted in a row without names.
const MAX_ROWS: usize = 4096;
/// What one budget with `each` counts apart; then those whose time is over are forgotten, and if there are none, the
/// next gets nothing.
const MAX_EACH: usize = 4096;
/// The longest name of a model that is kept.
const MAX_NAME: usize = 128;
/// Prices in one file.
const MAX_PRICES: usize = 4096;
/// The longest time of a budget.
const MAX_PER: Duration = Duration::from_secs(366 * 86_400);

/// Who asks a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The model, as the request names it; empty where it doesn't.
    pub model: String,
    /// The host that it is asked at.
    pub host: Arc<str>,
    /// The name of the client's process, where it runs on this machine.
    pub process: Option<String>,
    /// The proxy's user.
    pub user: Option<Arc<str>>,
}

impl Asker {
    /// Cuts a name that is too long to be kept.
    pub(crate) fn short(mut name: String) -> String {
        if name.len() > MAX_NAME {
            let end = (0..=MAX_NAME).rev().find(|&at| name.is_char_boundary(at));
            name.truncate(end.unwrap_or(0));
        }
        name
    }
}

/// What was used, of one answer or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Answers.
    pub answers: u64,
    /// Of these, those whose provider told no tokens or not all of them: they were estimated, four bytes to a token.
    pub estimated: u64,
    /// Of these, those of models without a price.
    pub unpriced: u64,
    /// Tokens of requests that were read anew.
    pub input: u64,
    /// Tokens of answers, thinking included.
    pub output: u64,
    /// Tokens of requests that came from the provider's cache.
    pub cache_read: u64,
    /// Tokens of requests that were put into it.
    pub cache_write: u64,
    /// What it cost, in billionths of the prices' currency.
    pub nanos: u64,
}

impl Spent {
    /// What the provider said of one answer.
    #[must_use]
    pub fn of(usage: &Usage) -> Self {
        Self {
            answers: 1,
            input: usage.input.unwrap_or(0),
            output: usage.output.unwrap_or(0),
            cache_read: usage.cache_read.unwrap_or(0),
            cache_write: usage.cache_write.unwrap_or(0),
            ..Self::default()
        }
    }

    /// The tokens that budgets count: all but those that came from the provider's cache.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.input
            .saturating_add(self.cache_write)
            .saturating_add(self.output)
    }

    /// What it cost, in the prices' currency.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Adds what others used.
    pub fn add(&mut self, other: &Self) {
        for (mine, more) in [
            (&mut self.answers, other.answers),
            (&mut self.estimated, other.estimated),
            (&mut self.unpriced, other.unpriced),
            (&mut self.input, other.input),
            (&mut self.output, other.output),
            (&mut self.cache_read, other.cache_read),
            (&mut self.cache_write, other.cache_write),
            (&mut self.nanos, other.nanos),
        ] {
            *mine = mine.saturating_add(more);
        }
    }
}

/// Prices of models.
///
/// ```
/// use tollgate_screen::usage::Prices;
///
/// let prices = Prices::parse(
///     "[[price]]\nmodel = 'small-*'\ninput = 0.15\noutput = 0.60\ncache_read = 0.075\n",
/// )?;
/// assert!(prices.has("small-2026-01") && !prices.has("large"));
/// # Ok::<(), tollgate_screen::usage::PricesError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Prices {
    rows: Vec<Price>,
    currency: String,
}

/// Per million tokens, in thousandths: a token costs so many billionths.
#[derive(Clone, Debug)]
struct Price {
    model: Glob,
    input: u64,
    output: u64,
    cache_read: u64,
    cache_write: u64,
}

/// What is wrong with a file of prices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PricesError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceFile {
    #[serde(default)]
    currency: String,
    price: Vec<PriceRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceRow {
    model: String,
    input: f64,
    output: f64,
    cache_read: Option<f64>,
    cache_write: Option<f64>,
}

impl Prices {
    /// Reads a file: `currency`, if you like, and a list of `[[price]]` with `model` (a name, `*` in it stands for
    /// anything), `input`, `output`, `cache_read` and `cache_write` (both: else the price of `input`), per million
    /// tokens. The first that fits a model counts.
    ///
    /// # Errors
    /// [`PricesError`], in words and with its line.
    pub fn parse(text: &str) -> Result<Self, PricesError> {
        let file: PriceFile = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().matches('\n').count() + 1;
            PricesError(format!("line {line}: {}", with_suggestion(error.message())))
        })?;
        if file.price.len() > MAX_PRICES {
            return Err(PricesError(format!("more than {MAX_PRICES} prices")));
        }
        let rows = file.price.into_iter().map(|row| {
            let price = |number: f64| {
                // A million a token is no price.
                if (0.0..=1e9).contains(&number) {
                    Ok((number * 1000.0).round() as u64)
                } else {
                    Err(PricesError(format!("{}: {number} is no price", row.model)))
                }
            };
            let input = price(row.input)?;
            Ok(Price {
                model: Glob::new(&row.model),
                input,
                output: price(row.output)?,
                cache_read: row.cache_read.map_or(Ok(input), price)?,
                cache_write: row.cache_write.map_or(Ok(input), price)?,
            })
        });
        Ok(Self {
            rows: rows.collect::<Result<_, PricesError>>()?,
            currency: file.currency,
        })
    }

    /// Whether there is a price for this model.
    #[must_use]
    pub fn has(&self, model: &str) -> bool {
        self.of(model).is_some()
    }

    /// The currency, as the file names it.
    #[must_use]
    pub fn currency(&self) -> &str {
        &self.currency
    }

    fn of(&self, model: &str) -> Option<&Price> {
        self.rows.iter().find(|row| row.model.matches(model))
    }

    /// Billionths.
    fn cost(&self, model: &str, spent: &Spent) -> Option<u64> {
        let price = self.of(model)?;
        let parts = [
            (spent.input, price.input),
            (spent.output, price.output),
            (spent.cache_read, price.cache_read),
            (spent.cache_write, price.cache_write),
        ];
        Some(parts.iter().fold(0, |sum: u64, (tokens, price)| {
            sum.saturating_add(tokens.saturating_mul(*price))
        }))
    }
}

/// A name in which `*` stands for anything. Case doesn't matter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob(Vec<String>);

impl Glob {
    fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        Self(text.split('*').map(str::to_owned).collect())
    }

    fn matches(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let Some((first, rest)) = self.0.split_first() else {
            return false;
        };
        let Some((last, middle)) = rest.split_last() else {
            return text == *first;
        };
        let Some(mut left) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        for piece in middle {
            match left.split_once(piece.as_str()) {
                Some((_, after)) => left = after,
                None => return false,
            }
        }
        left.ends_with(last.as_str())
    }
}

/// What a budget counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Each {
    Host,
    Model,
    Process,
    User,
}

/// A bound for tokens or cost within a time, written like the keys of a rule's `budget`:
/// `tokens=1m,per=1d,host=api.example.com` or `cost=5,per=1d,each=process`.
///
/// | key | what |
/// |---|---|
/// | `tokens` | tokens of requests and answers, but for those from the provider's cache: `500k`, `1m` |
/// | `cost` | in the prices' currency; a model without a price is refused |
/// | `per` | the time, from the first answer on: `90s`, `15min`, `1h`, `1d` |
/// | `host`, `model`, `process`, `user` | only for these; `*` stands for anything |
/// | `each` | apart for each `host`, `model`, `process` or `user` |
///
/// A request that doesn't say its model, or says it where it can't be read, may be for any: it is held to the budgets of
/// all.
///
/// ```
/// use tollgate_screen::usage::Limit;
///
/// assert!("tokens=1m,per=1d,host=*.example.com".parse::<Limit>().is_ok());
/// assert!("tokens=1m".parse::<Limit>().is_err(), "per what?");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    text: String,
    tokens: Option<u64>,
    nanos: Option<u64>,
    per: Duration,
    host: Option<Glob>,
    model: Option<Glob>,
    process: Option<Glob>,
    user: Option<Glob>,
    each: Option<Each>,
}

/// What is wrong with a [`Limit`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitError(String);

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let error = |why: String| Err(LimitError(why));
        let mut limit = Self {
            text: text.to_owned(),
            tokens: None,
            nanos: None,
            per: Duration::ZERO,
            host: None,
            model: None,
            process: None,
            user: None,
            each: None,
        };
        let mut seen: Vec<&str> = Vec::new();
        for pair in text.split(',') {
            let Some((key, value)) = pair.split_once('=') else {
                return error(format!("`{pair}` is no KEY=VALUE"));
            };
            let (key, value) = (key.trim(), value.trim());
            if seen.contains(&key) {
                return error(format!("`{key}` stands there twice"));
            }
            seen.push(key);
            if value.is_empty() {
                return error(format!("`{key}` says nothing"));
            }
            let glob = || Some(Glob::new(value));
            match key {
                "tokens" => match scaled(value, &[("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9)]) {
                    Some(tokens) if tokens >= 1.0 => limit.tokens = Some(tokens as u64),
                    _ => return error(format!("`{value}` is no number of tokens such as 500k")),
                },
                "cost" => match scaled(value, &[("", 1e9)]) {
                    Some(nanos) if nanos >= 1.0 => limit.nanos = Some(nanos as u64),
                    _ => return error(format!("`{value}` is no cost such as 5 or 2.50")),
                },
                "per" => {
                    let units = [
                        ("s", 1.0),
                        ("min", 60.0),
                        ("m", 60.0),
                        ("h", 3600.0),
                        ("d", 86_400.0),
                    ];
                    let per = scaled(value, &units)
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                        .filter(|per| *per >= Duration::from_secs(1) && *per <= MAX_PER);
                    match per {
                        Some(per) => limit.per = per,
                        None => return error(format!("`{value}` is no time such as 15min or 1d")),
                    }
                }
                "host" => limit.host = glob(),
                "model" => limit.model = glob(),
                "process" => limit.process = glob(),
                "user" => limit.user = glob(),
                "each" => {
                    limit.each = Some(match value {
                        "host" => Each::Host,
                        "model" => Each::Model,
                        "process" => Each::Process,
                        "user" => Each::User,
                        _ => {
                            return error(format!(
                                "`each` is host, model, process or user, not `{value}`"
                            ));
                        }
                    });
                }
                _ => {
                    return error(format!(
                        "`{key}` is none of tokens, cost, per, host, model, process, user, each"
                    ));
                }
            }
        }
        if limit.tokens.is_none() && limit.nanos.is_none() {
            return error("it bounds nothing: say tokens=… or cost=…".to_owned());
        }
        if limit.per.is_zero() {
            return error("it has no time: say per=1d".to_owned());
        }
        Ok(limit)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Limit {
    /// Whether it bounds cost, for which prices are needed.
    #[must_use]
    pub fn needs_prices(&self) -> bool {
        self.nanos.is_some()
    }

    fn concerns(&self, asker: &Asker) -> bool {
        let fits = |glob: &Option<Glob>, name: Option<&str>| {
            glob.as_ref()
                .is_none_or(|glob| name.is_some_and(|name| glob.matches(name)))
        };
        fits(&self.host, Some(&asker.host))
            && (asker.model.is_empty() || fits(&self.model, Some(&asker.model)))
            && fits(&self.process, asker.process.as_deref())
            && fits(&self.user, asker.user.as_deref())
    }

    /// The name that it counts under.
    fn key<'a>(&self, asker: &'a Asker) -> &'a str {
        match self.each {
            None => "",
            Some(Each::Host) => &asker.host,
            Some(Each::Model) => &asker.model,
            Some(Each::Process) => asker.process.as_deref().unwrap_or_default(),
            Some(Each::User) => asker.user.as_deref().unwrap_or_default(),
        }
    }
}

/// A number with a unit.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim())?;
    let number = digits.parse::<f64>().ok()? * scale;
    // What is larger is no bound.
    (number < 1e18).then_some(number)
}

/// Why a request may not be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The budget, as it was written.
    pub limit: String,
    /// How long until it is new.
    pub wait: Duration,
    /// There is no price for the model, and so nothing that a budget of cost could count.
    pub no_price: bool,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.no_price {
            write!(
                f,
                "the budget {} counts cost, and this model has no price",
                self.limit
            )
        } else {
            write!(f, "the budget {} is used up", self.limit)
        }
    }
}

/// What was used within the time of a budget.
#[derive(Debug)]
struct Window {
    since: Instant,
    tokens: u64,
    nanos: u64,
}

#[derive(Debug)]
struct Budget {
    limit: Limit,
    windows: Mutex<HashMap<String, Window>>,
}

impl Budget {
    /// How long until there is something left; `None` if there is now.
    fn wait(&self, asker: &Asker, now: Instant) -> Option<Duration> {
        let mut windows = lock(&self.windows);
        if self.limit.each == Some(Each::Model) && asker.model.is_empty() {
            // It may be for the one that has used its own up.
            return windows.values().filter_map(|w| self.left(w, now)).max();
        }
        match windows.get(self.limit.key(asker)) {
            Some(window) => self.left(window, now),
            None => self.make_room(&mut windows, now).then_some(self.limit.per),
        }
    }

    /// How long a window is used up yet.
    fn left(&self, window: &Window, now: Instant) -> Option<Duration> {
        let age = now.saturating_duration_since(window.since);
        let over = |limit: Option<u64>, used| limit.is_some_and(|limit| used >= limit);
        let used_up =
            over(self.limit.tokens, window.tokens) || over(self.limit.nanos, window.nanos);
        (used_up && age < self.limit.per).then(|| self.limit.per - age)
    }

    fn charge(&self, asker: &Asker, spent: &Spent, now: Instant) {
        let mut windows = lock(&self.windows);
        let key = self.limit.key(asker);
        if !windows.contains_key(key) && self.make_room(&mut windows, now) {
            return;
        }
        let window = windows.entry(key.to_owned()).or_insert(Window {
            since: now,
            tokens: 0,
            nanos: 0,
        });
        if now.saturating_duration_since(window.since) >= self.limit.per {
            *window = Window {
                since: now,
                tokens: 0,
                nanos: 0,
            };
        }
        window.tokens = window.tokens.saturating_add(spent.tokens());
        window.nanos = window.nanos.saturating_add(spent.nanos);
    }

    /// Forgets what is over, if it must; whether that didn't help.
    fn make_room(&self, windows: &mut HashMap<String, Window>, now: Instant) -> bool {
        if windows.len() >= MAX_EACH {
            windows.retain(|_, w| now.saturating_duration_since(w.since) < self.limit.per);
        }
        windows.len() >= MAX_EACH
    }
}

/// Counts what models used, and knows how much they may.
///
/// ```
/// use std::time::Instant;
/// use tollgate_screen::usage::{Asker, Ledger, Prices, Spent};
///
/// let prices = Prices::parse("[[price]]\nmodel = '*'\ninput = 1\noutput = 2\n")?;
/// let ledger = Ledger::new(prices, vec!["cost=0.01,per=1d".parse()?]);
/// let (asker, now) = (Asker::default(), Instant::now());
/// assert!(ledger.check(&asker, now).is_ok());
/// let used = Spent { answers: 1, output: 5000, ..Spent::default() };
/// assert_eq!(ledger.charge(&asker, used, now).cost(), 0.01);
/// assert!(ledger.check(&asker, now).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Ledger {
    prices: Prices,
    budgets: Vec<Budget>,
    rows: Mutex<HashMap<Asker, Spent>>,
    refused: AtomicU64,
}

impl Ledger {
    /// A ledger with these prices and budgets.
    #[must_use]
    pub fn new(prices: Prices, limits: Vec<Limit>) -> Self {
        let budget = |limit| Budget {
            limit,
            windows: Mutex::default(),
        };
        Self {
            prices,
            budgets: limits.into_iter().map(budget).collect(),
            ..Self::default()
        }
    }

    /// Whether a request may be made now. An answer is charged when it has ended: those that are under way at the same
    /// time may together go beyond a budget.
    ///
    /// # Errors
    /// The first budget that is used up.
    pub fn check(&self, asker: &Asker, now: Instant) -> Result<(), Exhausted> {
        for budget in self.budgets.iter().filter(|b| b.limit.concerns(asker)) {
            let no_price = budget.limit.needs_prices() && !self.prices.has(&asker.model);
            let wait = match no_price {
                true => Some(budget.limit.per),
                false => budget.wait(asker, now),
            };
            if let Some(wait) = wait {
                return Err(Exhausted {
                    limit: budget.limit.text.clone(),
                    wait,
                    no_price,
                });
            }
        }
        Ok(())
    }

    /// Counts a request that was refused.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what an answer used; gives it back with its cost.
    pub fn charge(&self, asker: &Asker, mut spent: Spent, now: Instant) -> Spent {
        match self.prices.cost(&asker.model, &spent) {
            Some(nanos) => spent.nanos = nanos,
            None => spent.unpriced = spent.answers,
        }
        for budget in self.budgets.iter().filter(|b| b.limit.concerns(asker)) {
            budget.charge(asker, &spent, now);
        }
        let mut rows = lock(&self.rows);
        if rows.len() < MAX_ROWS || rows.contains_key(asker) {
            rows.entry(asker.clone()).or_default().add(&spent);
        } else {
            rows.entry(Asker::default()).or_default().add(&spent);
        }
        spent
    }

    /// The prices.
    #[must_use]
    pub fn prices(&self) -> &Prices {
        &self.prices
    }

    /// Everything that was used, by who asked: the most expensive first, then by tokens. A row without names holds what
    /// came when 4096 others were known.
    #[must_use]
    pub fn rows(&self) -> Vec<(Asker, Spent)> {
        let rows = lock(&self.rows);
        let mut rows: Vec<_> = rows.iter().map(|(a, s)| (a.clone(), *s)).collect();
        rows.sort_by(|(a, x), (b, y)| {
            let key = |spent: &Spent| (spent.nanos, spent.tokens());
            key(y)
                .cmp(&key(x))
                .then_with(|| (&a.model, &a.host).cmp(&(&b.model, &b.host)))
        });
        rows
    }

    /// Everything that was used.
    #[must_use]
    pub fn total(&self) -> Spent {
        let mut total = Spent::default();
        lock(&self.rows).values().for_each(|spent| total.add(spent));
        total
    }

    /// How many requests were refused for a budget.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(model: &str, host: &str) -> Asker {
        Asker {
            model: model.to_owned(),
            host: host.into(),
            ..Asker::default()
        }
    }

    fn used(input: u64, output: u64) -> Spent {
        Spent {
            answers: 1,
            input,
            output,
            ..Spent::default()
        }
    }

    fn ledger(prices: &str, limits: &[&str]) -> Ledger {
        let limits = limits.iter().map(|limit| limit.parse().unwrap());
        Ledger::new(Prices::parse(prices).unwrap(), limits.collect())
    }

    const NO_PRICES: &str = "price = []";
    const PRICES: &str = "currency = 'EUR'\n\
        [[price]]\nmodel = 'small*'\ninput = 0.15\noutput = 0.6\ncache_read = 0.075\n\
        [[price]]\nmodel = 'Large'\ninput = 3\noutput = 15\ncache_read = 0.3\ncache_write = 3.75\n";

    #[test]
    fn the_first_price_that_fits_counts() {
        let prices = Prices::parse(PRICES).unwrap();
        assert_eq!(prices.currency(), "EUR");
        let million = Spent {
            input: 1_000_000,
            output: 1_000_000,
            cache_read: 1_000_000,
            cache_write: 1_000_000,
            ..Spent::default()
        };
        let cost = |model| prices.cost(model, &million).map(|nanos| nanos as f64 / 1e9);
        assert_eq!(cost("large"), Some(3.0 + 15.0 + 0.3 + 3.75));
        // What is put into a cache that has no price of its own was read, too.
        assert_eq!(cost("small-2026"), Some(0.15 + 0.6 + 0.075 + 0.15));
        assert_eq!(cost("larger"), None);
        let endless = Spent {
            output: u64::MAX,
            ..Spent::default()
        };
        assert_eq!(prices.cost("large", &endless), Some(u64::MAX));
    }

    #[test]
    fn a_wrong_file_is_said_so() {
        for (text, word) in [
            ("[[price]]\nmodel = 'x'\ninput = 1\n", "output"),
            (
                "[[price]]\nmodel = 'x'\ninput = 1\noutput = 1\nouput = 1\n",
                "line 5: unknown key 'ouput'; did you mean 'output'?",
            ),
            (
                "[[price]]\nmodel = 'x'\ninput = -1\noutput = 1\n",
                "no price",
            ),
            (
                "[[price]]\nmodel = 'x'\ninput = nan\noutput = 1\n",
                "no price",
            ),
            ("prices = []", "prices"),
        ] {
            let error = Prices::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_read_and_wrong_ones_named() {
        let limit: Limit = " tokens=1.5m, per=15min,host=*.example.com ,each=model"
            .parse()
            .unwrap();
        assert_eq!(limit.tokens, Some(1_500_000));
        assert_eq!(limit.per, Duration::from_secs(900));
        assert!(limit.concerns(&asker("m", "api.EXAMPLE.com")));
        assert!(!limit.concerns(&asker("m", "example.com")));
        for (text, word) in [
            ("", "KEY=VALUE"),
            ("tokens", "KEY=VALUE"),
            ("tokens=x,per=1d", "number of tokens"),
            ("tokens=0,per=1d", "number of tokens"),
            ("cost=0,per=1d", "no cost"),
            ("cost=-1,per=1d", "no cost"),
            ("tokens=1,per=1y", "no time"),
            ("tokens=1,per=0s", "no time"),
            ("tokens=1", "per"),
            ("per=1d", "bounds nothing"),
            ("tokens=1,per=1d,each=day", "each"),
            ("tokens=1,tokens=2,per=1d", "twice"),
            ("token=1,per=1d", "none of"),
            ("tokens=1,per=1d,host=", "`host` says nothing"),
        ] {
            let error = text.parse::<Limit>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_budget_is_used_up_and_comes_back() {
        let ledger = ledger(NO_PRICES, &["tokens=100,per=10s,host=a"]);
        let now = Instant::now();
        let one = asker("m", "a");
        assert_eq!(ledger.check(&one, now), Ok(()));
        ledger.charge(&one, used(40, 20), now);
        assert_eq!(ledger.check(&one, now), Ok(()));
        let later = now + Duration::from_secs(4);
        ledger.charge(&one, used(40, 0), later);
        let refused = ledger.check(&one, later).unwrap_err();
        assert_eq!(refused.wait, Duration::from_secs(6));
        assert!(refused.to_string().contains("tokens=100"), "{refused}");
        assert_eq!(ledger.check(&asker("m", "b"), later), Ok(()));
        let new = now + Duration::from_secs(10);
        assert_eq!(ledger.check(&one, new), Ok(()));
        // And counts from nothing.
        ledger.charge(&one, used(50, 0), new);
        assert_eq!(ledger.check(&one, new), Ok(()));
        assert_eq!(ledger.total().input, 130);
    }

    #[test]
    fn what_the_provider_had_in_its_cache_costs_and_is_no_new_token() {
        let ledger = ledger(PRICES, &["tokens=100,per=1d", "cost=0.003,per=1d"]);
        let now = Instant::now();
        let one = asker("large", "a");
        let cached = Spent {
            answers: 1,
            cache_read: 9_000,
            ..Spent::default()
        };
        let charged = ledger.charge(&one, cached, now);
        assert_eq!(charged.cost(), 0.0027);
        assert_eq!(ledger.check(&one, now), Ok(()));
        ledger.charge(&one, cached, now);
        let refused = ledger.check(&one, now).unwrap_err();
        assert!(refused.limit.starts_with("cost"), "{refused}");
    }

    #[test]
    fn a_model_without_a_price_is_no_way_around_a_budget_of_cost() {
        let ledger = ledger(PRICES, &["cost=5,per=1d,host=a"]);
        let now = Instant::now();
        assert_eq!(ledger.check(&asker("small-1", "a"), now), Ok(()));
        for model in ["unknown", ""] {
            let refused = ledger.check(&asker(model, "a"), now).unwrap_err();
            assert!(refused.no_price, "{refused}");
        }
        assert_eq!(ledger.check(&asker("unknown", "b"), now), Ok(()));
        let charged = ledger.charge(&asker("unknown", "b"), used(1, 1), now);
        assert_eq!((charged.unpriced, charged.nanos), (1, 0));
    }

    #[test]
    fn a_request_that_hides_its_model_is_held_to_the_budgets_of_all() {
        for limit in [
            "tokens=10,per=10s,model=dear*",
            "tokens=10,per=10s,each=model",
        ] {
            let ledger = ledger(NO_PRICES, &[limit]);
            let now = Instant::now();
            let (hidden, dear, cheap) = (asker("", "a"), asker("dear-1", "a"), asker("cheap", "a"));
            assert_eq!(ledger.check(&hidden, now), Ok(()));
            ledger.charge(&dear, used(10, 0), now);
            let refused = ledger.check(&hidden, now).unwrap_err();
            assert_eq!(refused.wait, Duration::from_secs(10), "{limit}");
            assert_eq!(ledger.check(&cheap, now), Ok(()), "{limit}");
            let later = now + Duration::from_secs(10);
            assert_eq!(ledger.check(&hidden, later), Ok(()));
            // An answer that doesn't say it, either, counts.
            ledger.charge(&hidden, used(10, 0), later);
            assert!(ledger.check(&hidden, later).is_err(), "{limit}");
        }
    }

    #[test]
    fn each_counts_apart_within_a_bound() {
        let ledger = ledger(NO_PRICES, &["tokens=10,per=10s,each=model"]);
        let now = Instant::now();
        for i in 0..MAX_EACH {
            let one = asker(&i.to_string(), "a");
            assert_eq!(ledger.check(&one, now), Ok(()));
            ledger.charge(&one, used(10, 0), now);
        }
        assert!(ledger.check(&asker("0", "a"), now).is_err());
        // Nobody gets more by taking a new name when the table is full.
        let next = asker("one more", "a");
        assert!(ledger.check(&next, now).is_err());
        let later = now + Duration::from_secs(10);
        assert_eq!(ledger.check(&next, later), Ok(()));
        assert!(lock(&ledger.budgets[0].windows).len() <= MAX_EACH);
    }

    #[test]
    fn totals_are_bounded_and_lose_nothing() {
        let ledger = ledger(NO_PRICES, &[]);
        let now = Instant::now();
        for i in 0..MAX_ROWS + 10 {
            ledger.charge(&asker(&i.to_string(), "a"), used(1, 2), now);
        }
        assert_eq!(ledger.rows().len(), MAX_ROWS + 1);
        assert_eq!(ledger.total().output, 2 * (MAX_ROWS as u64 + 10));
        let other = ledger.rows();
        let other = other.iter().find(|(a, _)| *a == Asker::default()).unwrap();
        assert_eq!(other.1.answers, 10);
    }
}
