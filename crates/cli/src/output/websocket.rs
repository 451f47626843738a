//! A WebSocket as mitmdump's lines: a line for each message, and one for its end.

use tollgate_flow::{Direction, Flow, Message, MessageKind, Side};

use super::style::{Colour, Style, harmless};

/// Whether a flow may become a WebSocket.
pub fn is_asked_for(flow: &Flow) -> bool {
    flow.request.headers().has_token("upgrade", "websocket")
}

/// `127.0.0.1:1234 -> WebSocket text message -> example.com:443/path`; nothing for pings, pongs and closes.
pub fn message_line(flow: &Flow, message: &Message<'_>) -> Option<String> {
    let kind = match message.kind {
        MessageKind::Text => "text",
        MessageKind::Binary => "binary",
        _ => return None,
    };
    let arrow = match message.direction {
        Direction::Request => "->",
        Direction::Response => "<-",
    };
    let path = String::from_utf8_lossy(flow.request.path());
    Some(format!(
        "{} {arrow} WebSocket {kind} message {arrow} {}{}\n",
        flow.connection.client,
        flow.request.target,
        harmless(&path, false)
    ))
}

/// `WebSocket connection closed by client: 1000 reason`, or the error.
pub fn end_line(out: &mut String, flow: &Flow, style: Style) {
    let close = flow.websocket.as_ref().and_then(|ws| ws.close.as_ref());
    // Codes that stand for "none", as in RFC 6455 section 7.4.1.
    let code = close.map_or(1006, |close| close.code.unwrap_or(1005));
    let reason = close.map_or("", |close| close.reason.as_str());
    let reason = harmless(reason, false);
    if let (1000 | 1001 | 1005, Some(close)) = (code, close) {
        let by = match close.by {
            Side::Client => "client",
            Side::Upstream => "server",
            Side::Proxy => "proxy",
        };
        out.push_str(&format!(
            "WebSocket connection closed by {by}: {code} {reason}\n"
        ));
        return;
    }
    let mut text = format!(
        "Error in WebSocket connection to {}: WebSocket Error: {}",
        flow.request.target,
        name(code)
    );
    if !reason.is_empty() {
        text.push_str(&format!(" (reason: {reason})"));
    }
    style.colour(out, &text, Colour::Red);
    out.push('\n');
}

fn name(code: u16) -> String {
    match code {
        1002 => "PROTOCOL_ERROR",
        1003 => "UNSUPPORTED_DATA",
        1006 => "ABNORMAL_CLOSURE",
        1007 => "INVALID_FRAME_PAYLOAD_DATA",
        1008 => "POLICY_VIOLATION",
        1009 => "MESSAGE_TOO_BIG",
        1010 => "MANDATORY_EXT",
        1011 => "INTERNAL_ERROR",
        1012 => "SERVICE_RESTART",
        1013 => "TRY_AGAIN_LATER",
        code => return format!("UNKNOWN_ERROR={code}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use tollgate_flow::{WebSocket, WebSocketClose};

    use super::super::flows::tests::flow;
    use super::*;

    #[test]
    fn lines_are_mitmdumps() {
        let mut flow = flow("https://example.com/chat", 101, b"Switching Protocols", 0);
        let message = |direction, kind| Message {
            direction,
            sequence: 0,
            kind,
            data: b"hello",
            injected: false,
        };
        let line = |flow: &Flow, direction, kind| message_line(flow, &message(direction, kind));
        assert_eq!(
            line(&flow, Direction::Request, MessageKind::Text).as_deref(),
            Some("127.0.0.1:1234 -> WebSocket text message -> example.com:443/chat\n")
        );
        assert_eq!(
            line(&flow, Direction::Response, MessageKind::Binary).as_deref(),
            Some("127.0.0.1:1234 <- WebSocket binary message <- example.com:443/chat\n")
        );
        assert_eq!(line(&flow, Direction::Request, MessageKind::Ping), None);
        for (code, end) in [
            (
                Some(1000),
                "WebSocket connection closed by client: 1000 bye\n",
            ),
            (None, "WebSocket connection closed by client: 1005 bye\n"),
            (
                Some(1009),
                "Error in WebSocket connection to example.com:443: WebSocket Error: MESSAGE_TOO_BIG (reason: bye)\n",
            ),
            (
                Some(4001),
                "Error in WebSocket connection to example.com:443: WebSocket Error: UNKNOWN_ERROR=4001 (reason: bye)\n",
            ),
        ] {
            let mut websocket = WebSocket::default();
            websocket.close = Some(WebSocketClose {
                by: Side::Client,
                code,
                reason: "bye".to_owned(),
            });
            flow.websocket = Some(Box::new(websocket));
            let mut out = String::new();
            end_line(&mut out, &flow, Style::PLAIN);
            assert_eq!(out, end);
        }
    }
}
