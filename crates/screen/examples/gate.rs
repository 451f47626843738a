//! Pipes a response body from standard input through a gate to standard output, and refuses the
//! calls whose name or arguments contain one of the given texts:
//!
//!     gate DIALECT CONTENT-TYPE [--open] [--keep-alive] [--at-once TOOL]… [--redact TEXT JSON]… [TEXT]…
//!
//! `DIALECT` is a name such as `openai_chat`, or `-`. Input is passed on as it arrives; with
//! `--keep-alive`, a sign of life is written for every piece that is held. What was refused goes to
//! standard error, one line of JSON for each call.

use std::io::{Read as _, Write as _};

use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions, OnFailure};
use tollgate_screen::llm::{Arguments, Dialect, ToolCall};

const DIALECTS: [Dialect; 9] = [
    Dialect::AnthropicMessages,
    Dialect::OpenAiChat,
    Dialect::OpenAiResponses,
    Dialect::Gemini,
    Dialect::BedrockConverse,
    Dialect::BedrockInvoke,
    Dialect::Ollama,
    Dialect::CohereChat,
    Dialect::Mcp,
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: gate DIALECT CONTENT-TYPE [--open] [--keep-alive] [--at-once TOOL] [--redact TEXT JSON] [TEXT]";
    let name = arguments.next().ok_or(usage)?;
    let content_type = arguments.next().ok_or(usage)?;
    let dialect = DIALECTS.into_iter().find(|dialect| dialect.name() == name);
    let mut options = GateOptions::default();
    let mut keep_alive = false;
    let mut blocked = Vec::new();
    let mut redacted = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--open" => options.on_failure = OnFailure::Open,
            "--keep-alive" => keep_alive = true,
            "--at-once" => options.stream_at_once.push(arguments.next().ok_or(usage)?),
            "--redact" => {
                let text = arguments.next().ok_or(usage)?;
                let value = serde_json::from_str(&arguments.next().ok_or(usage)?)?;
                redacted.push((text, Arguments::Json(value)));
            }
            _ => blocked.push(argument),
        }
    }
    let decide = |call: &ToolCall| {
        let text = format!("{} {}", call.name, call.arguments.to_text());
        if let Some(found) = blocked.iter().find(|needle| text.contains(*needle)) {
            return Decision::block(format!("it contains \"{found}\""));
        }
        match redacted.iter().find(|(needle, _)| text.contains(needle)) {
            Some((_, arguments)) => Decision::Redact {
                arguments: arguments.clone(),
            },
            None => Decision::Allow,
        }
    };

    let mut gate =
        Gate::for_response(dialect, 200, Some(&content_type), options).ok_or("nothing to gate")?;
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = input.read(&mut buffer)?;
        let (mut out, mut events) = (Vec::new(), Vec::new());
        match buffer.get(..length) {
            Some(piece) if !piece.is_empty() => gate.feed(piece, &mut out, &mut events),
            _ => gate.finish(&mut out, &mut events),
        }
        while !events.is_empty() {
            for event in std::mem::take(&mut events) {
                match event {
                    GateEvent::Decide(call) => {
                        gate.resolve(call.call, decide(&call), &mut out, &mut events);
                    }
                    GateEvent::Blocked(call) => {
                        let line = serde_json::json!({"name": call.name, "id": call.id,
                            "response": call.response_id, "reason": call.reason});
                        writeln!(std::io::stderr(), "{line}")?;
                    }
                    _ => {}
                }
            }
        }
        if keep_alive {
            out.extend(gate.keep_alive().unwrap_or_default());
        }
        output.write_all(&out)?;
        output.flush()?;
        if length == 0 {
            return Ok(());
        }
    }
}
