//! A list of rules that is in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tollgate_flow::filter::{Field, Subject};
use tollgate_flow::record::{FlowType, Replay};
use tollgate_flow::{
    ClientHello, ConnectionInfo, Direction, Flow, Interceptor as _, Interest, Target,
};

use crate::config;
use crate::error::{Place, RuleError};
use crate::mitm::{self, MitmOptions};
use crate::replay::ServerReplay;
use crate::rule::{Action, Rule};

/// The longest request body that is changed as a whole, so that its length stays in its head. A longer one, or one of
/// unknown length, is changed as it streams.
const WHOLE_REQUEST: u64 = 1 << 20;

/// An ordered list of rules.
#[derive(Debug, Default)]
pub struct RuleSet {
    pub(crate) rules: Vec<Rule>,
    files: Vec<PathBuf>,
}

impl RuleSet {
    /// Reads files of rules, and lowers mitmproxy's options behind them. All or nothing. Blocks.
    ///
    /// # Errors
    /// The first rule that can't be used, with its line.
    pub fn load(files: &[PathBuf], options: &MitmOptions) -> Result<Self, RuleError> {
        let mut set = Self::default();
        for file in files {
            let loaded = config::load(file)?;
            set.rules.extend(loaded.rules);
            set.files.extend(loaded.files);
        }
        set.rules.extend(mitm::lower(options, &mut set.files)?);
        Ok(set)
    }

    /// Reads rules from text in the format of a file. `shown` is what errors call it, and paths are from `folder`.
    ///
    /// ```
    /// use tollgate_rules::RuleSet;
    ///
    /// let text = "[[rule]]\nwhen = \"~d ads.example\"\nblock = 403\n";
    /// let rules = RuleSet::parse(text, "rules.toml", ".".as_ref())?;
    /// assert_eq!(rules.rules()[0].action(), "block");
    ///
    /// let error = RuleSet::parse("[[rule]]\nblok = 403\n", "rules.toml", ".".as_ref()).unwrap_err();
    /// assert_eq!(error.to_string(), "rules.toml:2: unknown key 'blok'; did you mean 'block'?");
    /// # Ok::<(), tollgate_rules::RuleError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn parse(text: &str, shown: &str, folder: &Path) -> Result<Self, RuleError> {
        let loaded = config::parse(text, shown, folder)?;
        Ok(Self {
            rules: loaded.rules,
            files: loaded.files,
        })
    }

    /// Lets recordings answer, at the place of mitmproxy's server replay: behind the files and `anticomp`, and before
    /// `map_remote` and whatever else changes what is asked for.
    #[must_use]
    pub fn server_replay(mut self, replay: Arc<ServerReplay>) -> Self {
        let acts_later = |rule: &Rule| {
            matches!(
                rule.place,
                Place::Option(
                    "map_remote" | "map_local" | "modify_body" | "stickyauth" | "stickycookie",
                    _
                )
            )
        };
        let at = self.rules.iter().position(acts_later);
        let rule = Rule {
            name: None,
            place: Place::Option("server_replay", String::new()),
            when: None,
            on: Direction::Request,
            action: Action::Replay(replay),
        };
        self.rules.insert(at.unwrap_or(self.rules.len()), rule);
        self
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The files that were read: when one of them changes, the rules are to be loaded anew.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What the rules want of a flow whose request head is there.
    pub(crate) fn interest(&self, flow: &Flow) -> Interest {
        let mut interest = Interest::NONE;
        // Once a rule has changed the request, those behind it may see another one.
        let mut changed = false;
        for rule in &self.rules {
            if let Action::StickyAuth(_) = rule.action {
                // It learns from every request.
                interest |= Interest::REQUEST;
                changed = true;
                continue;
            }
            if let Action::StickyCookie(_) = rule.action {
                // It learns from every response.
                interest |= Interest::HEADS;
                changed = true;
                continue;
            }
            let undecided = |on: Direction| {
                changed
                    || rule.when.as_ref().is_some_and(|filter| match on {
                        Direction::Request => filter.looks_at_request_bodies(),
                        Direction::Response => filter.looks_beyond_request_head(),
                    })
            };
            let may = |on| undecided(on) || rule.applies(flow);
            let bodies = rule.when.as_ref().is_some_and(|f| f.looks_at_bodies());
            let mut wanted = Interest::NONE;
            match &rule.action {
                Action::Tunnel => {}
                Action::Headers(_)
                | Action::Block(_)
                | Action::Respond(_)
                | Action::Redirect(_)
                | Action::Hold(_) => {
                    if may(rule.on) {
                        wanted |= head(rule.on, bodies);
                    }
                }
                Action::ModifyHeaders(_) => wanted |= Interest::HEADS,
                Action::Replay(replay) => wanted |= replay.interest(flow),
                Action::Body(edit) => {
                    if edit.is_on(Direction::Request) && may(Direction::Request) {
                        wanted |= match flow.request.headers().contains("content-length") {
                            true if request_length(flow) <= WHOLE_REQUEST => Interest::REQUEST_BODY,
                            false if !has_body(flow) => Interest::REQUEST,
                            _ if bodies => Interest::REQUEST_BODY,
                            _ => Interest::EDIT_REQUEST_DATA | Interest::REQUEST,
                        };
                    }
                    if edit.is_on(Direction::Response) && may(Direction::Response) {
                        wanted |= Interest::EDIT_RESPONSE_DATA | head(Direction::Response, bodies);
                    }
                }
                Action::Message(_) => {
                    // Its filter is asked again when messages pass, and may look at anything then.
                    let asks_later = rule
                        .when
                        .as_ref()
                        .is_some_and(|filter| filter.looks_beyond_request_head());
                    if asks_websocket(flow) && (changed || asks_later || rule.applies(flow)) {
                        wanted |= Interest::EDIT_MESSAGES;
                    }
                }
                Action::Throttle(throttle) => {
                    if may(Direction::Request) {
                        wanted |= head(Direction::Request, bodies);
                        if throttle.upload.is_some() {
                            wanted |= Interest::REQUEST_DATA;
                        }
                        if throttle.download.is_some() {
                            wanted |= Interest::RESPONSE_DATA;
                        }
                    }
                }
                Action::BodyLimit(_) => {
                    if may(Direction::Request) {
                        wanted |= head(Direction::Request, bodies) | Interest::RESPONSE;
                        wanted |= Interest::RESPONSE_DATA;
                        // Over HTTP/2 any method may have one, whatever is usual.
                        if flow.request.headers().content_length().is_none() && may_have_body(flow)
                        {
                            wanted |= Interest::REQUEST_DATA;
                        }
                    }
                }
                Action::Budget(budget) => {
                    if may(Direction::Request) {
                        wanted |= head(Direction::Request, bodies);
                        if budget.upload.is_some() {
                            wanted |= Interest::REQUEST_DATA;
                        }
                    }
                }
                _ => {
                    if may(Direction::Request) {
                        wanted |= head(Direction::Request, bodies);
                    }
                }
            }
            if !wanted.is_empty() {
                interest |= wanted;
                changed |= rule.action.changes_request();
            }
        }
        // What the rules answer themselves passes those for responses.
        interest
    }

    /// What the rules say of a connection before anything of it is read.
    pub(crate) fn of_connection(&self, subject: &Connecting<'_>) -> OfConnection {
        let mut allowed = false;
        for rule in &self.rules {
            // mitmproxy's options look at requests only.
            if let Place::Option(..) = rule.place {
                continue;
            }
            let about = rule
                .when
                .as_ref()
                .is_none_or(|filter| filter.is_about_connections());
            let applies = || {
                rule.when
                    .as_ref()
                    .is_none_or(|filter| filter.matches(subject))
            };
            match rule.action {
                // It may be for one of the requests within.
                Action::Allow if !about => allowed = true,
                Action::Allow if applies() => allowed = true,
                Action::Tunnel if applies() => return OfConnection::Tunnel,
                Action::Block(_)
                    if about && !allowed && rule.on == Direction::Request && applies() =>
                {
                    return OfConnection::Block;
                }
                _ => {}
            }
        }
        OfConnection::Nothing
    }
}

fn head(on: Direction, bodies: bool) -> Interest {
    match (on, bodies) {
        (Direction::Request, false) => Interest::REQUEST,
        (Direction::Request, true) => Interest::REQUEST_BODY,
        (Direction::Response, false) => Interest::RESPONSE,
        (Direction::Response, true) => Interest::REQUEST_BODY | Interest::RESPONSE_BODY,
    }
}

fn asks_websocket(flow: &Flow) -> bool {
    flow.request.headers().has_token("upgrade", "websocket")
}

fn request_length(flow: &Flow) -> u64 {
    flow.request.headers().content_length().unwrap_or(u64::MAX)
}

/// Whether a request without `Content-Length` may have a body: over HTTP/1.1 only one that says so has.
fn may_have_body(flow: &Flow) -> bool {
    use tollgate_flow::HttpVersion as V;
    match flow.request.version {
        V::Http10 | V::Http11 => flow.request.headers().contains("transfer-encoding"),
        V::Http2 | V::Http3 => true,
    }
}

/// The same, of methods that usually have one.
fn has_body(flow: &Flow) -> bool {
    use tollgate_flow::HttpVersion as V;
    may_have_body(flow)
        && (matches!(flow.request.version, V::Http10 | V::Http11)
            || !matches!(flow.request.method(), b"GET" | b"HEAD"))
}

/// What is decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OfConnection {
    Nothing,
    Tunnel,
    Block,
}

/// A connection that carries nothing yet, for filters about connections.
pub(crate) struct Connecting<'a> {
    pub target: Option<&'a Target>,
    pub hello: Option<&'a ClientHello>,
    pub connection: &'a ConnectionInfo,
}

impl Subject for Connecting<'_> {
    fn flow_type(&self) -> FlowType {
        FlowType::Tcp
    }

    fn has_error(&self) -> bool {
        false
    }

    fn has_response(&self) -> bool {
        false
    }

    fn is_websocket(&self) -> bool {
        false
    }

    fn replay(&self) -> Option<Replay> {
        None
    }

    fn status(&self) -> Option<u16> {
        None
    }

    fn size(&self, _: Direction) -> Option<u64> {
        None
    }

    fn duration(&self) -> Option<std::time::Duration> {
        None
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let name = self.hello.and_then(|hello| hello.server_name.as_deref());
        match field {
            Field::Host => {
                self.target
                    .is_some_and(|target| test(target.host.as_bytes()))
                    || name.is_some_and(|name| test(name.as_bytes()))
            }
            Field::Destination => self
                .target
                .is_some_and(|target| test(format!("{}:{}", target.host, target.port).as_bytes())),
            Field::Source => {
                let client = self.connection.client;
                test(format!("{}:{}", client.ip(), client.port()).as_bytes())
            }
            Field::Sni => name.is_some_and(|name| test(name.as_bytes())),
            Field::Ja3 => self.hello.is_some_and(|hello| test(hello.ja3().as_bytes())),
            Field::Ja4 => self.hello.is_some_and(|hello| test(hello.ja4().as_bytes())),
            Field::Process => self.connection.process().is_some_and(|process| {
                let path = process
                    .executable
                    .as_deref()
                    .map(|path| path.to_string_lossy());
                process
                    .name
                    .as_deref()
                    .is_some_and(|name| test(name.as_bytes()))
                    || path.is_some_and(|path| test(path.as_bytes()))
                    || (!process.command.is_empty() && test(process.command.join(" ").as_bytes()))
            }),
            _ => false,
        }
    }
}
