use serde_json::json;

use super::*;
use crate::llm::{CallId, RunsAt, ToolCall};
use crate::scan::Range64;

fn policy(text: &str) -> Policy {
    Policy::parse(text, "policy.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn call(name: &str, arguments: Json) -> CallFacts {
    CallFacts::of(&ToolCall {
        call: CallId(0),
        id: String::new(),
        name: name.to_owned(),
        arguments: Arguments::Json(arguments),
        runs_at: RunsAt::Client,
    })
}

fn bash(command: &str) -> CallFacts {
    call("bash", json!({ "command": command }))
}

fn finding(rule: &str, category: Category, severity: Severity, confidence: Confidence) -> Finding {
    Finding {
        range: Range64 { start: 0, end: 1 },
        rule: rule.into(),
        category,
        severity,
        confidence,
        excerpt: String::new(),
        via: Vec::new(),
        score: None,
    }
}

fn of_call(policy: &Policy, facts: &CallFacts) -> Decision {
    let place = Place::ToolCall(facts.name().to_owned());
    policy.decide(&Subject::new(&place).call(facts))
}

#[test]
fn the_first_rule_that_holds_decides_and_what_is_built_in_is_last() {
    let policy = policy(
        r#"
        [[rule]]
        finding = "aws-*"
        place = ["url", "header"]
        action = "allow"
        [[rule]]
        name = "keys"
        category = ["secret", "known-secret"]
        severity = "medium"
        confidence = "medium"
        action = "redact"
        restore = true
        message = "use the vault"
        [[rule]]
        severity = "low"
        action = "warn"
        "#,
    );
    let aws = finding(
        "aws-key",
        Category::Secret,
        Severity::High,
        Confidence::High,
    );
    let guess = finding("guess", Category::Secret, Severity::Low, Confidence::Low);
    let decide = |place: &Place, finding: &Finding| {
        let all = [finding.clone()];
        policy.decide(&Subject::new(place).findings(&all))
    };
    assert_eq!(decide(&Place::Url, &aws).action, Action::Allow);
    let redacted = decide(&Place::RequestBody, &aws);
    assert_eq!(redacted.action, Action::Redact { restore: true });
    assert_eq!(redacted.rule.as_deref(), Some("keys"));
    assert_eq!(redacted.message.as_deref(), Some("use the vault"));
    assert!(redacted.allow.contains("before \"keys\" (policy.toml:6)"));
    assert_eq!(decide(&Place::RequestBody, &guess).action, Action::Warn);
    // Nothing can be redacted where a tool's answer is read.
    assert_eq!(decide(&Place::ToolResult, &aws).action, Action::Warn);

    let builtin = Policy::default();
    let all = [guess, aws];
    let judged = builtin.judge(&Subject::new(&Place::RequestBody).findings(&all));
    assert_eq!(judged.decision.action, Action::Block);
    assert_eq!(
        (judged.decision.rule, judged.decision.finding),
        (None, Some(1))
    );
    assert!(judged.decision.allow.contains("aws-key"));
    assert_eq!(judged.findings[0].action, Action::Allow);
    let nothing = builtin.decide(&Subject::new(&Place::RequestBody));
    assert_eq!(nothing.action, Action::Allow);
}

#[test]
fn an_allowed_finding_does_not_allow_a_forbidden_call() {
    let policy = policy(
        r#"
        [[rule]]
        finding = "command-destructive"
        action = "allow"
        [[rule]]
        tool = "Deploy*"
        action = "block"
        "#,
    );
    let facts = call("deploy_all", json!({"command": "rm -rf build"}));
    let found = [finding(
        "command-destructive",
        Category::Command,
        Severity::High,
        Confidence::High,
    )];
    let place = Place::ToolCall("deploy_all".to_owned());
    let decision = policy.decide(&Subject::new(&place).call(&facts).findings(&found));
    assert_eq!(decision.action, Action::Block);
    let facts = bash("rm -rf build");
    let decision = policy.decide(&Subject::new(&place).call(&facts).findings(&found));
    assert_eq!(decision.action, Action::Allow);
}

#[test]
fn commands_are_seen_as_a_shell_sees_them() {
    let policy = policy(
        r#"
        [[rule]]
        command = { program = "git", subcommand = ["push", "reset"], argument = "-*f*" }
        action = "block"
        [[rule]]
        command = "git push*"
        action = "hold"
        for = "30s"
        then = "allow"
        [[rule]]
        command = { path = "~/.ssh/**" }
        action = "block"
        [[rule]]
        command = { host = "*.evil.example" }
        action = "block"
        [[rule]]
        command = { elevated = true }
        action = "warn"
        "#,
    );
    for (command, expected) in [
        ("git push --force origin", "block"),
        ("g\"it\" pus\\h -f", "block"),
        ("cd x && git -C y push -f", "block"),
        ("git -C y --no-pager push", "allow"),
        ("git commit -m push -f", "allow"),
        ("sh -c 'git push origin main'", "hold"),
        ("git status", "allow"),
        ("cp ~/.ssh/../.ssh/id_ed25519 .", "block"),
        ("cd ~/.ssh; cat id_ed25519", "block"),
        ("cat < $HOME/.ssh/id", "block"),
        ("curl -s https://X.EVIL.example./a", "block"),
        ("sudo ls", "warn"),
    ] {
        assert_eq!(
            of_call(&policy, &bash(command)).action.as_str(),
            expected,
            "{command}"
        );
    }
}

#[test]
fn to_allow_needs_all_of_a_call_and_to_block_any() {
    let policy = policy(
        r#"
        [[rule]]
        command = ["git *", "ls*", "cd *"]
        action = "allow"
        [[rule]]
        path = ["src/**"]
        tool = "read*"
        action = "allow"
        [[rule]]
        tool = ["bash", "read*"]
        action = "block"
        "#,
    );
    for (command, expected) in [
        ("cd src && git status && ls -la", "allow"),
        ("git status; rm x", "block"),
        ("git status $(rm x)", "block"),
        ("git log > ~/.bashrc", "block"),
        ("git log > /dev/null", "allow"),
        ("GIT_SSH_COMMAND=evil git fetch", "block"),
        ("sudo git status", "block"),
        ("$X git status", "block"),
    ] {
        assert_eq!(
            of_call(&policy, &bash(command)).action.as_str(),
            expected,
            "{command}"
        );
    }
    for (paths, expected) in [
        (json!({"path": "src/a.rs"}), "allow"),
        (json!({"path": "src/../secret"}), "block"),
        (json!({"path": "src/a.rs", "file": "/etc/passwd"}), "block"),
        (json!({"path": "src/a.rs", "cwd": "/etc"}), "block"),
        (json!({"note": "src/a.rs"}), "block"),
    ] {
        let decision = of_call(&policy, &call("read_file", paths.clone()));
        assert_eq!(decision.action.as_str(), expected, "{paths}");
    }
    // More than is looked at is never all of it.
    let filler = vec!["x"; 5000];
    let many = json!({"path": "src/a.rs", "text": filler, "with": {"path": "/etc/passwd"}});
    let decision = of_call(&policy, &call("read_file", many));
    assert_eq!(decision.action, Action::Block);
    // What can't be read is never all of it.
    let malformed = CallFacts::of(&ToolCall {
        call: CallId(0),
        id: String::new(),
        name: "bash".to_owned(),
        arguments: Arguments::Malformed {
            text: "{\"command\":\"git status\"".to_owned(),
            why: "cut",
        },
        runs_at: RunsAt::Client,
    });
    assert_eq!(of_call(&policy, &malformed).action, Action::Block);
}

#[test]
fn a_warning_for_a_part_does_not_lift_what_comes_behind() {
    let policy = policy(
        r#"
        [[rule]]
        command = "curl *"
        action = "warn"
        [[rule]]
        command = "rm *"
        action = "block"
        "#,
    );
    assert_eq!(
        of_call(&policy, &bash("cd x; curl a.example")).action,
        Action::Warn
    );
    assert_eq!(
        of_call(&policy, &bash("rm y; curl a.example")).action,
        Action::Block
    );
    assert_eq!(of_call(&policy, &bash("ls")).action, Action::Allow);
}

#[test]
fn arguments_hosts_methods_taint_and_destinations_are_conditions() {
    let policy = policy(
        r#"
        [[rule]]
        name = "mode"
        argument = { "/mode" = { regex = "^w" }, "/files/*/name" = "*.pem" }
        action = "block"
        [[rule]]
        name = "host"
        host = ["*.evil.example", "127.0.0.1"]
        action = "block"
        [[rule]]
        name = "url"
        url = "https://*/admin/*"
        action = "block"
        [[rule]]
        name = "method"
        method = "resources/*"
        destination = "*.mcp.example"
        action = "block"
        [[rule]]
        name = "tainted"
        tainted = true
        tool = "send_mail"
        action = "hold"
        "#,
    );
    let decide = |facts: &CallFacts, method: Option<&str>, host: &str, tainted: bool| {
        let place = Place::RequestBody;
        let mut subject = Subject::new(&place)
            .call(facts)
            .destination(host)
            .tainted(tainted);
        if let Some(method) = method {
            subject = subject.method(method);
        }
        policy.decide(&subject).rule.map(|rule| rule.to_string())
    };
    let files = |mode: &str, name: &str| {
        call(
            "x",
            json!({"mode": mode, "files": [{"name": "a"}, {"name": name}]}),
        )
    };
    assert_eq!(
        decide(&files("w+", "b.pem"), None, "a", false).as_deref(),
        Some("mode")
    );
    assert_eq!(decide(&files("r", "b.pem"), None, "a", false), None);
    assert_eq!(decide(&files("w", "b.txt"), None, "a", false), None);
    let url = |url: &str| call("fetch", json!({ "url": url }));
    assert_eq!(
        decide(&url("https://a.b.EVIL.example/"), None, "a", false).as_deref(),
        Some("host")
    );
    assert_eq!(
        decide(&url("http://0x7f.1/"), None, "a", false).as_deref(),
        Some("host")
    );
    assert_eq!(
        decide(&url("https://x/../admin/y"), None, "a", false).as_deref(),
        Some("url")
    );
    let other = call("x", json!({}));
    assert_eq!(
        decide(&other, Some("resources/read"), "A.mcp.example", false).as_deref(),
        Some("method")
    );
    assert_eq!(
        decide(&other, Some("resources/read"), "b.example", false),
        None
    );
    assert_eq!(
        decide(&other, Some("tools/call"), "a.mcp.example", false),
        None
    );
    let mail = call("send_mail", json!({"to": "x"}));
    assert_eq!(decide(&mail, None, "a", true).as_deref(), Some("tainted"));
    assert_eq!(decide(&mail, None, "a", false), None);
}

#[test]
fn what_is_wrong_names_its_line_and_what_to_do() {
    for (text, expected) in [
        (
            "[[rule]]\ntol = \"x\"\naction = \"warn\"",
            "policy.toml:2: unknown key 'tol'; did you mean 'tool'?",
        ),
        (
            "[[rules]]\naction = \"warn\"",
            "policy.toml:1: unknown key 'rules'; did you mean 'rule'?",
        ),
        (
            "[[rule]]\ntool = \"x\"",
            "policy.toml:1: the rule has no action: allow, warn, redact, block, hold",
        ),
        (
            "[[rule]]\n\naction = \"blok\"",
            "policy.toml:3: 'blok' is no action; did you mean 'block'?",
        ),
        (
            "[[rule]]\nseverity = \"hgh\"\naction = \"warn\"",
            "policy.toml:2: 'hgh' is no severity; did you mean 'high'?",
        ),
        (
            "[[rule]]\ncategory = \"keys\"\naction = \"warn\"",
            "policy.toml:2: 'keys' is no category; there are secret",
        ),
        (
            "[[rule]]\nplace = \"body\"\naction = \"warn\"",
            "policy.toml:2: 'body' is no place",
        ),
        (
            "[[rule]]\nwhen = \"~d (\"\naction = \"warn\"",
            "policy.toml:2: the filter is none: column 4",
        ),
        (
            "[[rule]]\nwhen = \"~c 500\"\naction = \"warn\"",
            "policy.toml:2: the filter looks at the response",
        ),
        (
            "[[rule]]\ntool = []\naction = \"warn\"",
            "policy.toml:2: there is no pattern in it",
        ),
        (
            "[[rule]]\ntool = 3\naction = \"warn\"",
            "policy.toml:2: invalid type: integer",
        ),
        (
            "[[rule]]\ncommand = { progam = \"x\" }\naction = \"warn\"",
            "policy.toml:2: unknown key 'progam'; did you mean 'program'?",
        ),
        (
            "[[rule]]\ncommand = {}\naction = \"warn\"",
            "policy.toml:2: a command has program",
        ),
        (
            "[[rule]]\nargument = { a = { regex = \"(\" } }\naction = \"warn\"",
            "policy.toml:2: the pattern is no regular expression",
        ),
        (
            "[[rule]]\naction = \"warn\"\nrestore = true",
            "policy.toml:2: restore says",
        ),
        (
            "[[rule]]\naction = \"block\"\nfor = \"3s\"",
            "policy.toml:2: for and then say",
        ),
        (
            "[[rule]]\naction = \"hold\"\nfor = \"long\"",
            "policy.toml:3: 'long' is no time",
        ),
        (
            "[[rule]]\naction = \"hold\"\nthen = \"resume\"",
            "policy.toml:3: 'resume' is no then",
        ),
        (
            "[[rule]]\ntool = \"x\"\naction = \"redact\"",
            "policy.toml:2: redact takes out what was found",
        ),
        (
            "[[rule]]\ntool = \"x\"\nplace = \"url\"\naction = \"block\"",
            "policy.toml:3: tool calls stand in",
        ),
        (
            "[[rule]]\nname = \"a\\nb\"\naction = \"block\"",
            "policy.toml:1: name is one line",
        ),
        ("[[rule]\n", "policy.toml:1: "),
    ] {
        let error = Policy::parse(text, "policy.toml").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}\n{error}\n{expected}");
    }
    assert!(Policy::parse("", "policy.toml").unwrap().is_empty());
    let slip = policy("[[rule]]\nfinding = [\"aws-*\", \"aws-acces-key\"]\naction = \"warn\"");
    let known = ["aws-access-key", "iban"];
    let error = slip.check_findings(known.iter().copied()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy.toml:1: no scanner has a rule 'aws-acces-key'; did you mean 'aws-access-key'?"
    );
}
