//! mitmproxy's options, on flows that are read from a file.

use tollgate_flow::Direction;
use tollgate_flow::record::Record;

use crate::error::Place;
use crate::explain::flow_of;
use crate::rule::Action;
use crate::set::RuleSet;

/// The fields that a request may get or lose.
const FIELDS: [&str; 5] = [
    "if-modified-since",
    "if-none-match",
    "accept-encoding",
    "authorization",
    "cookie",
];

impl RuleSet {
    /// Does to a recorded flow what mitmproxy's options do to one that is read from a file: `anticache` and `anticomp`
    /// change its request, and cookies and credentials stick from one flow to the next. What changes traffic that
    /// passes leaves alone what has passed, there as here.
    pub fn read(&self, record: &mut Record) {
        let is_asked = |action: &Action| {
            matches!(
                action,
                Action::AntiCache
                    | Action::AntiComp
                    | Action::StickyAuth(_)
                    | Action::StickyCookie(_)
            )
        };
        let rules = self.rules.iter().filter(|rule| {
            matches!(rule.place, Place::Option(..))
                && rule.on == Direction::Request
                && is_asked(&rule.action)
        });
        if rules.clone().next().is_none() {
            return;
        }
        let Some((mut flow, response)) = flow_of(record) else {
            return;
        };
        for rule in rules.clone() {
            let applies = rule
                .when
                .as_ref()
                .is_none_or(|filter| filter.matches(&*record));
            match &rule.action {
                Action::StickyAuth(sticky) => sticky.request(&mut flow, applies),
                Action::StickyCookie(jar) if applies => jar.apply(&mut flow),
                Action::AntiCache => {
                    flow.request.headers_mut().remove("if-modified-since");
                    flow.request.headers_mut().remove("if-none-match");
                }
                Action::AntiComp => {
                    // A constant that is a valid header.
                    let _ = flow
                        .request
                        .headers_mut()
                        .set(b"Accept-Encoding", b"identity");
                }
                _ => {}
            }
            // The next filter sees what this one has done.
            if let Some(http) = record.as_http_mut() {
                let fields = &mut http.request.message.headers;
                for name in FIELDS {
                    match flow.request.headers().get(name) {
                        None => {
                            fields.remove(name);
                        }
                        Some(value) if fields.get(name) == Some(value) => {}
                        Some(value) => fields.set(name, value.to_vec()),
                    }
                }
            }
        }
        flow.response = response;
        for rule in rules {
            if let Action::StickyCookie(jar) = &rule.action {
                jar.learn(&flow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MitmOptions;
    use tollgate_flow::record::{HttpExchange, HttpRequest, HttpResponse};

    fn record(path: &str, fields: &[(&'static str, &'static str)]) -> Record {
        let mut request = HttpRequest::new("GET", "http", "one.example", 80, path);
        for (name, value) in fields {
            request.message.headers.push(*name, *value);
        }
        let mut exchange = HttpExchange::new(request);
        let mut response = HttpResponse::new(200, "OK");
        response.message.headers.push("Set-Cookie", "a=1; Path=/");
        exchange.response = Some(response);
        Record::http("id", exchange)
    }

    fn read(set: &RuleSet, path: &str, fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut record = record(path, fields);
        set.read(&mut record);
        let headers = &record.as_http().unwrap().request.message.headers;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields = headers.iter();
        fields
            .map(|(name, value)| format!("{}: {}", text(name).to_lowercase(), text(value)))
            .collect()
    }

    #[test]
    fn what_sticks_goes_from_one_flow_of_a_file_to_the_next() {
        let options = MitmOptions {
            anticache: true,
            anticomp: true,
            stickycookie: Some("~u want".into()),
            stickyauth: Some("~u want".into()),
            modify_headers: vec!["/X-New/yes".into()],
            block_list: vec!["/~all/403".into()],
            ..MitmOptions::default()
        };
        let set = RuleSet::load(&[], &options).unwrap();
        let first = [
            ("If-None-Match", "x"),
            ("Authorization", "Basic eDp5"),
            ("If-Match", "y"),
        ];
        assert_eq!(
            read(&set, "/first", &first),
            [
                "authorization: Basic eDp5",
                "if-match: y",
                "accept-encoding: identity"
            ]
        );
        assert_eq!(
            read(&set, "/want", &[("Cookie", "own=1")]),
            [
                "cookie: a=1",
                "accept-encoding: identity",
                "authorization: Basic eDp5"
            ]
        );
        assert_eq!(read(&set, "/other", &[]), ["accept-encoding: identity"]);
    }

    #[test]
    fn rules_of_a_file_are_for_traffic() {
        let text = "[[rule]]\nanticache = true\n";
        let set = RuleSet::parse(text, "rules.toml", ".".as_ref()).unwrap();
        assert_eq!(
            read(&set, "/", &[("If-None-Match", "x")]),
            ["if-none-match: x"]
        );
    }
}
