//! What the tests of this crate share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which fail by panicking"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tollgate_flow::{ConnectionId, ConnectionInfo, Flow, Response};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

use crate::url::set_url;

/// A request as a hook sees it.
pub(crate) fn flow(method: &str, url: &str) -> Flow {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let info = ConnectionInfo::new(ConnectionId(1), address, address, None);
    let mut flow = Flow::new(Arc::new(info));
    flow.request.head = RequestHead::build(method.as_bytes(), b"/", Version::Http11).unwrap();
    set_url(&mut flow, url.as_bytes()).unwrap();
    flow
}

/// Gives a flow a response.
pub(crate) fn respond(flow: &mut Flow, status: u16, headers: &[(&str, &str)]) {
    let mut response = Box::<Response>::default();
    response.head = ResponseHead::build(status, b"").unwrap();
    for (name, value) in headers {
        response
            .headers_mut()
            .append(name.as_bytes(), value.as_bytes())
            .unwrap();
    }
    flow.response = Some(response);
}
