//! What the answers within a flow used: counted, charged, and asked about before a request goes.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::json;
use tollgate_flow::record::USAGE;
use tollgate_flow::{Direction, Flow, Reply, Step};

use super::{Place, Screen, Watch, goes_to, lock};
use crate::gate::GateEvent;
use crate::llm::{Dialect, Event, Usage, skim};
use crate::policy::percent_decoded;
use crate::usage::{Asker, Exhausted, Spent};

/// Where a provider tells nothing, so many bytes of text are a token.
const BYTES_A_TOKEN: u64 = 4;

/// What a flow is charged for.
pub(super) struct Bill {
    asker: Asker,
    /// Bytes of the request that is being answered.
    asked: u64,
    answer: Answer,
    /// Everything so far.
    spent: Spent,
}

/// What is known of the answer that is coming.
#[derive(Default)]
struct Answer {
    began: bool,
    ended: bool,
    said: Usage,
    /// Bytes of its texts and calls.
    text: u64,
    model: Option<String>,
}

impl Answer {
    fn see(&mut self, event: &Event) {
        match event {
            Event::Start { model, .. } => {
                if let Some(model) = model {
                    self.model = Some(model.clone());
                }
            }
            Event::TextDelta { text, .. } => self.text += text.len() as u64,
            Event::ToolCallEnd(call) => {
                let length = call.name.len() + call.arguments.to_text().len();
                self.text += length as u64;
            }
            Event::Usage(usage) => {
                let merge = |old: &mut Option<u64>, new: Option<u64>| *old = new.or(*old);
                merge(&mut self.said.input, usage.input);
                merge(&mut self.said.output, usage.output);
                merge(&mut self.said.cache_read, usage.cache_read);
                merge(&mut self.said.cache_write, usage.cache_write);
                merge(&mut self.said.thinking, usage.thinking);
            }
            Event::End => self.ended = true,
            Event::Stop { .. } | Event::ToolCallStart { .. } => {}
            // Errors aren't charged, and tools of MCP aren't answers of a model.
            _ => return,
        }
        self.began = true;
    }

    /// What it used, as far as it came.
    fn spent(&self, asked: u64) -> Spent {
        let mut spent = Spent::of(&self.said);
        let mut estimated = false;
        let estimate = |bytes: u64| bytes.div_ceil(BYTES_A_TOKEN);
        if self.said.input.is_none() && self.said.cache_read.is_none() {
            spent.input = estimate(asked);
            estimated = true;
        }
        // Anthropic's streams begin with an output of a token or so, and correct it at their end.
        let output = estimate(self.text);
        if self.said.output.is_none() || (!self.ended && output > spent.output) {
            spent.output = output;
            estimated = true;
        }
        spent.estimated = u64::from(estimated);
        spent
    }
}

impl Screen {
    /// Whether a request to a model may be made; opens its bill.
    pub(super) fn admit(
        &self,
        flow: &mut Flow,
        watch: &Mutex<Watch>,
        dialect: Dialect,
        body: &[u8],
    ) -> Option<Exhausted> {
        let ledger = self.ledger.as_ref()?;
        if dialect == Dialect::Mcp {
            return None;
        }
        let asker = asker(flow, body);
        let refused = ledger.check(&asker, Instant::now()).err();
        if let Some(exhausted) = &refused {
            let refuses = self.config.enforcement == super::Enforcement::Enforce;
            self.tell(flow, Place::Request, refuses, &exhausted.to_string());
            if refuses {
                ledger.count_refused();
                return refused;
            }
        }
        let mut watch = lock(watch);
        let spent = watch
            .bill
            .take()
            .map_or(Spent::default(), |bill| bill.spent);
        watch.bill = Some(Box::new(Bill {
            asker,
            asked: body.len() as u64,
            answer: Answer::default(),
            spent,
        }));
        None
    }

    /// The same for a request on a WebSocket: a refusal is an event, in the provider's shape.
    pub(super) fn admit_message(
        &self,
        flow: &mut Flow,
        watch: &Mutex<Watch>,
        body: &[u8],
    ) -> Option<Step> {
        let dialect = lock(watch).dialect?;
        if self.ledger.is_none() || skim::text_of(body, "type")? != "response.create" {
            return None;
        }
        let exhausted = self.admit(flow, watch, dialect, body)?;
        let message = json!({
            "type": "error",
            "status": 429,
            "error": {
                "type": "rate_limit_exceeded",
                "code": "rate_limit_exceeded",
                "message": message(&exhausted),
                "param": null,
            },
        });
        let handle = flow.websocket.as_ref().and_then(|ws| ws.handle()).cloned();
        let sent = handle.is_some_and(|handle| {
            handle
                .send_text(Direction::Response, message.to_string())
                .is_ok()
        });
        if !sent {
            return Some(Step::close("a budget is used up"));
        }
        if let Some(socket) = &mut lock(watch).socket {
            socket.queued += 1;
        }
        Some(Step::Drop)
    }

    /// Takes note of what an answer says. `whole`: it has ended.
    pub(super) fn note_usage(
        &self,
        flow: &mut Flow,
        bill: &mut Option<Box<Bill>>,
        events: &[GateEvent],
        whole: bool,
    ) {
        let Some(bill) = bill else {
            return;
        };
        for event in events {
            if let GateEvent::Seen(event) = event {
                bill.answer.see(event);
            }
        }
        if whole && self.charge(bill) {
            let note = note(&bill.asker, &bill.spent);
            match flow.metadata.iter_mut().find(|(key, _)| key == USAGE) {
                Some((_, old)) => *old = note,
                None => flow.metadata.push((USAGE.to_owned(), note)),
            }
        }
    }

    /// Whether events of a WebSocket hold the end of an answer.
    pub(super) fn ends_answer(events: &[GateEvent]) -> bool {
        events
            .iter()
            .any(|event| matches!(event, GateEvent::Seen(Event::End)))
    }

    /// Charges an answer, if one has begun.
    pub(super) fn charge(&self, bill: &mut Bill) -> bool {
        let Some(ledger) = self.ledger.as_ref().filter(|_| bill.answer.began) else {
            return false;
        };
        let answer = std::mem::take(&mut bill.answer);
        if bill.asker.model.is_empty() {
            bill.asker.model = Asker::short(answer.model.clone().unwrap_or_default());
        }
        let spent = answer.spent(bill.asked);
        bill.spent
            .add(&ledger.charge(&bill.asker, spent, Instant::now()));
        true
    }
}

/// Who asks, by the request.
fn asker(flow: &Flow, body: &[u8]) -> Asker {
    let inner = || {
        let inner = skim::object_of(body, "response")?;
        skim::text_of(inner, "model")
    };
    let in_path = model_in_path(&String::from_utf8_lossy(flow.request.path()));
    let model = match in_path {
        Some((model, true)) => Some(model),
        in_path => skim::text_of(body, "model")
            .or_else(inner)
            .or(in_path.map(|(model, _)| model)),
    };
    Asker {
        model: Asker::short(model.unwrap_or_default()),
        host: goes_to(flow).into(),
        process: flow
            .connection
            .process()
            .and_then(|process| process.name.clone())
            .map(Asker::short),
        user: flow.connection.user().cloned(),
    }
}

/// The model that a path names (Gemini and Vertex AI, Bedrock, deployments of Azure), and whether it is the one that
/// answers, whatever the body says.
fn model_in_path(path: &str) -> Option<(String, bool)> {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    let (kind, name) = parts.windows(2).rev().find_map(|pair| match pair {
        [
            kind @ ("models" | "tunedModels" | "model" | "deployments"),
            name,
        ] => Some((*kind, *name)),
        // Else it is no model's.
        [kind @ "endpoints", name] if name.contains(':') => Some((*kind, *name)),
        _ => None,
    })?;
    let (name, answers) = match (kind, name.split_once(':')) {
        ("model" | "deployments", _) => (name, true),
        (_, Some((name, _method))) => (name, true),
        (_, None) => (name, false),
    };
    (!name.is_empty()).then(|| (percent_decoded(name), answers))
}

/// The note that a flow carries: an object of JSON.
fn note(asker: &Asker, spent: &Spent) -> String {
    let mut note = json!({
        "model": asker.model,
        "answers": spent.answers,
        "input": spent.input,
        "output": spent.output,
        "cache_read": spent.cache_read,
        "cache_write": spent.cache_write,
        "estimated": spent.estimated > 0,
    });
    if spent.unpriced < spent.answers
        && let Some(fields) = note.as_object_mut()
    {
        fields.insert("cost".to_owned(), json!(spent.cost()));
    }
    note.to_string()
}

fn message(exhausted: &Exhausted) -> String {
    let mut text = format!("Tollgate refused this request: {exhausted}");
    if !exhausted.no_price {
        let _ = write!(text, "; it is new in {} s", seconds(exhausted));
    }
    text.push('.');
    text
}

fn seconds(exhausted: &Exhausted) -> u64 {
    exhausted.wait.as_secs_f64().ceil() as u64
}

/// The answer to a request beyond a budget: the one that the provider gives at its own limits, so that its libraries
/// know what it means, and with what keeps them from asking again at once, where they have something of the kind.
/// Cohere's would wait a minute, twice, for a time that is too far away: it is told none, asks twice more and gives up.
pub(super) fn exhausted(dialect: Dialect, exhausted: &Exhausted) -> Step {
    let message = message(exhausted);
    let mut status = 429;
    let body = match dialect {
        Dialect::AnthropicMessages => {
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": message}})
        }
        Dialect::Gemini => {
            json!({"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}})
        }
        Dialect::BedrockConverse | Dialect::BedrockInvoke => {
            // Every 429 is asked again by the AWS libraries, five times; a quota is not.
            status = 400;
            json!({ "message": message })
        }
        Dialect::Ollama => json!({ "error": message }),
        Dialect::CohereChat => json!({ "message": message }),
        _ => json!({"error": {"message": message, "type": "rate_limit_exceeded",
            "param": null, "code": "rate_limit_exceeded"}}),
    };
    let mut reply = Reply::new(status).body(body.to_string());
    let retry_after = seconds(exhausted).to_string();
    let mut fields = vec![
        ("Content-Type", "application/json"),
        ("Proxy-Status", "tollgate; error=http_request_denied"),
        // Read by the libraries of Anthropic and OpenAI.
        ("X-Should-Retry", "false"),
    ];
    if dialect != Dialect::CohereChat {
        fields.push(("Retry-After", &retry_after));
    }
    if status == 400 {
        fields.push(("X-Amzn-ErrorType", "ServiceQuotaExceededException"));
    }
    for (name, value) in fields {
        // Digits and constants that are valid headers.
        let _ = reply.headers.append(name.as_bytes(), value.as_bytes());
    }
    Step::respond(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_models() {
        for (path, model, answers) in [
            (
                "/v1beta/models/gemini-2.5-pro:generateContent?key=x",
                "gemini-2.5-pro",
                true,
            ),
            (
                "/v1beta/models/gemini%2D2.5-pro:streamGenerateContent",
                "gemini-2.5-pro",
                true,
            ),
            (
                "/v1/projects/models/locations/l/publishers/anthropic/models/claude:rawPredict",
                "claude",
                true,
            ),
            ("/v1beta/tunedModels/own:generateContent", "own", true),
            ("/v1/locations/l/endpoints/12:generateContent", "12", true),
            (
                "/model/anthropic.claude-v2%3A1/converse",
                "anthropic.claude-v2:1",
                true,
            ),
            (
                "/model/anthropic.claude-v2:1/invoke",
                "anthropic.claude-v2:1",
                true,
            ),
            ("/openai/deployments/gpt/chat/completions", "gpt", true),
            // No more than a hint.
            ("/models/chat/completions", "chat", false),
        ] {
            let found = model_in_path(path);
            assert_eq!(found, Some((model.to_owned(), answers)), "{path}");
        }
        for path in ["/v1/messages", "/v1/endpoints/openapi/chat/completions"] {
            assert_eq!(model_in_path(path), None);
        }
    }

    #[test]
    fn what_was_not_told_is_estimated_and_marked() {
        let mut answer = Answer::default();
        answer.see(&Event::Start {
            id: None,
            model: None,
        });
        answer.text = 401;
        let spent = answer.spent(1000);
        assert_eq!((spent.input, spent.output, spent.estimated), (250, 101, 1));
        // A stream that was cut has told less than it has said.
        answer.said = Usage {
            input: Some(7),
            output: Some(1),
            ..Usage::default()
        };
        let spent = answer.spent(1000);
        assert_eq!((spent.input, spent.output, spent.estimated), (7, 101, 1));
        answer.ended = true;
        let spent = answer.spent(1000);
        assert_eq!((spent.input, spent.output, spent.estimated), (7, 1, 0));
    }
}
