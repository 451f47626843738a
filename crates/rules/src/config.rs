//! Rules in a file: TOML, a list of `[[rule]]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tollgate_flow::filter::{Filter, python_regex};
use tollgate_flow::{Bytes, Direction, HeaderList, Reply, UpstreamProxy, Via, with_suggestion};
use toml::Spanned;

use crate::budget::Budget;
use crate::error::{Place, RuleError};
use crate::inject::{Inject, SecretSource};
use crate::local::{MAX_FILE, MapLocal};
use crate::rewrite::Replace;
use crate::rule::{
    Action, BodyEdit, CUT, HeaderEdits, HoldFor, MessageEdit, OnMessage, Redirect, Replacement,
    Rule, Throttle,
};
use crate::sticky::{Bucket, CookieJar, StickyAuth};
use crate::template::Template;

/// The largest file of rules.
const MAX_RULES_FILE: u64 = 4 << 20;

/// The actions, as keys of a rule; each rule has one.
pub(crate) const ACTIONS: [&str; 21] = [
    "block",
    "allow",
    "tunnel",
    "map_local",
    "map_remote",
    "request_headers",
    "response_headers",
    "request_body",
    "response_body",
    "message",
    "respond",
    "redirect",
    "upstream",
    "throttle",
    "budget",
    "body_limit",
    "hold",
    "inject",
    "sticky_cookie",
    "sticky_auth",
    "anticache",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Option<String>,
    when: Option<Spanned<String>>,
    on: Option<Spanned<On>>,
    block: Option<u16>,
    allow: Option<bool>,
    tunnel: Option<bool>,
    map_local: Option<RawMapLocal>,
    map_remote: Option<RawMapRemote>,
    request_headers: Option<RawHeaders>,
    response_headers: Option<RawHeaders>,
    request_body: Option<RawBody>,
    response_body: Option<RawBody>,
    message: Option<RawMessage>,
    respond: Option<RawRespond>,
    redirect: Option<RawRedirect>,
    upstream: Option<String>,
    throttle: Option<RawThrottle>,
    budget: Option<RawBudget>,
    body_limit: Option<String>,
    hold: Option<RawHold>,
    inject: Option<RawInject>,
    sticky_cookie: Option<bool>,
    sticky_auth: Option<bool>,
    anticache: Option<bool>,
    anticomp: Option<bool>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum On {
    Request,
    Response,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapLocal {
    url: String,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMapRemote {
    url: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeaders {
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    add: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBody {
    replace: String,
    with: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMessage {
    from: Option<Sender>,
    replace: Option<String>,
    with: Option<String>,
    #[serde(default)]
    drop: bool,
    close: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sender {
    Client,
    Origin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRespond {
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    json: Option<toml::Value>,
    file: Option<PathBuf>,
}

fn ok() -> u16 {
    200
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedirect {
    to: String,
    url: Option<String>,
    #[serde(default = "found")]
    status: u16,
}

fn found() -> u16 {
    302
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawThrottle {
    latency: Option<String>,
    upload: Option<String>,
    download: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    requests: Option<u64>,
    upload: Option<String>,
    per: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHold {
    #[serde(rename = "for")]
    deadline: String,
    #[serde(default)]
    then: Then,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Then {
    Continue,
    #[default]
    Block,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInject {
    host: String,
    header: String,
    #[serde(default = "braces")]
    value: String,
    env: Option<String>,
    file: Option<PathBuf>,
    command: Option<String>,
    refresh: Option<String>,
    #[serde(default)]
    plaintext: bool,
}

fn braces() -> String {
    "{}".to_owned()
}

/// What reading a file of rules gives: the rules, and the other files that they name.
pub(crate) struct Loaded {
    pub rules: Vec<Rule>,
    pub files: Vec<PathBuf>,
}

/// Reads a file of rules. Blocks.
pub(crate) fn load(path: &Path) -> Result<Loaded, RuleError> {
    let shown = path.display().to_string();
    let failed = |message: String| RuleError {
        place: Place::File(shown.clone(), 0),
        message,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| failed(format!("can't be read: {error}")))?
        .len();
    if size > MAX_RULES_FILE {
        return Err(failed(
            "is larger than 4 MiB, which no list of rules is".to_owned(),
        ));
    }
    let text =
        std::fs::read_to_string(path).map_err(|error| failed(format!("can't be read: {error}")))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut loaded = parse(&text, &shown, folder)?;
    loaded.files.push(path.to_owned());
    Ok(loaded)
}

/// Reads rules from text; paths in it are from `folder`.
pub(crate) fn parse(text: &str, shown: &str, folder: &Path) -> Result<Loaded, RuleError> {
    let line_of = |offset: usize| {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        before.bytes().filter(|b| *b == b'\n').count() + 1
    };
    let file: File = toml::from_str(text).map_err(|error| RuleError {
        place: Place::File(
            shown.to_owned(),
            error.span().map_or(0, |span| line_of(span.start)),
        ),
        message: with_suggestion(error.message()),
    })?;
    let mut loaded = Loaded {
        rules: Vec::with_capacity(file.rule.len()),
        files: Vec::new(),
    };
    for raw in file.rule {
        let rule_line = line_of(raw.span().start);
        let place = Place::File(shown.to_owned(), rule_line);
        let raw = raw.into_inner();
        let when_line = raw.when.as_ref().map(|when| line_of(when.span().start));
        let mut reader = Reader {
            folder,
            files: &mut loaded.files,
        };
        let rule = reader
            .rule(raw, place.clone())
            .map_err(|problem| match problem {
                Problem::InFilter(message) => RuleError {
                    place: Place::File(shown.to_owned(), when_line.unwrap_or(rule_line)),
                    message,
                },
                Problem::InRule(message) => RuleError { place, message },
            })?;
        loaded.rules.extend(rule);
    }
    Ok(loaded)
}

enum Problem {
    InFilter(String),
    InRule(String),
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self::InRule(message)
    }
}

struct Reader<'a> {
    folder: &'a Path,
    files: &'a mut Vec<PathBuf>,
}

impl Reader<'_> {
    /// `None` for a rule that is switched off: `anticache = false`.
    fn rule(&mut self, raw: RawRule, place: Place) -> Result<Option<Rule>, Problem> {
        let when = match &raw.when {
            None => None,
            Some(when) => Some(Filter::new(when.get_ref()).map_err(|error| {
                Problem::InFilter(format!(
                    "the filter is none: {}",
                    error.pointed_at(when.get_ref())
                ))
            })?),
        };
        let on = match raw.on.as_ref().map(Spanned::get_ref) {
            Some(On::Response) => Direction::Response,
            Some(On::Request) | None => Direction::Request,
        };
        let name = raw.name.clone();
        let on_given = raw.on.is_some();
        let Some(action) = self.action(raw)? else {
            return Ok(None);
        };
        let word = action.word();
        let acts_on = match &action {
            Action::Block(_) | Action::Respond(_) | Action::Hold(_) | Action::Redirect(_) => on,
            _ if on_given => {
                return Err(format!(
                    "'on' says when block, respond, redirect and hold act; {word} has its own time"
                )
                .into());
            }
            Action::Headers(edits) => edits.on,
            Action::Body(edit) => edit.on.unwrap_or(Direction::Request),
            _ => Direction::Request,
        };
        if let Some(filter) = &when {
            let is_early = acts_on == Direction::Request && !matches!(action, Action::Message(_));
            if is_early && filter.looks_at_responses() {
                let hint = match action {
                    Action::Block(_)
                    | Action::Respond(_)
                    | Action::Redirect(_)
                    | Action::Hold(_) => "; write on = \"response\" to let it act then",
                    _ => "",
                };
                return Err(Problem::InFilter(format!(
                    "the filter looks at the response, and {word} acts before there is one{hint}"
                )));
            }
            if matches!(action, Action::Tunnel) && !filter.is_about_connections() {
                return Err(Problem::InFilter(
                    "tunnel is decided before anything is read: its filter can have ~d, ~dst, ~src, ~process, ~sni, ~ja3 and ~ja4"
                        .to_owned(),
                ));
            }
        }
        if matches!(action, Action::Tunnel) && when.is_none() {
            return Err(
                "tunnel without 'when' would open nothing at all; leave the proxy off instead"
                    .to_owned()
                    .into(),
            );
        }
        Ok(Some(Rule {
            name,
            place,
            when,
            on: acts_on,
            action,
        }))
    }

    /// The one action of a rule; `None` if it is switched off.
    fn action(&mut self, raw: RawRule) -> Result<Option<Action>, Problem> {
        let flag = |action: Action, on: bool| on.then_some(action);
        let mut found: Vec<(&'static str, Option<Action>)> = Vec::new();
        if let Some(status) = raw.block {
            found.push(("block", Some(Action::Block(status_code(status, true)?))));
        }
        if let Some(on) = raw.allow {
            found.push(("allow", flag(Action::Allow, on)));
        }
        if let Some(on) = raw.tunnel {
            found.push(("tunnel", flag(Action::Tunnel, on)));
        }
        if let Some(raw) = raw.map_local {
            let map = MapLocal {
                when: None,
                url: text_regex(&raw.url)?,
                path: existing(&self.folder.join(&raw.path))?,
            };
            found.push(("map_local", Some(Action::MapLocal(Arc::new(vec![map])))));
        }
        if let Some(raw) = raw.map_remote {
            let replacement = replacement(&raw.url, &raw.to)?;
            found.push(("map_remote", Some(Action::MapRemote(replacement))));
        }
        for (word, on, raw) in [
            ("request_headers", Direction::Request, raw.request_headers),
            (
                "response_headers",
                Direction::Response,
                raw.response_headers,
            ),
        ] {
            if let Some(raw) = raw {
                found.push((word, Some(Action::Headers(header_edits(on, raw)?))));
            }
        }
        for (word, on, raw) in [
            ("request_body", Direction::Request, raw.request_body),
            ("response_body", Direction::Response, raw.response_body),
        ] {
            if let Some(raw) = raw {
                let edit = BodyEdit {
                    on: Some(on),
                    replace: body_replace(&raw.replace, raw.with.as_bytes())?,
                };
                found.push((word, Some(Action::Body(edit))));
            }
        }
        if let Some(raw) = raw.message {
            found.push(("message", Some(Action::Message(message_edit(&raw)?))));
        }
        if let Some(raw) = raw.respond {
            found.push(("respond", Some(Action::Respond(self.reply(raw)?))));
        }
        if let Some(raw) = raw.redirect {
            if !(300..400).contains(&raw.status) {
                return Err("the status of a redirect is from 300 to 399"
                    .to_owned()
                    .into());
            }
            let url = match &raw.url {
                None => None,
                Some(url) => Some(replacement(url, &raw.to)?),
            };
            HeaderList::new()
                .append(b"Location", raw.to.as_bytes())
                .map_err(|_| "what is redirected to can't stand in a header".to_owned())?;
            found.push((
                "redirect",
                Some(Action::Redirect(Redirect {
                    status: raw.status,
                    url,
                    to: raw.to,
                })),
            ));
        }
        if let Some(raw) = raw.upstream {
            let via = match raw.as_str() {
                "direct" => Via::Direct,
                url => Via::Proxy(Arc::new(url.parse::<UpstreamProxy>().map_err(|error| {
                    format!("the upstream proxy is none: {error} (\"direct\" goes past proxies)")
                })?)),
            };
            found.push(("upstream", Some(Action::Upstream(via))));
        }
        if let Some(raw) = raw.throttle {
            found.push(("throttle", Some(Action::Throttle(throttle(&raw)?))));
        }
        if let Some(raw) = raw.budget {
            if raw.requests.is_none() && raw.upload.is_none() {
                return Err("a budget has requests or upload".to_owned().into());
            }
            let upload = raw.upload.as_deref().map(bytes).transpose()?;
            let budget = Budget::new(raw.requests, upload, duration(&raw.per)?);
            found.push(("budget", Some(Action::Budget(Arc::new(budget)))));
        }
        if let Some(limit) = &raw.body_limit {
            found.push(("body_limit", Some(Action::BodyLimit(bytes(limit)?))));
        }
        if let Some(raw) = raw.hold {
            let hold = HoldFor {
                deadline: duration(&raw.deadline)?,
                then_continue: matches!(raw.then, Then::Continue),
            };
            found.push(("hold", Some(Action::Hold(hold))));
        }
        if let Some(raw) = raw.inject {
            found.push(("inject", Some(Action::Inject(Arc::new(self.inject(raw)?)))));
        }
        if let Some(on) = raw.sticky_cookie {
            found.push((
                "sticky_cookie",
                flag(Action::StickyCookie(CookieJar::default()), on),
            ));
        }
        if let Some(on) = raw.sticky_auth {
            found.push((
                "sticky_auth",
                flag(Action::StickyAuth(StickyAuth::default()), on),
            ));
        }
        if let Some(on) = raw.anticache {
            found.push(("anticache", flag(Action::AntiCache, on)));
        }
        if let Some(on) = raw.anticomp {
            found.push(("anticomp", flag(Action::AntiComp, on)));
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some((_, action)), None) => Ok(action),
            (Some((one, _)), Some((other, _))) => Err(format!(
                "a rule has one action, and this one has {one} and {other}: make it two rules"
            )
            .into()),
            (None, _) => Err(format!(
                "the rule has no action; there are {} and anticomp",
                ACTIONS.join(", ")
            )
            .into()),
        }
    }

    fn reply(&mut self, raw: RawRespond) -> Result<Reply, Problem> {
        let bodies = [raw.body.is_some(), raw.json.is_some(), raw.file.is_some()];
        if bodies.iter().filter(|given| **given).count() > 1 {
            return Err("a response has one of body, json and file"
                .to_owned()
                .into());
        }
        let mut reply = Reply::new(status_code(raw.status, false)?);
        let mut kind = None;
        if let Some(body) = raw.body {
            reply.body = Bytes::from(body);
            kind = Some("text/plain; charset=utf-8");
        } else if let Some(json) = raw.json {
            let json = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
            reply.body = Bytes::from(json);
            kind = Some("application/json");
        } else if let Some(file) = raw.file {
            let file = existing(&self.folder.join(file))?;
            reply.body = Bytes::from(read_bounded(&file)?);
            kind = mime_guess::from_path(&file).first_raw();
            self.files.push(file);
        }
        for (name, value) in &raw.headers {
            reply
                .headers
                .append(name.as_bytes(), value.as_bytes())
                .map_err(|error| format!("the header {name}: {error}"))?;
        }
        if let Some(kind) = kind.filter(|_| !reply.headers.contains("content-type")) {
            // A constant that is a valid header.
            let _ = reply.headers.append(b"Content-Type", kind.as_bytes());
        }
        Ok(reply)
    }

    fn inject(&mut self, raw: RawInject) -> Result<Inject, Problem> {
        let source = match (raw.env, raw.file, raw.command) {
            (Some(name), None, None) => SecretSource::Env(name),
            (None, Some(file), None) => {
                let file = self.folder.join(file);
                self.files.push(file.clone());
                SecretSource::File(file)
            }
            (None, None, Some(command)) => SecretSource::Command(command),
            _ => {
                return Err(
                    "inject takes its credential from one of env, file and command"
                        .to_owned()
                        .into(),
                );
            }
        };
        if !raw.value.contains("{}") {
            return Err("the value of inject has {} where the credential goes"
                .to_owned()
                .into());
        }
        let host = raw.host.to_ascii_lowercase();
        if host.trim_start_matches("*.").is_empty()
            || host.contains(['/', ':', ' '])
            || host.trim_start_matches("*.").contains('*')
        {
            return Err(format!(
                "'{}' is no host: write api.example.com, or *.example.com for the names below it",
                raw.host
            )
            .into());
        }
        header_is_valid(&raw.header, &raw.value)?;
        let refresh = raw.refresh.as_deref().map(duration).transpose()?;
        Ok(Inject::new(
            host,
            raw.header,
            raw.value,
            source,
            refresh,
            raw.plaintext,
        )?)
    }
}

/// A status code that can be answered with; with `cut`, 444 as well.
pub(crate) fn status_code(status: u16, cut: bool) -> Result<u16, String> {
    match status {
        CUT if !cut => Err("444 cuts the connection: that is block's".to_owned()),
        200..=599 => Ok(status),
        _ => Err(format!(
            "{status} is no status code to answer with: 200 to 599"
        )),
    }
}

pub(crate) fn text_regex(pattern: &str) -> Result<regex::bytes::Regex, String> {
    python_regex(pattern, false, false).map_err(|error| {
        format!(
            "the pattern is no regular expression: {}",
            error.pointed_at(pattern)
        )
    })
}

pub(crate) fn replacement(pattern: &str, to: &str) -> Result<Replacement, String> {
    let url = text_regex(pattern)?;
    let to = Template::parse(to.as_bytes(), &url).map_err(|error| error.to_string())?;
    Ok(Replacement { url, to })
}

pub(crate) fn body_replace(pattern: &str, with: &[u8]) -> Result<Arc<Replace>, String> {
    let regex = python_regex(pattern, true, true).map_err(|error| {
        format!(
            "the pattern is no regular expression: {}",
            error.pointed_at(pattern)
        )
    })?;
    Replace::new(regex, with)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}

pub(crate) fn existing(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize()
        .map_err(|error| format!("can't find {}: {error}", path.display()))
}

pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("can't read {}: {error}", path.display());
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(format!(
            "{} is larger than {} MiB",
            path.display(),
            MAX_FILE >> 20
        ));
    }
    std::fs::read(path).map_err(failed)
}

pub(crate) fn header_is_valid(name: &str, value: &str) -> Result<(), String> {
    let framing = ["content-length", "transfer-encoding", "connection"];
    if framing.iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return Err(format!(
            "{name} belongs to the framing, which is the proxy's"
        ));
    }
    HeaderList::new()
        .append(name.as_bytes(), value.as_bytes())
        .map_err(|error| format!("the header {name}: {error}"))
}

fn header_edits(on: Direction, raw: RawHeaders) -> Result<HeaderEdits, Problem> {
    let edits = HeaderEdits {
        on,
        remove: raw.remove,
        set: raw.set.into_iter().collect(),
        add: raw.add.into_iter().collect(),
    };
    for name in &edits.remove {
        header_is_valid(name, "")?;
    }
    for (name, value) in edits.set.iter().chain(&edits.add) {
        header_is_valid(name, value)?;
    }
    if edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty() {
        return Err("headers are changed by remove, set and add"
            .to_owned()
            .into());
    }
    Ok(edits)
}

/// The longest reason that a close frame has (RFC 6455 section 5.5.1).
const MAX_CLOSE_REASON: usize = 123;

fn message_edit(raw: &RawMessage) -> Result<MessageEdit, Problem> {
    let does = match (&raw.replace, &raw.with, raw.drop, &raw.close) {
        (Some(pattern), Some(with), false, None) => {
            OnMessage::Replace(body_replace(pattern, with.as_bytes())?)
        }
        (None, None, true, None) => OnMessage::Drop,
        (None, None, false, Some(reason)) if reason.len() <= MAX_CLOSE_REASON => {
            OnMessage::Close(reason.clone())
        }
        (None, None, false, Some(_)) => {
            return Err(
                format!("the reason of a close has at most {MAX_CLOSE_REASON} bytes").into(),
            );
        }
        _ => {
            return Err(
                "a message has replace and with, or drop = true, or close = \"why\""
                    .to_owned()
                    .into(),
            );
        }
    };
    let from = raw.from.map(|from| match from {
        Sender::Client => Direction::Request,
        Sender::Origin => Direction::Response,
    });
    Ok(MessageEdit { from, does })
}

fn throttle(raw: &RawThrottle) -> Result<Throttle, Problem> {
    let bucket = |rate: &Option<String>| match rate {
        None => Ok(None),
        Some(rate) => bytes(rate).map(|rate| Some(Arc::new(Bucket::new(rate)))),
    };
    let throttle = Throttle {
        latency: match &raw.latency {
            None => Duration::ZERO,
            Some(latency) => duration(latency)?,
        },
        upload: bucket(&raw.upload)?,
        download: bucket(&raw.download)?,
    };
    if throttle.latency.is_zero() && throttle.upload.is_none() && throttle.download.is_none() {
        return Err("a throttle has latency, upload or download"
            .to_owned()
            .into());
    }
    Ok(throttle)
}

/// Bytes: `100k`, `1m`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    scaled(
        text,
        &[
            ("", 1.0),
            ("b", 1.0),
            ("k", 1024.0),
            ("m", 1048576.0),
            ("g", 1073741824.0),
            ("t", 1099511627776.0),
        ],
    )
    .map(|bytes| bytes as u64)
    .filter(|bytes| *bytes > 0)
    .ok_or_else(|| format!("'{text}' is no number of bytes such as 500, 100k or 2m"))
}

/// The longest time that a rule may wait.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// A time with a unit: `200ms`, `5s`, `2min`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    scaled(
        text,
        &[
            ("ms", 0.001),
            ("s", 1.0),
            ("min", 60.0),
            ("m", 60.0),
            ("h", 3600.0),
        ],
    )
    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    .filter(|duration| !duration.is_zero() && *duration <= MAX_WAIT)
    .ok_or_else(|| format!("'{text}' is no time such as 200ms, 5s or 2min, up to 24h"))
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim())?;
    digits.parse::<f64>().ok().map(|number| number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Rule>, String> {
        parse(text, "rules.toml", Path::new("."))
            .map(|loaded| loaded.rules)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_action_is_read() {
        let text = r#"
            [[rule]]
            name = "no ads"
            when = "~d ads.example"
            block = 403
            [[rule]]
            when = "~c 500"
            on = "response"
            respond = { status = 503, json = { error = "later", codes = [1, 2] }, headers = { Retry-After = "1" } }
            [[rule]]
            when = "~d pinned.example"
            tunnel = true
            [[rule]]
            allow = true
            [[rule]]
            map_local = { url = "//cdn/", path = "src" }
            [[rule]]
            map_remote = { url = "//(\\w+)\\.prod/", to = "//\\1.stage/" }
            [[rule]]
            request_headers = { remove = ["Cookie"], set = { X-Env = "dev" }, add = { Via = "x" } }
            [[rule]]
            response_headers = { set = { Cache-Control = "no-store" } }
            [[rule]]
            request_body = { replace = "a", with = "b" }
            [[rule]]
            response_body = { replace = "(?P<x>a)", with = "\\g<x>" }
            [[rule]]
            when = "~c 101 & ~bs secret"
            message = { from = "origin", replace = "secret", with = "" }
            [[rule]]
            message = { from = "client", drop = true }
            [[rule]]
            message = { close = "not here" }
            [[rule]]
            redirect = { url = "http://(.*)", to = "https://\\1", status = 307 }
            [[rule]]
            upstream = "socks5://localhost:1080"
            [[rule]]
            upstream = "direct"
            [[rule]]
            throttle = { latency = "200ms", download = "100k" }
            [[rule]]
            budget = { requests = 100, upload = "10m", per = "1h" }
            [[rule]]
            body_limit = "10m"
            [[rule]]
            hold = { for = "30s", then = "continue" }
            [[rule]]
            inject = { host = "api.example.com", header = "X-Key", command = "echo k" }
            [[rule]]
            sticky_cookie = true
            [[rule]]
            sticky_auth = true
            [[rule]]
            anticache = true
            [[rule]]
            anticomp = true
            [[rule]]
            anticomp = false
        "#;
        let rules = read(text).unwrap();
        let words: Vec<&str> = rules.iter().map(|rule| rule.action()).collect();
        assert_eq!(words.len(), 25);
        for word in ACTIONS.iter().chain(&["anticomp"]) {
            assert!(words.contains(word), "{word}");
        }
        assert_eq!(rules[0].name(), "no ads");
        assert_eq!(rules[1].name(), "rules.toml:6");
        assert_eq!(rules[1].on, Direction::Response);
    }

    #[test]
    fn what_is_wrong_names_its_line_and_what_to_do() {
        for (text, expected) in [
            (
                "[[rule]]\nblok = 403",
                "rules.toml:2: unknown key 'blok'; did you mean 'block'?",
            ),
            (
                "[[rules]]\nblock = 403",
                "rules.toml:1: unknown key 'rules'; did you mean 'rule'?",
            ),
            (
                "\n[[rule]]\nwhen = \"~c 500\"\nblock = 403",
                "rules.toml:3: the filter looks at the response",
            ),
            (
                "[[rule]]\nblock = 403\nallow = true",
                "rules.toml:1: a rule has one action, and this one has block and allow",
            ),
            (
                "[[rule]]\nname = \"x\"",
                "rules.toml:1: the rule has no action",
            ),
            (
                "[[rule]]\n\nwhen = \"~d (\"\nblock = 403",
                "rules.toml:3: the filter is none: column 4",
            ),
            ("[[rule]]\nblock = 99", "rules.toml:1: 99 is no status code"),
            ("[[rule]]\ntunnel = true", "tunnel without 'when'"),
            (
                "[[rule]]\nwhen = \"~u x\"\ntunnel = true",
                "rules.toml:2: tunnel is decided before",
            ),
            (
                "[[rule]]\nmap_remote = { url = \"(a\", to = \"\" }",
                "rules.toml:1: the pattern is no regular expression",
            ),
            (
                "[[rule]]\nmap_remote = { url = \"a\", to = \"\\\\1\" }",
                "the pattern has no group 1",
            ),
            (
                "[[rule]]\nmap_local = { url = \"a\", path = \"nowhere\" }",
                "can't find ./nowhere",
            ),
            (
                "[[rule]]\nrequest_body = { replace = \"(?=a)\", with = \"\" }",
                "linear time",
            ),
            (
                "[[rule]]\nthrottle = { latency = \"fast\" }",
                "'fast' is no time",
            ),
            ("[[rule]]\nthrottle = {}", "a throttle has"),
            (
                "[[rule]]\nbody_limit = \"big\"",
                "'big' is no number of bytes",
            ),
            ("[[rule]]\nhold = { for = \"30 days\" }", "is no time"),
            (
                "[[rule]]\nupstream = \"ftp://x\"",
                "the upstream proxy is none",
            ),
            (
                "[[rule]]\non = \"response\"\nanticache = true",
                "'on' says when",
            ),
            (
                "[[rule]]\nrequest_headers = { set = { \"a b\" = \"x\" } }",
                "the header a b",
            ),
            (
                "[[rule]]\nrequest_headers = { set = { Content-Length = \"1\" } }",
                "belongs to the framing",
            ),
            (
                "[[rule]]\nrespond = { body = \"a\", json = 1 }",
                "one of body, json and file",
            ),
            (
                "[[rule]]\ninject = { host = \"*\", header = \"A\", env = \"HOME\" }",
                "is no host",
            ),
            (
                "[[rule]]\ninject = { host = \"a\", header = \"A\" }",
                "one of env, file and command",
            ),
            ("[[rule]]\nmessage = { drop = false }", "a message has"),
            (
                "[[rule]]\nmessage = { drop = true, close = \"x\" }",
                "a message has",
            ),
            ("[[rule]]\nblock = \"x\"", "rules.toml:2: "),
            ("[[rule]\n", "rules.toml:1: "),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}\n{error}\n{expected}");
        }
    }
}
