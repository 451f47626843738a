//! How exchanges fail, in sentences for people.

use std::io;

use tollgate_flow::{ErrorClass, FlowError, Outcome, OutcomeKind, Side, Target};
use tollgate_wire::http1::Anomaly;

use crate::dial::describe;
use crate::hooks::Verdict;

pub(crate) fn client_anomaly(anomaly: Anomaly) -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Protocol,
        format!("the request is malformed or ambiguous: {anomaly}"),
    )
}

pub(crate) fn client_gone() -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Reset,
        "the client closed the connection",
    )
}

pub(crate) fn blocked(target: &Target) -> FlowError {
    FlowError::new(
        Side::Proxy,
        ErrorClass::Blocked,
        format!("{target} is blocked by policy"),
    )
}

pub(crate) fn dropped(verdict: Verdict) -> Outcome {
    let error = match verdict {
        Verdict::Close(reason) => Some(FlowError::new(Side::Proxy, ErrorClass::Blocked, reason)),
        Verdict::Failed(error) => return Outcome::failed(error),
        _ => None,
    };
    Outcome {
        kind: OutcomeKind::Dropped,
        error,
    }
}

pub(super) fn upstream_io(e: &io::Error, doing: &str) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Reset,
        format!(
            "the connection to the origin failed while {doing}: {}",
            describe(e)
        ),
    )
}

pub(crate) fn upstream_anomaly(anomaly: Anomaly) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Protocol,
        format!("the response is malformed or ambiguous: {anomaly}"),
    )
}
