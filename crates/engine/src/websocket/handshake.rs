//! The opening handshake of a WebSocket, as far as a proxy has a part in it.

use tollgate_flow::{ErrorClass, FlowError, HeaderList, Side};
use tollgate_wire::websocket::{Extensions, Negotiated, Unsupported, accept_key};

const EXTENSIONS: &str = "sec-websocket-extensions";

/// Whether an `Upgrade` asks for, or agrees to, a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderList) -> bool {
    headers.has_token("upgrade", "websocket")
}

/// Takes out of an offer what we could not read: an interceptor is to judge every message.
pub(crate) fn restrict_offer(headers: &mut HeaderList) {
    let offer = Extensions::parse(headers.get_all(EXTENSIONS));
    let kept = match &offer {
        Some(offer) => {
            let kept = offer.only_supported();
            let all = offer
                .iter()
                .map(|extension| extension.text)
                .collect::<Vec<_>>()
                .join(", ");
            if kept.as_deref().unwrap_or_default() == all {
                return;
            }
            kept
        }
        None => None,
    };
    headers.remove(EXTENSIONS);
    if let Some(kept) = kept {
        // Cut from a value that was valid.
        let _ = headers.append(b"Sec-WebSocket-Extensions", kept.as_bytes());
    }
}

/// Checks the origin's `101` (RFC 6455 section 4.1). `edits`: the messages must be readable.
pub(crate) fn check_answer(
    request: &HeaderList,
    response: &HeaderList,
    edits: bool,
) -> Result<(), FlowError> {
    let wrong =
        |message: &'static str| FlowError::new(Side::Upstream, ErrorClass::Protocol, message);
    if !is_websocket(request) || !is_websocket(response) {
        return Err(wrong(
            "the origin switched to another protocol than it was asked for",
        ));
    }
    let mut keys = request.get_all("sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(wrong("the origin agreed to a WebSocket that has no key"));
    };
    let mut accepts = response.get_all("sec-websocket-accept");
    let expected = accept_key(key);
    if accepts.next().map(<[u8]>::trim_ascii) != Some(expected.as_bytes())
        || accepts.next().is_some()
    {
        return Err(wrong(
            "the origin's Sec-WebSocket-Accept does not answer the key",
        ));
    }
    check_extensions(response, edits)
}

/// Checks that the messages can be read, where somebody may edit them.
pub(crate) fn check_extensions(response: &HeaderList, edits: bool) -> Result<(), FlowError> {
    if edits && negotiated(response).is_err() {
        return Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Protocol,
            "the origin agreed to a WebSocket extension that was not offered",
        ));
    }
    Ok(())
}

/// What the origin's answer agreed on.
pub(crate) fn negotiated(response: &HeaderList) -> Result<Negotiated, Unsupported> {
    Extensions::parse(response.get_all(EXTENSIONS))
        .ok_or(Unsupported)?
        .negotiated()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_keeps_what_can_be_read() {
        let restricted = |offer: &str| {
            let mut headers = HeaderList::new();
            headers
                .append(EXTENSIONS.as_bytes(), offer.as_bytes())
                .unwrap();
            restrict_offer(&mut headers);
            headers
                .get(EXTENSIONS)
                .map(|v| String::from_utf8_lossy(v).into_owned())
        };
        let offer = "permessage-deflate; client_max_window_bits, permessage-deflate";
        assert_eq!(restricted(offer).as_deref(), Some(offer));
        assert_eq!(
            restricted("x-secret, permessage-deflate").as_deref(),
            Some("permessage-deflate")
        );
        assert_eq!(restricted("x-secret"), None);
        assert_eq!(restricted("no list at all"), None);
    }
}
