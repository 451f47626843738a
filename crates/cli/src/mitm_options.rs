//! mitmproxy's options: `--set NAME=VALUE` with mitmproxy's names, types and meaning, and its flags by name.
//!
//! The table holds every option that mitmdump has, so that one which Tollgate lacks is named as such and a misspelt one gets
//! a suggestion. `Only` marks options that are accepted with the values that describe what Tollgate does anyway.

use std::fmt;
use std::path::PathBuf;

use crate::paths::expand_home;

/// What `--set` said. `None` and empty lists where it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MitmOptions {
    /// The authority's folder, with mitmproxy's file names.
    pub confdir: Option<PathBuf>,
    /// RSA bits of an authority that is made.
    pub key_size: Option<i64>,
    /// Whether certificates of origins go unverified.
    pub ssl_insecure: Option<bool>,
    /// The authorities that are trusted to sign origins: a PEM file, in place of the platform's.
    pub ssl_verify_upstream_trusted_ca: Option<PathBuf>,
    /// The same: a folder of PEM files.
    pub ssl_verify_upstream_trusted_confdir: Option<PathBuf>,
    /// A client certificate for origins: a PEM file, or a folder of them.
    pub client_certs: Option<PathBuf>,
    /// Leaves of one's own, `[domain=]path`.
    pub certs: Vec<String>,
    /// `TLS1_2` and so on, as spelt by mitmproxy.
    pub tls_version_client_min: Option<String>,
    /// As above.
    pub tls_version_client_max: Option<String>,
    /// As above.
    pub tls_version_server_min: Option<String>,
    /// As above.
    pub tls_version_server_max: Option<String>,
    /// Whether HTTP/2 is spoken.
    pub http2: Option<bool>,
    /// The address to listen at; empty for all.
    pub listen_host: Option<String>,
    /// The port to listen at.
    pub listen_port: Option<i64>,
    /// Modes to run in.
    pub mode: Vec<String>,
    /// Regexes of hosts that are tunnelled.
    pub ignore_hosts: Vec<String>,
    /// Regexes of the only hosts that are opened.
    pub allow_hosts: Vec<String>,
    /// Regexes of hosts that are not read as HTTP.
    pub tcp_hosts: Vec<String>,
    /// Whether tunnels are shown.
    pub show_ignored_hosts: Option<bool>,
    /// Whether a reverse proxy leaves `Host` alone.
    pub keep_host_header: Option<bool>,
    /// Who may use the proxy.
    pub proxyauth: Option<String>,
    /// User and password for the upstream proxy, or the server of a reverse proxy.
    pub upstream_auth: Option<String>,
    /// The local address of upstream connections.
    pub connect_addr: Option<String>,
    /// Seconds without a byte after which a connection is closed.
    pub tcp_timeout: Option<i64>,
    /// How much is shown of a flow.
    pub flow_detail: Option<i64>,
    /// The least severe log line that is shown.
    pub termlog_verbosity: Option<String>,
    /// What changes traffic.
    pub rules: tollgate_rules::MitmOptions,
    /// Whether origins are dialled when a request has to go there only.
    pub lazy: Option<bool>,
    /// Whether the proxy listens.
    pub server: Option<bool>,
    /// Whether it goes on when files were read and requests replayed.
    pub keepserving: Option<bool>,
    /// A file to read.
    pub rfile: Option<String>,
    /// Which of its flows.
    pub readfile_filter: Option<String>,
    /// A file to write.
    pub save_stream_file: Option<String>,
    /// Which flows go into it.
    pub save_stream_filter: Option<String>,
    /// A HAR file to write.
    pub hardump: Option<String>,
    /// Which flows are shown.
    pub dumper_filter: Option<String>,
    /// Files whose requests are sent again.
    pub client_replay: Vec<String>,
    /// How many at once.
    pub client_replay_concurrency: Option<i64>,
    /// Files that answer.
    pub server_replay: Vec<String>,
    /// What a request without a recording gets.
    pub server_replay_extra: Option<String>,
    /// Whether it is killed.
    pub server_replay_kill_extra: Option<bool>,
    /// Whether recordings answer more than once.
    pub server_replay_reuse: Option<bool>,
    /// Whether dates move.
    pub server_replay_refresh: Option<bool>,
    /// Fields that have to be the same.
    pub server_replay_use_headers: Vec<String>,
    /// Whether bodies may differ.
    pub server_replay_ignore_content: Option<bool>,
    /// Whether hosts may differ.
    pub server_replay_ignore_host: Option<bool>,
    /// Whether ports may differ.
    pub server_replay_ignore_port: Option<bool>,
    /// Parameters that may differ.
    pub server_replay_ignore_params: Vec<String>,
    /// Parameters of forms that may differ.
    pub server_replay_ignore_payload_params: Vec<String>,
}

impl MitmOptions {
    /// Reads the values of all `--set`, in their order.
    ///
    /// # Errors
    /// [`OptionError`], for the first that is not usable.
    pub fn parse(sets: &[String]) -> Result<Self, OptionError> {
        let mut given: Vec<(&'static Spec, Vec<Option<&str>>)> = Vec::new();
        for set in sets {
            let (name, value) = match set.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (set.as_str(), None),
            };
            let spec = find(name).ok_or_else(|| OptionError::Unknown {
                name: name.to_owned(),
                suggestion: suggestion(name),
            })?;
            match given.iter_mut().find(|(known, _)| known.name == spec.name) {
                Some((_, values)) => values.push(value),
                None => given.push((spec, vec![value])),
            }
        }
        let mut options = Self::default();
        for (spec, values) in given {
            options.apply(spec, &values)?;
        }
        Ok(options)
    }

    fn apply(&mut self, spec: &'static Spec, values: &[Option<&str>]) -> Result<(), OptionError> {
        let value = match spec.status {
            Status::Missing => return Err(OptionError::Missing(spec.name)),
            Status::Only(accepted) => {
                let value = spec.value(values)?;
                return if accepted.contains(&value.to_string().as_str()) {
                    Ok(())
                } else {
                    Err(OptionError::Only {
                        name: spec.name,
                        value: value.to_string(),
                        accepted: accepted.join(" or "),
                    })
                };
            }
            Status::Supported => spec.value(values)?,
        };
        match (spec.name, value) {
            ("confdir", Value::Str(v)) => self.confdir = v.map(path),
            ("key_size", Value::Int(v)) => self.key_size = v,
            ("ssl_insecure", Value::Bool(v)) => self.ssl_insecure = Some(v),
            ("ssl_verify_upstream_trusted_ca", Value::Str(v)) => {
                self.ssl_verify_upstream_trusted_ca = v.map(path);
            }
            ("ssl_verify_upstream_trusted_confdir", Value::Str(v)) => {
                self.ssl_verify_upstream_trusted_confdir = v.map(path);
            }
            ("client_certs", Value::Str(v)) => self.client_certs = v.map(path),
            ("certs", Value::List(v)) => self.certs = v,
            ("tls_version_client_min", Value::Str(v)) => self.tls_version_client_min = v,
            ("tls_version_client_max", Value::Str(v)) => self.tls_version_client_max = v,
            ("tls_version_server_min", Value::Str(v)) => self.tls_version_server_min = v,
            ("tls_version_server_max", Value::Str(v)) => self.tls_version_server_max = v,
            ("http2", Value::Bool(v)) => self.http2 = Some(v),
            ("listen_host", Value::Str(v)) => self.listen_host = v,
            ("listen_port", Value::Int(v)) => self.listen_port = v,
            ("mode", Value::List(v)) => self.mode = v,
            ("ignore_hosts", Value::List(v)) => self.ignore_hosts = v,
            ("allow_hosts", Value::List(v)) => self.allow_hosts = v,
            ("tcp_hosts", Value::List(v)) => self.tcp_hosts = v,
            ("show_ignored_hosts", Value::Bool(v)) => self.show_ignored_hosts = Some(v),
            ("keep_host_header", Value::Bool(v)) => self.keep_host_header = Some(v),
            ("proxyauth", Value::Str(v)) => self.proxyauth = v,
            ("upstream_auth", Value::Str(v)) => self.upstream_auth = v,
            ("connect_addr", Value::Str(v)) => self.connect_addr = v,
            ("tcp_timeout", Value::Int(v)) => self.tcp_timeout = v,
            ("flow_detail", Value::Int(v)) => self.flow_detail = v,
            ("termlog_verbosity", Value::Str(v)) => self.termlog_verbosity = v,
            ("connection_strategy", Value::Str(v)) => self.lazy = v.map(|v| v == "lazy"),
            ("server", Value::Bool(v)) => self.server = Some(v),
            ("keepserving", Value::Bool(v)) => self.keepserving = Some(v),
            ("rfile", Value::Str(v)) => self.rfile = v,
            ("readfile_filter", Value::Str(v)) => self.readfile_filter = v,
            ("save_stream_file", Value::Str(v)) => self.save_stream_file = v,
            ("save_stream_filter", Value::Str(v)) => self.save_stream_filter = v,
            ("hardump", Value::Str(v)) => self.hardump = v.filter(|v| !v.is_empty()),
            ("dumper_filter", Value::Str(v)) => self.dumper_filter = v,
            ("client_replay", Value::List(v)) => self.client_replay = v,
            ("client_replay_concurrency", Value::Int(v)) => self.client_replay_concurrency = v,
            ("server_replay", Value::List(v)) => self.server_replay = v,
            ("server_replay_extra", Value::Str(v)) => self.server_replay_extra = v,
            ("server_replay_kill_extra", Value::Bool(v)) => self.server_replay_kill_extra = Some(v),
            ("server_replay_nopop" | "server_replay_reuse", Value::Bool(v)) => {
                self.server_replay_reuse = Some(v || self.server_replay_reuse == Some(true));
            }
            ("server_replay_refresh", Value::Bool(v)) => self.server_replay_refresh = Some(v),
            ("server_replay_use_headers", Value::List(v)) => self.server_replay_use_headers = v,
            ("server_replay_ignore_content", Value::Bool(v)) => {
                self.server_replay_ignore_content = Some(v);
            }
            ("server_replay_ignore_host", Value::Bool(v)) => {
                self.server_replay_ignore_host = Some(v)
            }
            ("server_replay_ignore_port", Value::Bool(v)) => {
                self.server_replay_ignore_port = Some(v)
            }
            ("server_replay_ignore_params", Value::List(v)) => self.server_replay_ignore_params = v,
            ("server_replay_ignore_payload_params", Value::List(v)) => {
                self.server_replay_ignore_payload_params = v;
            }
            ("block_list", Value::List(v)) => self.rules.block_list = v,
            ("map_remote", Value::List(v)) => self.rules.map_remote = v,
            ("map_local", Value::List(v)) => self.rules.map_local = v,
            ("modify_headers", Value::List(v)) => self.rules.modify_headers = v,
            ("modify_body", Value::List(v)) => self.rules.modify_body = v,
            ("stickycookie", Value::Str(v)) => self.rules.stickycookie = v,
            ("stickyauth", Value::Str(v)) => self.rules.stickyauth = v,
            ("anticache", Value::Bool(v)) => self.rules.anticache = v,
            ("anticomp", Value::Bool(v)) => self.rules.anticomp = v,
            ("body_size_limit", Value::Str(v)) => self.rules.body_size_limit = v,
            // Everything streams here, whatever its size; only the spelling is looked at.
            ("stream_large_bodies", Value::Str(v)) => {
                if let Some(size) = v.filter(|size| !is_size(size)) {
                    return Err(OptionError::Type {
                        name: spec.name,
                        expected: "a size such as 512k, 1m or 1g",
                        value: size,
                    });
                }
            }
            _ => return Err(OptionError::Missing(spec.name)),
        }
        Ok(())
    }
}

/// An option or flag that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// mitmproxy has none of that name either.
    Unknown {
        /// As it was given.
        name: String,
        /// A name that looks like it.
        suggestion: Option<&'static str>,
    },
    /// mitmproxy has it, Tollgate doesn't yet.
    Missing(&'static str),
    /// It exists with a part of mitmproxy's values.
    Only {
        /// The option.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// What is accepted.
        accepted: String,
    },
    /// The value has the wrong type.
    Type {
        /// The option.
        name: &'static str,
        /// The type, in words.
        expected: &'static str,
        /// The value that was given.
        value: String,
    },
    /// The value is none of those that it can have.
    Choice {
        /// The option.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// Those that it can have.
        choices: &'static [&'static str],
    },
    /// It was given more than once, and is no list.
    Repeated(&'static str),
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown {
                name,
                suggestion: Some(suggestion),
            } => write!(f, "unknown option '{name}' — did you mean '{suggestion}'?"),
            Self::Unknown { name, .. } => write!(f, "unknown option '{name}'"),
            Self::Missing(name) => write!(
                f,
                "option '{name}' exists in mitmproxy but Tollgate doesn't have it yet"
            ),
            Self::Only {
                name,
                value,
                accepted,
            } => write!(
                f,
                "option '{name}' can only be {accepted} so far: Tollgate doesn't have mitmproxy's '{value}' yet"
            ),
            Self::Type {
                name,
                expected,
                value,
            } => write!(f, "option '{name}' must be {expected}, not '{value}'"),
            Self::Choice {
                name,
                value,
                choices,
            } => write!(
                f,
                "option '{name}' must be one of {}, not '{value}'",
                choices.join(", ")
            ),
            Self::Repeated(name) => write!(f, "option '{name}' is set more than once"),
        }
    }
}

impl std::error::Error for OptionError {}

/// Says what a command-line flag is in mitmdump, for one that Tollgate does not have; `None` when mitmdump hasn't it either.
///
/// `flag` is as typed: `-s`, `--scripts`, `--no-rawtcp`.
pub fn missing_flag(flag: &str) -> Option<String> {
    let long = match flag {
        "-s" => "--scripts",
        long => long,
    };
    let name = long.strip_prefix("--")?.replace('-', "_");
    let known =
        |name: &str| find(name).is_some() || matches!(name, "options" | "commands" | "script");
    let known = known(&name) || name.strip_prefix("no_").is_some_and(known);
    let shown = if long == flag {
        format!("'{flag}'")
    } else {
        format!("'{flag}' ({long})")
    };
    known.then(|| format!("option {shown} exists in mitmproxy but Tollgate doesn't have it yet"))
}

/// An option of mitmproxy's.
struct Spec {
    name: &'static str,
    kind: Kind,
    status: Status,
}

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Int,
    OptInt,
    Str,
    OptStr,
    List,
    Choice(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Status {
    /// It has its meaning here.
    Supported,
    /// It is accepted with these values.
    Only(&'static [&'static str]),
    /// Not here yet.
    Missing,
}

enum Value {
    Bool(bool),
    Int(Option<i64>),
    Str(Option<String>),
    List(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(Some(value)) => value.fmt(f),
            Self::Str(Some(value)) => value.fmt(f),
            Self::Int(None) | Self::Str(None) => Ok(()),
            Self::List(values) => values.join(", ").fmt(f),
        }
    }
}

impl Spec {
    /// Reads the values as mitmproxy does: a bare name is `true` for a bool, empties a list, and unsets what is optional.
    fn value(&self, values: &[Option<&str>]) -> Result<Value, OptionError> {
        let wrong = |expected, value: Option<&str>| OptionError::Type {
            name: self.name,
            expected,
            value: value.unwrap_or_default().to_owned(),
        };
        if let Kind::List = self.kind {
            let values = values.iter().flatten().filter(|value| !value.is_empty());
            return Ok(Value::List(
                values.map(|value| (*value).to_owned()).collect(),
            ));
        }
        let &[value] = values else {
            return Err(OptionError::Repeated(self.name));
        };
        match self.kind {
            Kind::Bool => match value {
                None | Some("" | "true") => Ok(Value::Bool(true)),
                Some("false") => Ok(Value::Bool(false)),
                // From what it is where nothing is said.
                Some("toggle") => Ok(Value::Bool(!ON.contains(&self.name))),
                other => Err(wrong("true or false", other)),
            },
            Kind::OptInt if value.is_none_or(str::is_empty) => Ok(Value::Int(None)),
            Kind::Int | Kind::OptInt => value
                .and_then(|value| value.parse().ok())
                .map(|value| Value::Int(Some(value)))
                .ok_or_else(|| wrong("a whole number", value)),
            Kind::OptStr => Ok(Value::Str(
                value.filter(|value| !value.is_empty()).map(str::to_owned),
            )),
            Kind::Str => value
                .map(|value| Value::Str(Some(value.to_owned())))
                .ok_or_else(|| wrong("text", value)),
            Kind::Choice(choices) => match value {
                Some(value) if choices.contains(&value) => Ok(Value::Str(Some(value.to_owned()))),
                other => Err(OptionError::Choice {
                    name: self.name,
                    value: other.unwrap_or_default().to_owned(),
                    choices,
                }),
            },
            Kind::List => Ok(Value::List(Vec::new())),
        }
    }
}

fn find(name: &str) -> Option<&'static Spec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

/// The known name that looks like it.
fn suggestion(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    tollgate_rules::closest(&name, OPTIONS.iter().map(|spec| spec.name))
}

/// Digits with one of mitmproxy's units, or none.
fn is_size(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let digits = lower
        .strip_suffix(['b', 'k', 'm', 'g', 't'])
        .unwrap_or(&lower);
    digits.parse::<u64>().is_ok()
}

fn path(text: String) -> PathBuf {
    expand_home(&text)
}

const fn option(name: &'static str, kind: Kind, status: Status) -> Spec {
    Spec { name, kind, status }
}

const TLS_VERSIONS: Kind =
    Kind::Choice(&["UNBOUNDED", "SSL3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3"]);
const VERBOSITIES: Kind = Kind::Choice(&["error", "warn", "info", "alert", "debug"]);

/// What is true where nothing is said.
const ON: &[&str] = &[
    "block_global",
    "command_history",
    "dns_use_hosts_file",
    "http2",
    "http3",
    "http_connect_send_host_header",
    "normalize_outbound_headers",
    "onboarding",
    "rawtcp",
    "server",
    "server_replay_refresh",
    "strip_ech",
    "upstream_cert",
    "validate_inbound_headers",
    "websocket",
];

/// Every option of mitmdump 13, by name.
const OPTIONS: &[Spec] = &[
    option(
        "add_upstream_certs_to_client_chain",
        Kind::Bool,
        Status::Only(&["false"]),
    ),
    option("allow_hosts", Kind::List, Status::Supported),
    option("anticache", Kind::Bool, Status::Supported),
    option("anticomp", Kind::Bool, Status::Supported),
    option("block_global", Kind::Bool, Status::Only(&["false"])),
    option("block_list", Kind::List, Status::Supported),
    option("block_private", Kind::Bool, Status::Only(&["false"])),
    option("body_size_limit", Kind::OptStr, Status::Supported),
    option("cert_passphrase", Kind::OptStr, Status::Missing),
    option("certs", Kind::List, Status::Supported),
    option("ciphers_client", Kind::OptStr, Status::Missing),
    option("ciphers_server", Kind::OptStr, Status::Missing),
    option("client_certs", Kind::OptStr, Status::Supported),
    option("client_replay", Kind::List, Status::Supported),
    option("client_replay_concurrency", Kind::Int, Status::Supported),
    option("command_history", Kind::Bool, Status::Missing),
    option("confdir", Kind::Str, Status::Supported),
    option("connect_addr", Kind::OptStr, Status::Supported),
    option(
        "connection_strategy",
        Kind::Choice(&["eager", "lazy"]),
        Status::Supported,
    ),
    option("content_view_lines_cutoff", Kind::Int, Status::Missing),
    option("dns_name_servers", Kind::List, Status::Missing),
    option("dns_use_hosts_file", Kind::Bool, Status::Missing),
    option("dumper_default_contentview", Kind::Str, Status::Missing),
    option("dumper_filter", Kind::OptStr, Status::Supported),
    option(
        "export_preserve_original_ip",
        Kind::Bool,
        Status::Only(&["false"]),
    ),
    option("flow_detail", Kind::Int, Status::Supported),
    option("hardump", Kind::Str, Status::Supported),
    option("http2", Kind::Bool, Status::Supported),
    option("http2_ping_keepalive", Kind::Int, Status::Missing),
    option("http3", Kind::Bool, Status::Only(&["false"])),
    option("http_connect_send_host_header", Kind::Bool, Status::Missing),
    option("ignore_hosts", Kind::List, Status::Supported),
    option("keep_alt_svc_header", Kind::Bool, Status::Missing),
    option("keep_host_header", Kind::Bool, Status::Supported),
    option("keepserving", Kind::Bool, Status::Supported),
    option("key_size", Kind::Int, Status::Supported),
    option("listen_host", Kind::Str, Status::Supported),
    option("listen_port", Kind::OptInt, Status::Supported),
    option("map_local", Kind::List, Status::Supported),
    option("map_remote", Kind::List, Status::Supported),
    option("mode", Kind::List, Status::Supported),
    option("modify_body", Kind::List, Status::Supported),
    option("modify_headers", Kind::List, Status::Supported),
    option("normalize_outbound_headers", Kind::Bool, Status::Missing),
    option("onboarding", Kind::Bool, Status::Only(&["false"])),
    option("onboarding_host", Kind::Str, Status::Missing),
    option("protobuf_definitions", Kind::OptStr, Status::Missing),
    option("proxy_debug", Kind::Bool, Status::Only(&["false"])),
    option("proxyauth", Kind::OptStr, Status::Supported),
    option("rawtcp", Kind::Bool, Status::Only(&["true"])),
    option("readfile_filter", Kind::OptStr, Status::Supported),
    option("request_client_cert", Kind::Bool, Status::Only(&["false"])),
    option("rfile", Kind::OptStr, Status::Supported),
    option("save_stream_file", Kind::OptStr, Status::Supported),
    option("save_stream_filter", Kind::OptStr, Status::Supported),
    option("scripts", Kind::List, Status::Missing),
    option("server", Kind::Bool, Status::Supported),
    option("server_replay", Kind::List, Status::Supported),
    option("server_replay_extra", Kind::Str, Status::Supported),
    option(
        "server_replay_ignore_content",
        Kind::Bool,
        Status::Supported,
    ),
    option("server_replay_ignore_host", Kind::Bool, Status::Supported),
    option("server_replay_ignore_params", Kind::List, Status::Supported),
    option(
        "server_replay_ignore_payload_params",
        Kind::List,
        Status::Supported,
    ),
    option("server_replay_ignore_port", Kind::Bool, Status::Supported),
    option("server_replay_kill_extra", Kind::Bool, Status::Supported),
    option("server_replay_nopop", Kind::Bool, Status::Supported),
    option("server_replay_refresh", Kind::Bool, Status::Supported),
    option("server_replay_reuse", Kind::Bool, Status::Supported),
    option("server_replay_use_headers", Kind::List, Status::Supported),
    option("show_ignored_hosts", Kind::Bool, Status::Supported),
    option("showhost", Kind::Bool, Status::Only(&["false"])),
    option("ssl_insecure", Kind::Bool, Status::Supported),
    option(
        "ssl_verify_upstream_trusted_ca",
        Kind::OptStr,
        Status::Supported,
    ),
    option(
        "ssl_verify_upstream_trusted_confdir",
        Kind::OptStr,
        Status::Supported,
    ),
    option("stickyauth", Kind::OptStr, Status::Supported),
    option("stickycookie", Kind::OptStr, Status::Supported),
    option(
        "store_streamed_bodies",
        Kind::Bool,
        Status::Only(&["false"]),
    ),
    option("stream_large_bodies", Kind::OptStr, Status::Supported),
    option("strip_ech", Kind::Bool, Status::Missing),
    option("tcp_hosts", Kind::List, Status::Supported),
    option("tcp_timeout", Kind::Int, Status::Supported),
    option("termlog_verbosity", VERBOSITIES, Status::Supported),
    option("tls_ecdh_curve_client", Kind::OptStr, Status::Missing),
    option("tls_ecdh_curve_server", Kind::OptStr, Status::Missing),
    option("tls_version_client_max", TLS_VERSIONS, Status::Supported),
    option("tls_version_client_min", TLS_VERSIONS, Status::Supported),
    option("tls_version_server_max", TLS_VERSIONS, Status::Supported),
    option("tls_version_server_min", TLS_VERSIONS, Status::Supported),
    option("udp_hosts", Kind::List, Status::Missing),
    option("upstream_auth", Kind::OptStr, Status::Supported),
    option("upstream_cert", Kind::Bool, Status::Only(&["true"])),
    option(
        "validate_inbound_headers",
        Kind::Bool,
        Status::Only(&["true"]),
    ),
    option("websocket", Kind::Bool, Status::Missing),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sets: &[&str]) -> Result<MitmOptions, String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        MitmOptions::parse(&sets).map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_of_mitmdump_is_known_once() {
        assert_eq!(OPTIONS.len(), 93);
        assert!(OPTIONS.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn every_supported_option_has_a_field() {
        for spec in OPTIONS {
            let value = match (spec.status, spec.kind) {
                (Status::Supported, Kind::Bool) => "true",
                (Status::Supported, Kind::Choice(choices)) => choices[0],
                (Status::Supported, _) => "1",
                (Status::Only(values), _) => values[0],
                (Status::Missing, _) => continue,
            };
            parse(&[&format!("{}={value}", spec.name)]).unwrap();
        }
    }

    #[test]
    fn values_have_mitmproxys_meaning() {
        let options = parse(&[
            "ssl_insecure",
            "http2=false",
            "flow_detail=3",
            "ignore_hosts=a",
            "ignore_hosts=b=c",
            "listen_port=",
            "client_certs=",
            "stream_large_bodies=1m",
            "anticache=toggle",
            "server_replay_refresh=toggle",
        ])
        .unwrap();
        assert!(options.rules.anticache);
        assert_eq!(options.server_replay_refresh, Some(false));
        assert_eq!(options.ssl_insecure, Some(true));
        assert_eq!(options.http2, Some(false));
        assert_eq!(options.flow_detail, Some(3));
        assert_eq!(options.ignore_hosts, ["a", "b=c"]);
        assert_eq!(options.listen_port, None);
        assert_eq!(options.client_certs, None);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let cases = [
            (
                "strip_ech=true",
                "option 'strip_ech' exists in mitmproxy but Tollgate doesn't have it yet",
            ),
            (
                "ssl_insecur=true",
                "unknown option 'ssl_insecur' — did you mean 'ssl_insecure'?",
            ),
            (
                "SSL-insecure=true",
                "unknown option 'SSL-insecure' — did you mean 'ssl_insecure'?",
            ),
            ("quux=1", "unknown option 'quux'"),
            (
                "flow_detail=much",
                "option 'flow_detail' must be a whole number, not 'much'",
            ),
            (
                "http2=off",
                "option 'http2' must be true or false, not 'off'",
            ),
            (
                "stream_large_bodies=big",
                "option 'stream_large_bodies' must be a size such as 512k, 1m or 1g, not 'big'",
            ),
            (
                "tls_version_client_min=1.2",
                "option 'tls_version_client_min' must be one of UNBOUNDED, SSL3, TLS1, TLS1_1, TLS1_2, TLS1_3, not '1.2'",
            ),
            (
                "upstream_cert=false",
                "option 'upstream_cert' can only be true so far: Tollgate doesn't have mitmproxy's 'false' yet",
            ),
        ];
        for (set, expected) in cases {
            assert_eq!(parse(&[set]).unwrap_err(), expected);
        }
        assert_eq!(
            parse(&["http2=true", "http2=false"]).unwrap_err(),
            "option 'http2' is set more than once"
        );
    }

    #[test]
    fn flags_of_mitmdump_are_known_by_name() {
        assert_eq!(
            missing_flag("-s").as_deref(),
            Some("option '-s' (--scripts) exists in mitmproxy but Tollgate doesn't have it yet")
        );
        assert!(missing_flag("--proxy-debug").is_some());
        assert!(missing_flag("--no-rawtcp").is_some());
        assert_eq!(missing_flag("--frobnicate"), None);
        assert_eq!(missing_flag("-z"), None);
    }
}
