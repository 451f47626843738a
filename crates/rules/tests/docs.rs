//! The snippets of the documents are rules.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests assert as tests do"
)]

use tollgate_rules::RuleSet;

fn snippets(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("```toml\n") {
        let (snippet, after) = after.split_once("```").unwrap();
        found.push(snippet.to_owned());
        rest = after;
    }
    found
}

#[test]
fn the_guide_shows_every_action() {
    let page = include_str!("../../../docs/rules.md");
    let mut words = Vec::new();
    for snippet in snippets(page) {
        let set = RuleSet::parse(&snippet, "rules.md", ".".as_ref()).unwrap();
        words.extend(set.rules().iter().map(|rule| rule.action().to_owned()));
    }
    for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let word = line.split(' ').next().unwrap();
        assert!(words.iter().any(|known| known == word), "{word}");
    }
}

#[test]
fn the_first_five_minutes_have_rules() {
    let page = include_str!("../../../docs/guide/agent.md");
    let mut snippets = snippets(page);
    // The other one is a policy, which `tollgate-screen` reads.
    snippets.retain(|snippet| snippet.starts_with("# rules.toml"));
    assert_eq!(snippets.len(), 1);
    RuleSet::parse(&snippets[0], "agent.md", ".".as_ref()).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_guide_for_agents_has_rules() {
    let page = include_str!("../../../docs/agents.md");
    let snippets = snippets(page);
    assert!(!snippets.is_empty());
    for snippet in snippets {
        // A variable that is set.
        let snippet = snippet.replace("MODEL_KEY", "PATH");
        RuleSet::parse(&snippet, "agents.md", ".".as_ref()).unwrap_or_else(|e| panic!("{e}"));
    }
}
