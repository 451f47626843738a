//! mitmproxy's options that change traffic, with its separators, lowered into the same rules.

use std::path::PathBuf;
use std::sync::Arc;

use tollgate_flow::Direction;
use tollgate_flow::filter::Filter;

use crate::config::{
    body_replace, bytes, existing, header_is_valid, read_bounded, replacement, status_code,
    text_regex,
};
use crate::error::{Place, RuleError};
use crate::local::MapLocal;
use crate::rule::{Action, BodyEdit, HeaderSpec, Rule};
use crate::sticky::{CookieJar, StickyAuth};
use crate::template::unescape;

/// The values of mitmproxy's options that change traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MitmOptions {
    /// `/filter/status`
    pub block_list: Vec<String>,
    /// `|[filter|]url-regex|replacement`
    pub map_remote: Vec<String>,
    /// `|[filter|]url-regex|path`
    pub map_local: Vec<String>,
    /// `/[filter/]name/[@]value`
    pub modify_headers: Vec<String>,
    /// `/[filter/]regex/[@]replacement`
    pub modify_body: Vec<String>,
    /// A filter.
    pub stickycookie: Option<String>,
    /// A filter.
    pub stickyauth: Option<String>,
    /// Whether requests lose what makes a server answer 304.
    pub anticache: bool,
    /// Whether servers are asked for uncompressed bodies.
    pub anticomp: bool,
    /// The largest body: `512k`, `1m`.
    pub body_size_limit: Option<String>,
}

/// Lowers options into rules, in the order in which mitmproxy's addons act.
pub(crate) fn lower(
    options: &MitmOptions,
    files: &mut Vec<PathBuf>,
) -> Result<Vec<Rule>, RuleError> {
    let mut rules = Vec::new();
    let mut add = |place: Place, when: Option<Filter>, action: Action| {
        rules.push(Rule {
            name: None,
            place,
            when,
            on: Direction::Request,
            action,
        });
    };
    let named = |name: &'static str, value: &str| Place::Option(name, value.to_owned());

    if !options.modify_headers.is_empty() {
        let specs: Result<Vec<_>, _> = options
            .modify_headers
            .iter()
            .map(|spec| header_spec(spec, files).map_err(at("modify_headers", spec)))
            .collect();
        add(
            named("modify_headers", ""),
            None,
            Action::ModifyHeaders(specs?),
        );
    }
    // Of what came, before anything answers or changes it.
    if let Some(limit) = &options.body_size_limit {
        let bytes = bytes(limit).map_err(at("body_size_limit", limit))?;
        add(
            named("body_size_limit", limit),
            None,
            Action::BodyLimit(bytes),
        );
    }
    // The last one that matches wins there, the first one here.
    for spec in options.block_list.iter().rev() {
        let (when, status) = block_spec(spec).map_err(at("block_list", spec))?;
        add(named("block_list", spec), Some(when), Action::Block(status));
    }
    if options.anticache {
        add(named("anticache", ""), None, Action::AntiCache);
    }
    if options.anticomp {
        add(named("anticomp", ""), None, Action::AntiComp);
    }
    for spec in &options.map_remote {
        let parts = split(spec).map_err(at("map_remote", spec))?;
        let action =
            replacement(parts.subject, parts.replacement).map_err(at("map_remote", spec))?;
        let when = parts.when().map_err(at("map_remote", spec))?;
        add(named("map_remote", spec), when, Action::MapRemote(action));
    }
    if !options.map_local.is_empty() {
        let specs: Result<Vec<_>, _> = options
            .map_local
            .iter()
            .map(|spec| map_local(spec).map_err(at("map_local", spec)))
            .collect();
        add(
            named("map_local", ""),
            None,
            Action::MapLocal(Arc::new(specs?)),
        );
    }
    for spec in &options.modify_body {
        let (when, edit) = body_spec(spec, files).map_err(at("modify_body", spec))?;
        add(named("modify_body", spec), when, Action::Body(edit));
    }
    if let Some(filter) = &options.stickyauth {
        let when = parse_filter(filter).map_err(at("stickyauth", filter))?;
        add(
            named("stickyauth", filter),
            Some(when),
            Action::StickyAuth(StickyAuth::default()),
        );
    }
    if let Some(filter) = &options.stickycookie {
        let when = parse_filter(filter).map_err(at("stickycookie", filter))?;
        add(
            named("stickycookie", filter),
            Some(when),
            Action::StickyCookie(CookieJar::default()),
        );
    }
    Ok(rules)
}

fn at(name: &'static str, value: &str) -> impl Fn(String) -> RuleError + use<> {
    let place = Place::Option(name, value.to_owned());
    move |message| RuleError {
        place: place.clone(),
        message,
    }
}

/// A specification, cut at its first character.
struct Parts<'a> {
    filter: Option<&'a str>,
    subject: &'a str,
    replacement: &'a str,
}

impl Parts<'_> {
    fn when(&self) -> Result<Option<Filter>, String> {
        self.filter.map(parse_filter).transpose()
    }
}

/// `/[filter/]subject/replacement`: the first character separates, and the last part may have it.
fn split(spec: &str) -> Result<Parts<'_>, String> {
    let mut chars = spec.chars();
    let separator = chars.next().ok_or_else(|| "it is empty".to_owned())?;
    let parts: Vec<&str> = chars.as_str().splitn(3, separator).collect();
    match parts.as_slice() {
        [subject, replacement] => Ok(Parts {
            filter: None,
            subject,
            replacement,
        }),
        [filter, subject, replacement] => Ok(Parts {
            filter: Some(filter),
            subject,
            replacement,
        }),
        _ => Err(format!(
            "it has 2 or 3 parts, each after the separator '{separator}', which is its first character"
        )),
    }
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    Filter::new(text).map_err(|error| format!("the filter is none: {}", error.pointed_at(text)))
}

fn block_spec(spec: &str) -> Result<(Filter, u16), String> {
    let mut chars = spec.chars();
    let separator = chars.next().ok_or_else(|| "it is empty".to_owned())?;
    let parts: Vec<&str> = chars.as_str().splitn(3, separator).collect();
    let [filter, status] = parts.as_slice() else {
        return Err(format!(
            "it has 2 parts, a filter and a status, each after the separator '{separator}'"
        ));
    };
    let status = status
        .parse()
        .map_err(|_| format!("'{status}' is no status code"))
        .and_then(|status| status_code(status, true))?;
    Ok((parse_filter(filter)?, status))
}

/// The text of a replacement, or of the file that it names.
fn text(replacement: &str, files: &mut Vec<PathBuf>) -> Result<Vec<u8>, String> {
    match replacement.strip_prefix('@') {
        None => unescape(replacement),
        Some(path) => {
            let path = existing(&expand_home(path))?;
            let text = read_bounded(&path)?;
            files.push(path);
            Ok(text)
        }
    }
}

fn header_spec(spec: &str, files: &mut Vec<PathBuf>) -> Result<HeaderSpec, String> {
    let parts = split(spec)?;
    let name = String::from_utf8(unescape(parts.subject)?)
        .map_err(|_| "the name is no header's".to_owned())?;
    let value = text(parts.replacement, files)?;
    header_is_valid(&name, "")?;
    tollgate_flow::HeaderList::new()
        .append(name.as_bytes(), &value)
        .map_err(|error| format!("the header {name}: {error}"))?;
    Ok(HeaderSpec {
        when: parts.when()?,
        name,
        value,
    })
}

fn map_local(spec: &str) -> Result<MapLocal, String> {
    let parts = split(spec)?;
    Ok(MapLocal {
        when: parts.when()?,
        url: text_regex(parts.subject)?,
        path: existing(&expand_home(parts.replacement))?,
    })
}

fn body_spec(spec: &str, files: &mut Vec<PathBuf>) -> Result<(Option<Filter>, BodyEdit), String> {
    let parts = split(spec)?;
    // The escapes of a pattern are the regular expression's own: they mean the same.
    let with = text(parts.replacement, files)?;
    let edit = BodyEdit {
        on: None,
        replace: body_replace(parts.subject, &with)?,
    };
    Ok((parts.when()?, edit))
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_character_separates() {
        for (spec, filter, subject, replacement) in [
            ("/a/b", None, "a", "b"),
            ("|~q|a|b|c", Some("~q"), "a", "b|c"),
            (":~u x:a:", Some("~u x"), "a", ""),
            ("ßaßb", None, "a", "b"),
        ] {
            let parts = split(spec).unwrap();
            assert_eq!(
                (parts.filter, parts.subject, parts.replacement),
                (filter, subject, replacement),
                "{spec}"
            );
        }
        for spec in ["", "/", "/a"] {
            assert!(split(spec).is_err(), "{spec}");
        }
    }

    #[test]
    fn options_become_rules_in_the_order_of_addons() {
        let options = MitmOptions {
            block_list: vec!["/~d a/403".into(), "/~d b/444".into()],
            map_remote: vec!["|a|b".into()],
            map_local: vec!["|a|src".into()],
            modify_headers: vec!["/~q/host/x".into(), "/a/".into()],
            modify_body: vec!["/a/b/c".replacen('a', "~s", 1)],
            stickycookie: Some("~d a".into()),
            stickyauth: Some(".".into()),
            anticache: true,
            anticomp: true,
            body_size_limit: Some("1m".into()),
        };
        let rules = lower(&options, &mut Vec::new()).unwrap();
        let words: Vec<&str> = rules.iter().map(Rule::action).collect();
        assert_eq!(
            words,
            [
                "modify_headers",
                "body_limit",
                "block",
                "block",
                "anticache",
                "anticomp",
                "map_remote",
                "map_local",
                "modify_body",
                "sticky_auth",
                "sticky_cookie",
            ]
        );
        assert_eq!(rules[2].name(), "block_list '/~d b/444'");
    }

    #[test]
    fn what_is_wrong_names_the_option() {
        type Set = fn(&mut MitmOptions, &str);
        let cases: [(Set, &str, &str); 8] = [
            (
                |o, v| o.body_size_limit = Some(v.into()),
                "big",
                "body_size_limit 'big': 'big' is no number of bytes",
            ),
            (
                |o, v| o.block_list.push(v.into()),
                "/~d a",
                "block_list '/~d a': it has 2 parts",
            ),
            (
                |o, v| o.block_list.push(v.into()),
                "/~d a/xyz",
                "'xyz' is no status code",
            ),
            (
                |o, v| o.block_list.push(v.into()),
                "/~zz a/403",
                "the filter is none",
            ),
            (
                |o, v| o.map_remote.push(v.into()),
                "|(|b",
                "the pattern is no regular expression",
            ),
            (
                |o, v| o.map_local.push(v.into()),
                "|a|nowhere",
                "can't find nowhere",
            ),
            (
                |o, v| o.modify_headers.push(v.into()),
                "/a b/c",
                "the header a b",
            ),
            (
                |o, v| o.modify_body.push(v.into()),
                "/a/@nowhere",
                "can't find nowhere",
            ),
        ];
        for (set, value, expected) in cases {
            let mut options = MitmOptions::default();
            set(&mut options, value);
            let error = lower(&options, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
