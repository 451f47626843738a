//! What is taken out of responses so that clients stay where they are seen, over HTTP/1; between
//! versions it is in `h2_versions`.

use tollgate_engine::HostPattern;

use crate::support::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\nServer:  x\r\nalt-SVC: h3=\":443\"; ma=1\r\n\
    Alt-Svc: h2=\"a:1\"; ma=2,h3-29=\":443\"\r\nContent-Length: 2\r\n\r\n";

fn origin() -> Origin {
    Origin::script(Identity::Good, |wire, _| {
        loop {
            let request = wire.read_request()?;
            let head = String::from_utf8_lossy(&request.head);
            if head.starts_with("GET /h2 ") {
                wire.send(
                    "HTTP/1.1 200 OK\r\nalt-SVC:  h2=\":1\" \r\nContent-Length: 2\r\n\r\nok",
                )?;
            } else {
                wire.send(format!("{HEAD}ok"))?;
            }
        }
    })
}

fn head_of(proxy: &TestProxy, origin: &Origin, path: &str) -> String {
    let mut client = proxy.tls(origin);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
        origin.authority()
    );
    let response = client.exchange(request).unwrap();
    assert_eq!(response.body, b"ok");
    String::from_utf8(response.head).unwrap()
}

#[test]
fn other_lines_of_the_head_stay_as_they_came() {
    let origin = origin();
    let proxy = start(config());
    assert_eq!(
        head_of(&proxy, &origin, "/"),
        "HTTP/1.1 200 OK\r\nServer:  x\r\nalt-SVC: h2=\"a:1\"; ma=2\r\nContent-Length: 2\r\n\r\n"
    );
    assert_eq!(proxy.metrics().http3_hidden, 1);
    // Nothing was to be taken out: not a byte is another.
    assert_eq!(
        head_of(&proxy, &origin, "/h2"),
        "HTTP/1.1 200 OK\r\nalt-SVC:  h2=\":1\" \r\nContent-Length: 2\r\n\r\n"
    );
    assert_eq!(proxy.metrics().http3_hidden, 1);
}

#[test]
fn it_is_left_where_it_is_not_wanted() {
    let origin = origin();
    let mut all = config();
    all.hide_http3 = false;
    let mut one = config();
    one.show_http3 = vec![HostPattern::new("localhost").unwrap()];
    for config in [all, one] {
        let proxy = start(config);
        assert_eq!(head_of(&proxy, &origin, "/"), HEAD);
        assert_eq!(proxy.metrics().http3_hidden, 0);
    }
}
