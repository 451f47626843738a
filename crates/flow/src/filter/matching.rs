//! From a tree and a subject to an answer.

use super::operators::{Numbers, Texts};
use super::pattern::Pattern;
use super::range::Range;
use super::subject::{Field, Property, Subject};
use super::{Node, Test};
use crate::interceptor::Direction;
use crate::record::{FlowType, Replay};

impl Node {
    pub(super) fn matches<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        match self {
            Self::And(nodes) => nodes.iter().all(|node| node.matches(subject)),
            Self::Or(nodes) => nodes.iter().any(|node| node.matches(subject)),
            Self::Not(node) => !node.matches(subject),
            Self::Test(test) => test.matches(subject),
        }
    }
}

impl Test {
    fn matches<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        match self {
            Self::All => true,
            Self::Asset => subject.any(Field::ContentType(Direction::Response), &mut is_asset),
            Self::Is(property) => is(subject, *property),
            Self::Code(code) => subject.status().is_some_and(|s| u64::from(s) == *code),
            Self::Text(texts, pattern) => text(subject, *texts, pattern),
            Self::Number(numbers, range) => number(subject, *numbers, range),
        }
    }
}

fn is<S: Subject + ?Sized>(subject: &S, property: Property) -> bool {
    let has_messages = || matches!(subject.flow_type(), FlowType::Http | FlowType::Dns);
    match property {
        Property::Http => subject.flow_type() == FlowType::Http,
        Property::Tcp => subject.flow_type() == FlowType::Tcp,
        Property::Udp => subject.flow_type() == FlowType::Udp,
        Property::Dns => subject.flow_type() == FlowType::Dns,
        Property::WebSocket => subject.is_websocket(),
        Property::Error => subject.has_error(),
        Property::Response => has_messages() && subject.has_response(),
        Property::NoResponse => has_messages() && !subject.has_response(),
        Property::Marked => !subject.any(Field::Marker, &mut <[u8]>::is_empty),
        Property::Replayed => subject.replay().is_some(),
        Property::RequestReplayed => subject.replay() == Some(Replay::Request),
        Property::ResponseReplayed => subject.replay() == Some(Replay::Response),
    }
}

fn text<S: Subject + ?Sized>(subject: &S, texts: Texts, pattern: &Pattern) -> bool {
    use Direction::{Request, Response};
    let mut test = |text: &[u8]| pattern.is_match(text);
    let mut any = |field| subject.any(field, &mut test);
    match texts {
        Texts::Body => any(Field::Body(Request)) || any(Field::Body(Response)),
        Texts::BodyRequest => any(Field::Body(Request)),
        Texts::BodyResponse => any(Field::Body(Response)),
        Texts::ContentType => any(Field::ContentType(Request)) || any(Field::ContentType(Response)),
        Texts::ContentTypeRequest => any(Field::ContentType(Request)),
        Texts::ContentTypeResponse => any(Field::ContentType(Response)),
        Texts::Header => any(Field::HeaderBlock(Request)) || any(Field::HeaderBlock(Response)),
        Texts::HeaderRequest => any(Field::HeaderBlock(Request)),
        Texts::HeaderResponse => any(Field::HeaderBlock(Response)),
        Texts::Domain => any(Field::Host),
        Texts::Destination => any(Field::Destination),
        Texts::Method => any(Field::Method),
        Texts::Source => any(Field::Source),
        Texts::Url => any(Field::Url),
        Texts::Metadata => any(Field::Metadata),
        Texts::Marker => any(Field::Marker),
        Texts::Comment => any(Field::Comment),
        Texts::Finding => any(Field::Finding),
        Texts::Process => any(Field::Process),
        Texts::Ja3 => any(Field::Ja3),
        Texts::Ja4 => any(Field::Ja4),
        Texts::Sni => any(Field::Sni),
        Texts::Version => any(Field::Version),
        Texts::Id => any(Field::Id),
    }
}

fn number<S: Subject + ?Sized>(subject: &S, numbers: Numbers, range: &Range) -> bool {
    use Direction::{Request, Response};
    let bytes = |size: u64| size as f64;
    let found = match numbers {
        Numbers::Size => match (subject.size(Request), subject.size(Response)) {
            (None, None) => None,
            (q, s) => Some(bytes(q.unwrap_or(0).saturating_add(s.unwrap_or(0)))),
        },
        Numbers::SizeRequest => subject.size(Request).map(bytes),
        Numbers::SizeResponse => subject.size(Response).map(bytes),
        Numbers::Duration => subject.duration().map(|duration| duration.as_secs_f64()),
        Numbers::Status => subject.status().map(f64::from),
    };
    found.is_some_and(|number| range.contains(number))
}

/// By parts of the type, as mitmproxy looks for them, case and all.
fn is_asset(content_type: &[u8]) -> bool {
    const TYPES: [&[u8]; 7] = [
        b"text/javascript",
        b"application/x-javascript",
        b"application/javascript",
        b"text/css",
        b"image/",
        b"font/",
        b"application/font",
    ];
    let holds = |part: &&[u8]| {
        content_type
            .windows(part.len())
            .any(|window| window == *part)
    };
    TYPES.iter().any(holds)
}
