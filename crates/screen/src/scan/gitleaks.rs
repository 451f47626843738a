//! Rule packs in the TOML of gitleaks.

use std::sync::Arc;

use serde::Deserialize;

use super::finding::{Category, Severity};
use super::rule::{Allowlist, Pattern, PatternError, Rule, RuleInfo, Target};
use super::verify;

/// No pack may be larger than this many bytes.
pub const MAX_PACK_BYTES: usize = 8 << 20;
/// No pack may have more rules than this.
pub const MAX_PACK_RULES: usize = 4096;

/// Why a rule pack is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The file is larger than [`MAX_PACK_BYTES`].
    #[error("{file}: a rule pack may have {MAX_PACK_BYTES} bytes at most")]
    TooLong {
        /// The pack's name.
        file: String,
    },
    /// The pack has more rules than [`MAX_PACK_RULES`].
    #[error("{file}: a rule pack may have {MAX_PACK_RULES} rules at most")]
    TooManyRules {
        /// The pack's name.
        file: String,
    },
    /// Not TOML, or not the fields that a pack has.
    #[error("{file}: {reason}")]
    Toml {
        /// The pack's name.
        file: String,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// A rule without an id.
    #[error("{file}: rule number {number} has no id")]
    NoId {
        /// The pack's name.
        file: String,
        /// Counted from one.
        number: usize,
    },
    /// Two rules with one id.
    #[error("{file}: the rule `{rule}` stands there twice")]
    Duplicate {
        /// The pack's name.
        file: String,
        /// The id.
        rule: String,
    },
    /// A pattern that can't be used.
    #[error("{file}: rule `{rule}`: {error}")]
    Pattern {
        /// The pack's name.
        file: String,
        /// The rule's id.
        rule: String,
        /// What is wrong with it.
        error: PatternError,
    },
    /// An allowlist that says nothing, or a word that is not known there.
    #[error("{file}: rule `{rule}`: {reason}")]
    Allowlist {
        /// The pack's name.
        file: String,
        /// The rule's id; `(global)` for the pack's own.
        rule: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Rules read from a file.
///
/// Rules that look at file names only (`path` without `regex`) are counted and left out: text has
/// no name. `path` next to a regex is left out as well, so that rule looks at every text.
#[derive(Debug)]
pub struct RulePack {
    pub(super) rules: Vec<Rule>,
    path_only: usize,
}

#[derive(Deserialize)]
struct RawPack {
    #[serde(default)]
    rules: Vec<RawRule>,
    allowlist: Option<RawAllowlist>,
    #[serde(default)]
    allowlists: Vec<RawAllowlist>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    #[serde(default)]
    id: String,
    #[serde(default)]
    description: String,
    regex: Option<String>,
    #[serde(default)]
    secret_group: usize,
    #[serde(default)]
    entropy: f64,
    #[serde(default)]
    keywords: Vec<String>,
    path: Option<String>,
    allowlist: Option<RawAllowlist>,
    #[serde(default)]
    allowlists: Vec<RawAllowlist>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAllowlist {
    condition: Option<String>,
    regex_target: Option<String>,
    #[serde(default)]
    regexes: Vec<String>,
    #[serde(default)]
    stopwords: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    commits: Vec<String>,
    #[serde(default)]
    target_rules: Vec<String>,
}

impl RulePack {
    /// Reads a pack. `file` is its name in errors.
    ///
    /// ```
    /// use tollgate_screen::scan::RulePack;
    ///
    /// let pack = RulePack::gitleaks(
    ///     "[[rules]]\nid = 'acme'\ndescription = 'Acme token'\nregex = '''acme_[0-9a-f]{16}'''\n",
    ///     "acme.toml",
    /// )?;
    /// assert_eq!(pack.len(), 1);
    /// # Ok::<(), tollgate_screen::scan::PackError>(())
    /// ```
    ///
    /// # Errors
    /// Every kind of [`PackError`]; a pack is accepted as a whole or not at all.
    pub fn gitleaks(toml: &str, file: &str) -> Result<Self, PackError> {
        let file_name = || file.to_owned();
        if toml.len() > MAX_PACK_BYTES {
            return Err(PackError::TooLong { file: file_name() });
        }
        let raw: RawPack = toml::from_str(toml).map_err(|error| PackError::Toml {
            file: file_name(),
            reason: error.to_string().trim().replace('\n', " "),
        })?;
        if raw.rules.len() > MAX_PACK_RULES {
            return Err(PackError::TooManyRules { file: file_name() });
        }
        let mut global = Vec::new();
        for list in raw.allowlist.iter().chain(&raw.allowlists) {
            let compiled = Arc::new(allowlist(list, file, "(global)")?);
            global.push((list.target_rules.clone(), compiled));
        }
        let mut rules: Vec<Rule> = Vec::with_capacity(raw.rules.len());
        let mut path_only = 0;
        for (at, rule) in raw.rules.iter().enumerate() {
            if rule.id.is_empty() {
                return Err(PackError::NoId {
                    file: file_name(),
                    number: at + 1,
                });
            }
            if rules.iter().any(|known| *known.info.id == *rule.id) {
                return Err(PackError::Duplicate {
                    file: file_name(),
                    rule: rule.id.clone(),
                });
            }
            let Some(regex) = &rule.regex else {
                path_only += usize::from(rule.path.is_some());
                continue;
            };
            let wrong = |error| PackError::Pattern {
                file: file_name(),
                rule: rule.id.clone(),
                error,
            };
            let pattern = Pattern::parse(&from_re2(regex)).map_err(wrong)?;
            let groups = pattern.compile().map_err(wrong)?;
            if rule.secret_group > groups {
                return Err(wrong(PatternError::NoSuchGroup {
                    group: rule.secret_group,
                    groups,
                }));
            }
            let mut allow = Vec::new();
            for list in rule.allowlist.iter().chain(&rule.allowlists) {
                allow.push(Arc::new(allowlist(list, file, &rule.id)?));
            }
            allow.extend(
                global
                    .iter()
                    .filter(|(only, _)| only.is_empty() || only.contains(&rule.id))
                    .map(|(_, list)| Arc::clone(list)),
            );
            rules.push(Rule {
                info: RuleInfo {
                    id: rule.id.as_str().into(),
                    description: rule.description.as_str().into(),
                    category: Category::Secret,
                    severity: Severity::High,
                },
                pattern,
                group: rule.secret_group,
                min_entropy: rule.entropy,
                verify: verify::any,
                allow,
                keywords: rule
                    .keywords
                    .iter()
                    .map(|word| word.to_ascii_lowercase().into_bytes())
                    .filter(|word| !word.is_empty())
                    .collect(),
            });
        }
        Ok(RulePack { rules, path_only })
    }

    /// How many rules look at text.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether no rule looks at text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many rules were left out because they look at file names only.
    #[must_use]
    pub fn path_only(&self) -> usize {
        self.path_only
    }
}

fn allowlist(raw: &RawAllowlist, file: &str, rule: &str) -> Result<Allowlist, PackError> {
    let wrong = |reason: String| PackError::Allowlist {
        file: file.to_owned(),
        rule: rule.to_owned(),
        reason,
    };
    let all = match raw
        .condition
        .as_deref()
        .map(str::to_ascii_uppercase)
        .as_deref()
    {
        None | Some("" | "OR" | "||") => false,
        Some("AND" | "&&") => true,
        Some(other) => {
            return Err(wrong(format!(
                "the condition {other:?} is neither AND nor OR"
            )));
        }
    };
    let target = match raw.regex_target.as_deref() {
        None | Some("" | "secret") => Target::Secret,
        Some("match") => Target::Match,
        Some("line") => Target::Line,
        Some(other) => {
            return Err(wrong(format!(
                "the regexTarget {other:?} is none of secret, match, line"
            )));
        }
    };
    let mut regexes = Vec::with_capacity(raw.regexes.len());
    for regex in &raw.regexes {
        let error = |error| PackError::Pattern {
            file: file.to_owned(),
            rule: rule.to_owned(),
            error,
        };
        let pattern = Pattern::parse(&from_re2(regex)).map_err(error)?;
        pattern.compile().map_err(error)?;
        regexes.push(pattern);
    }
    Ok(Allowlist {
        all,
        target,
        regexes,
        stopwords: raw
            .stopwords
            .iter()
            .map(|word| word.to_ascii_lowercase().into_bytes())
            .filter(|word| !word.is_empty())
            .collect(),
        needs_file: !raw.paths.is_empty() || !raw.commits.is_empty(),
    })
}

/// Rewrites a pattern of Go's RE2 where this crate's syntax reads it differently: a `[` inside a
/// class, `&&`, `--` and `~~` there, a `{` or `}` that counts nothing, `\Q…\E`, escapes of
/// punctuation that mean something else here.
pub(super) fn from_re2(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars().peekable();
    let mut in_class = false;
    let mut class_start = false;
    while let Some(c) = rest.next() {
        if c == '\\' {
            match rest.next() {
                Some('Q') => {
                    let mut literal = String::new();
                    while let Some(next) = rest.next() {
                        if next == '\\' && rest.peek() == Some(&'E') {
                            rest.next();
                            break;
                        }
                        literal.push(next);
                    }
                    out.push_str(&regex_syntax::escape(&literal));
                }
                Some(next @ ('<' | '>')) => out.push(next),
                Some(next) if next.is_ascii_digit() && next != '0' => {
                    // An octal escape in RE2; back references don't exist there.
                    let mut digits = String::from(next);
                    while digits.len() < 3 && rest.peek().is_some_and(|d| d.is_digit(8)) {
                        digits.extend(rest.next());
                    }
                    match u32::from_str_radix(&digits, 8) {
                        Ok(value) => out.push_str(&format!("\\x{{{value:x}}}")),
                        Err(_) => {
                            out.push('\\');
                            out.push_str(&digits);
                        }
                    }
                }
                Some(next) => {
                    out.push('\\');
                    out.push(next);
                }
                None => out.push('\\'),
            }
            class_start = false;
            continue;
        }
        if in_class {
            match c {
                ']' if !class_start => {
                    in_class = false;
                    out.push(']');
                }
                ']' => out.push_str("\\]"),
                '[' if rest.peek() == Some(&':') => {
                    // [:alpha:] stays as it is, up to its end.
                    out.push('[');
                    while let Some(next) = rest.next() {
                        out.push(next);
                        if next == ':' && rest.peek() == Some(&']') {
                            out.extend(rest.next());
                            break;
                        }
                    }
                }
                '[' => out.push_str("\\["),
                '^' if class_start => {
                    out.push('^');
                    continue;
                }
                '&' | '~' if rest.peek() == Some(&c) => {
                    out.push('\\');
                    out.push(c);
                }
                '-' if rest.peek() == Some(&'-') => out.push_str("\\-"),
                _ => out.push(c),
            }
            class_start = false;
            continue;
        }
        match c {
            '[' => {
                in_class = true;
                class_start = true;
                out.push('[');
            }
            '{' => {
                let ahead: String = rest.clone().take_while(|&next| next != '}').collect();
                let closed = rest.clone().any(|next| next == '}');
                let counts = closed
                    && ahead.starts_with(|d: char| d.is_ascii_digit())
                    && ahead.chars().all(|d| d.is_ascii_digit() || d == ',')
                    && ahead.matches(',').count() <= 1;
                if counts {
                    out.push('{');
                    out.push_str(&ahead);
                    out.push('}');
                    for _ in 0..=ahead.len() {
                        rest.next();
                    }
                } else {
                    out.push_str("\\{");
                }
            }
            '}' => out.push_str("\\}"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn re2_means_the_same_here() {
        for (re2, ours) in [
            (r"a[[]b", r"a[\[]b"),
            (r"[^]]", r"[^\]]"),
            (r"[]a]", r"[\]a]"),
            (r"[[:alpha:]_]", r"[[:alpha:]_]"),
            (r"^\${(?:\d+|{\d+})$", r"^\$\{(?:\d+|\{\d+\})$"),
            (r"a{2}b{2,}c{2,3}", r"a{2}b{2,}c{2,3}"),
            (r"\Qa.b\E+", r"a\.b+"),
            (r"[&&]", r"[\&&]"),
            (r"\<b\>", "<b>"),
        ] {
            assert_eq!(from_re2(re2), ours, "{re2}");
            assert!(Pattern::parse(ours).is_ok(), "{ours}");
        }
    }

    #[test]
    fn errors_name_file_and_rule() {
        let error = RulePack::gitleaks("[[rules]]\nid='a'\nregex='('\n", "x.toml").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("x.toml: rule `a`: the pattern is invalid"),
            "{error}"
        );
        let error = RulePack::gitleaks("[[rules]]\nregex='a'\n", "x.toml").unwrap_err();
        assert_eq!(error.to_string(), "x.toml: rule number 1 has no id");
        let error = RulePack::gitleaks("rules = 3", "x.toml").unwrap_err();
        assert!(matches!(error, PackError::Toml { .. }), "{error}");
        let error = RulePack::gitleaks("[[rules]]\nid='a'\nregex='(a)'\nsecretGroup=2\n", "x.toml")
            .unwrap_err();
        assert!(error.to_string().contains("secretGroup is 2"), "{error}");
    }
}
