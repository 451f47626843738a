//! Filter expressions from arbitrary text: a filter that answers, or an error whose column lies in the text or behind it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tollgate_flow::filter::Filter;
use tollgate_flow::record::{Body, HttpExchange, HttpRequest, Record};

static RECORD: LazyLock<Record> = LazyLock::new(|| {
    let mut request = HttpRequest::new("GET", "https", "example.com", 443, "/path?q=1");
    request.message.headers.push("Content-Type", "text/plain");
    request.message.body = Body::whole("hello");
    Record::http("id", HttpExchange::new(request))
});

fuzz_target!(|expression: &str| {
    match Filter::new(expression) {
        Ok(filter) => {
            let answer = filter.matches(&*RECORD);
            let words = filter.to_string();
            // The opposite of it is not the same.
            let not = Filter::new(&format!("!({expression})"));
            if let Ok(not) = not {
                assert_ne!(not.matches(&*RECORD), answer, "{words}");
            }
        }
        Err(error) => {
            let length = expression.chars().count();
            assert!((1..=length + 1).contains(&error.column), "{error}");
            assert!(error.pointed_at(expression).lines().count() >= 3);
        }
    }
});
