//! Takes what was found out of a request, or says why that can't be.

use tollgate_flow::Flow;

use super::ruling::{Fate, Round, Ruling, Standing};
use super::{Place, Screen, credential, goes_to};
use crate::llm::{Arguments, Dialect, ToolCall};
use crate::policy::CallFacts;
use crate::redact::{Originals, Redacted, Shape, cant_be_cut_out, signed_by};
use crate::scan::{Category, Finding};

impl Screen {
    /// Takes what was found out of the URL.
    pub(super) fn redact_url(
        &self,
        flow: &mut Flow,
        round: &mut Round,
        ruling: &Ruling,
    ) -> Result<(), String> {
        unsigned(flow)?;
        let line = request_line(flow);
        let path = flow.request.path().to_vec();
        let before = line.len().saturating_sub(path.len());
        let host = goes_to(flow);
        let redacted = self.taken_out(
            flow,
            &round.standing,
            &ruling.place,
            &line,
            Shape::Form,
            &|line, finding| !credential::belongs(line, host, finding),
        );
        let same_host = redacted.text.get(..before) == line.get(..before) && line.ends_with(&path);
        let new = redacted.text.get(before..).filter(|_| same_host);
        let Some(new) = new else {
            return Err("it stands in the host's name".to_owned());
        };
        redacted.whole()?;
        flow.request
            .head
            .set_target(new)
            .map_err(|error| error.to_string())?;
        self.keep(flow, round, &ruling.place, &redacted);
        Ok(())
    }

    /// Takes what was found out of a field of the header or the trailer.
    pub(super) fn redact_field(
        &self,
        flow: &mut Flow,
        round: &mut Round,
        ruling: &Ruling,
        at: usize,
    ) -> Result<(), String> {
        unsigned(flow)?;
        let is_trailer = matches!(ruling.place, Place::Trailer(_));
        let fields = match is_trailer {
            true => flow.request.trailers.as_ref(),
            false => Some(flow.request.headers()),
        };
        let field = fields.and_then(|fields| fields.iter().nth(at));
        let Some((name, value)) = field.map(|(n, v)| (n.to_vec(), v.to_vec())) else {
            return Err("the field is gone".to_owned());
        };
        let standing = round.standing.clone();
        let any = |_: &[u8], _: &Finding| true;
        let redacted = self.taken_out(flow, &standing, &ruling.place, &value, Shape::Plain, &any);
        redacted.whole()?;
        let fields = match is_trailer {
            true => flow.request.trailers.as_mut(),
            false => Some(flow.request.headers_mut()),
        };
        if let Some(fields) = fields {
            let mut count = 0;
            fields.retain(|_, _| {
                count += 1;
                count != at + 1
            });
            let put = fields.insert_at(at, &name, &redacted.text);
            put.map_err(|error| error.to_string())?;
        }
        self.keep(flow, round, &ruling.place, &redacted);
        Ok(())
    }

    /// A body's text without what was found.
    pub(super) fn redact_body(
        &self,
        flow: &Flow,
        round: &mut Round,
        ruling: &Ruling,
        dialect: Option<Dialect>,
        text: &[u8],
    ) -> Result<Vec<u8>, String> {
        unsigned(flow)?;
        if dialect.is_some_and(Dialect::signs_body) {
            return Err("requests of this provider are signed".to_owned());
        }
        let content_type = flow.request.headers().get("content-type");
        let shape = shape(content_type.unwrap_or_default(), text);
        // Commands in a conversation were decided about when they were called.
        let counts =
            |_: &[u8], one: &Finding| dialect.is_none() || one.category != Category::Command;
        let place = &ruling.place;
        let redacted = self.taken_out(flow, &round.standing, place, text, shape, &counts);
        redacted.whole()?;
        self.keep(flow, round, place, &redacted);
        Ok(redacted.text)
    }

    /// The arguments of a call without what was found.
    pub(super) fn redact_call(
        &self,
        flow: &Flow,
        standing: &Standing,
        ruling: &Ruling,
        call: &ToolCall,
        facts: &CallFacts,
    ) -> Result<Arguments, String> {
        let text = call.arguments.to_text();
        let shape = match &call.arguments {
            Arguments::Json(_) => Shape::Json,
            Arguments::Text(_) => Shape::Plain,
            Arguments::Malformed { why, .. } => return Err((*why).to_owned()),
        };
        let goes = |finding: &Finding| {
            self.redacts(flow, standing, &ruling.place, Some(facts), finding)
                .is_some()
        };
        let wanted = |_: &[u8], finding: &Finding| goes(finding);
        let redacted = self.redactor.redact(text.as_bytes(), shape, &wanted);
        redacted.whole()?;
        let arguments = match shape {
            Shape::Json => serde_json::from_slice(&redacted.text)
                .map(Arguments::Json)
                .map_err(|error| error.to_string())?,
            _ => String::from_utf8(redacted.text)
                .map(Arguments::Text)
                .map_err(|error| error.to_string())?,
        };
        let changed = ToolCall {
            arguments,
            ..call.clone()
        };
        // What a shell makes of the arguments stands nowhere in them.
        match self.commands_in(&changed).iter().find(|one| goes(one)) {
            Some(left) => Err(cant_be_cut_out(left)),
            None => Ok(changed.arguments),
        }
    }

    fn taken_out(
        &self,
        flow: &Flow,
        standing: &Standing,
        place: &Place,
        text: &[u8],
        shape: Shape,
        counts: &dyn Fn(&[u8], &Finding) -> bool,
    ) -> Redacted {
        self.redactor.redact(text, shape, &|text, finding| {
            counts(text, finding) && self.redacts(flow, standing, place, None, finding).is_some()
        })
    }

    /// Remembers what is to be put back.
    pub(super) fn keep(&self, flow: &Flow, round: &mut Round, place: &Place, redacted: &Redacted) {
        for one in &redacted.replaced {
            let restores = self.redacts(flow, &round.standing, place, None, &one.finding);
            if restores == Some(true) {
                round.originals.remember(one);
            }
        }
    }

    /// Tells that something was taken out, or refuses it because that can't be. `Some`: a person is to be asked about
    /// the rest.
    pub(super) fn redacted(
        &self,
        flow: &mut Flow,
        ruling: Ruling,
        done: Result<(), String>,
    ) -> Result<Option<Ruling>, String> {
        match done {
            Ok(()) if ruling.asks() => Ok(Some(ruling)),
            Ok(()) => {
                self.report(flow, &ruling, Fate::Passed, &ruling.what());
                Ok(None)
            }
            Err(why) => Err(self.not_redacted(flow, &ruling, &why)),
        }
    }

    /// Refuses what should have been taken out.
    pub(super) fn not_redacted(&self, flow: &mut Flow, ruling: &Ruling, why: &str) -> String {
        let reason = format!("{}, and it can't be redacted: {why}", ruling.reason());
        self.report(flow, ruling, Fate::Refused, &reason);
        reason
    }

    /// The hosts that a call with a placeholder would send the secret to; empty if it has none.
    pub(super) fn would_send(
        originals: &Originals,
        facts: &CallFacts,
        arguments: &Arguments,
    ) -> bool {
        !originals.is_empty()
            && !facts.hosts().is_empty()
            && originals.stand_in(&arguments.to_text())
    }
}

/// What is scanned of a request's first line.
pub(super) fn request_line(flow: &Flow) -> Vec<u8> {
    [flow.request.method(), b" ", flow.request.url().as_bytes()].concat()
}

fn unsigned(flow: &Flow) -> Result<(), String> {
    let path = flow.request.path();
    let query = path.split(|b| *b == b'?').nth(1).unwrap_or_default();
    match signed_by(flow.request.headers().iter(), query) {
        Some(by) => Err(format!("the request is signed ({by})")),
        None => Ok(()),
    }
}

fn shape(content_type: &[u8], text: &[u8]) -> Shape {
    let media = String::from_utf8_lossy(content_type).to_ascii_lowercase();
    if media.starts_with("application/x-www-form-urlencoded") {
        return Shape::Form;
    }
    let begin = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    match begin.trim_ascii_start().first() {
        Some(b'{' | b'[') => Shape::Json,
        _ if media.contains("json") => Shape::Json,
        _ => Shape::Plain,
    }
}
