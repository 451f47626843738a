//! Every option of mitmdump: the test that compares it, or why there is none.

use std::collections::BTreeSet;
use std::path::Path;

use tollgate_e2e::{LIMIT, Process, command, require};

use crate::pair::mitmdump;

/// Where an option is compared.
enum How {
    /// In this test.
    Test(&'static str),
    /// Elsewhere, or not: why.
    Because(&'static str),
}

use How::{Because, Test};

const MISSING: How = Because("Tollgate has not got it yet, and says so");
const ONLY: How = Because("accepted with the value that says what Tollgate does anyway");
const SHOWN: How = Because("changes what is printed, and no traffic");
const TLS: How = Because(
    "handshakes, not beside mitmdump: crates/engine/tests/engine/tls_records.rs shows each",
);
const HARNESS: How = Because("every test here is run with it");

const OPTIONS: &[(&str, How)] = &[
    ("add_upstream_certs_to_client_chain", ONLY),
    ("allow_hosts", Test("ways::hosts_are_left_alone_or_opened")),
    ("anticache", Test("changes::anticache_and_anticomp")),
    ("anticomp", Test("changes::anticache_and_anticomp")),
    ("block_global", ONLY),
    ("block_list", Test("changes::block_list_answers_and_cuts")),
    ("block_private", ONLY),
    (
        "body_size_limit",
        Test("changes::bodies_have_a_largest_size"),
    ),
    ("cert_passphrase", MISSING),
    ("certs", TLS),
    ("ciphers_client", MISSING),
    ("ciphers_server", MISSING),
    ("client_certs", TLS),
    (
        "client_replay",
        Test("replay::client_replay_sends_the_same"),
    ),
    (
        "client_replay_concurrency",
        Test("replay::client_replay_sends_the_same"),
    ),
    ("command_history", MISSING),
    ("confdir", HARNESS),
    (
        "connect_addr",
        Test("ways::connections_come_from_the_address_that_was_asked_for"),
    ),
    (
        "connection_strategy",
        Test("ways::origins_are_dialled_when_they_are_needed_or_before"),
    ),
    ("content_view_lines_cutoff", MISSING),
    ("dns_name_servers", MISSING),
    ("dns_use_hosts_file", MISSING),
    ("dumper_default_contentview", MISSING),
    (
        "dumper_filter",
        Test("files::what_is_shown_and_saved_as_it_passes"),
    ),
    ("export_preserve_original_ip", ONLY),
    ("flow_detail", SHOWN),
    (
        "hardump",
        Test("files::what_is_shown_and_saved_as_it_passes"),
    ),
    (
        "http2",
        Test("ways::http2_is_not_offered_where_it_is_switched_off"),
    ),
    ("http2_ping_keepalive", MISSING),
    ("http3", ONLY),
    ("http_connect_send_host_header", MISSING),
    ("ignore_hosts", Test("ways::hosts_are_left_alone_or_opened")),
    ("keep_alt_svc_header", MISSING),
    ("keep_host_header", Test("ways::in_front_of_an_origin")),
    (
        "keepserving",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "key_size",
        Test("ways::the_authority_is_as_large_as_was_asked_for"),
    ),
    ("listen_host", HARNESS),
    ("listen_port", HARNESS),
    ("map_local", Test("changes::map_local_answers_from_files")),
    ("map_remote", Test("changes::map_remote_sends_elsewhere")),
    (
        "mode",
        // Reverse proxies are compared in `in_front_of_an_origin`.
        Test("ways::proxies_on_the_way_get_the_same"),
    ),
    (
        "modify_body",
        // A body that streams is changed here and left alone there, which is the point of it.
        Test("changes::modify_body_both_ways"),
    ),
    ("modify_headers", Test("changes::modify_headers_both_ways")),
    ("normalize_outbound_headers", MISSING),
    ("onboarding", ONLY),
    ("onboarding_host", MISSING),
    ("protobuf_definitions", MISSING),
    ("proxy_debug", ONLY),
    ("proxyauth", Test("ways::a_password_is_asked_for")),
    ("rawtcp", ONLY),
    (
        "readfile_filter",
        Test("files::read_flows_pass_through_the_same_options"),
    ),
    ("request_client_cert", ONLY),
    (
        "rfile",
        Test("files::read_flows_pass_through_the_same_options"),
    ),
    (
        "save_stream_file",
        Test("files::what_is_shown_and_saved_as_it_passes"),
    ),
    (
        "save_stream_filter",
        Test("files::what_is_shown_and_saved_as_it_passes"),
    ),
    ("scripts", MISSING),
    ("server", Test("replay::client_replay_sends_the_same")),
    (
        "server_replay",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "server_replay_extra",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "server_replay_ignore_content",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "server_replay_ignore_host",
        Test("replay::server_replay_at_other_places_and_times"),
    ),
    (
        "server_replay_ignore_params",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "server_replay_ignore_payload_params",
        Test("replay::server_replay_looks_at_what_it_was_told_to"),
    ),
    (
        "server_replay_ignore_port",
        Test("replay::server_replay_at_other_places_and_times"),
    ),
    (
        "server_replay_kill_extra",
        Test("replay::server_replay_looks_at_what_it_was_told_to"),
    ),
    (
        "server_replay_nopop",
        Because("mitmdump ends with an error that says how it is called now"),
    ),
    (
        "server_replay_refresh",
        Test("replay::server_replay_at_other_places_and_times"),
    ),
    (
        "server_replay_reuse",
        Test("replay::server_replay_answers_the_same"),
    ),
    (
        "server_replay_use_headers",
        Test("replay::server_replay_looks_at_what_it_was_told_to"),
    ),
    ("show_ignored_hosts", SHOWN),
    ("showhost", ONLY),
    ("ssl_insecure", Test("ways::hosts_are_left_alone_or_opened")),
    ("ssl_verify_upstream_trusted_ca", HARNESS),
    (
        "ssl_verify_upstream_trusted_confdir",
        Test("ways::authorities_in_a_folder_are_trusted"),
    ),
    (
        "stickyauth",
        Test("changes::sticky_cookies_and_credentials"),
    ),
    (
        "stickycookie",
        Test("changes::sticky_cookies_and_credentials"),
    ),
    ("store_streamed_bodies", ONLY),
    (
        "stream_large_bodies",
        Test("ways::large_bodies_stream_and_are_the_same"),
    ),
    ("strip_ech", MISSING),
    (
        "tcp_hosts",
        Because("not HTTP: crates/engine/tests/engine/modes.rs"),
    ),
    (
        "tcp_timeout",
        Because("a test would have to wait for it: crates/engine/tests/engine/timeouts.rs"),
    ),
    ("termlog_verbosity", SHOWN),
    ("tls_ecdh_curve_client", MISSING),
    ("tls_ecdh_curve_server", MISSING),
    ("tls_version_client_max", TLS),
    ("tls_version_client_min", TLS),
    ("tls_version_server_max", TLS),
    ("tls_version_server_min", TLS),
    ("udp_hosts", MISSING),
    (
        "upstream_auth",
        Test("ways::proxies_on_the_way_get_the_same"),
    ),
    ("upstream_cert", ONLY),
    ("validate_inbound_headers", ONLY),
    ("websocket", MISSING),
];

#[test]
fn every_option_of_mitmdump_has_a_test_or_a_reason() {
    require!("mitmproxy-venv");
    let confdir = tempfile::tempdir().unwrap();
    let mut options = command(&mitmdump());
    options
        .arg("--options")
        .arg("--set")
        .arg(format!("confdir={}", confdir.path().display()));
    let options = Process::run(options, LIMIT).success().text();
    let theirs: BTreeSet<&str> = options
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').map(|(name, _)| name))
        .collect();
    assert!(theirs.len() > 80, "{options}");
    let known: BTreeSet<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
    let without: Vec<_> = theirs.difference(&known).collect();
    assert!(without.is_empty(), "neither test nor reason: {without:?}");
}

#[test]
fn every_test_that_is_named_is_there() {
    for (name, how) in OPTIONS {
        match how {
            Because(why) => {
                let files = why.split([' ', ',']).filter(|word| word.contains('/'));
                for file in files {
                    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
                    assert!(root.join(file).is_file(), "{name}: there is no {file}");
                }
            }
            Test(path) => {
                let (module, test) = path.split_once("::").unwrap();
                let source = match module {
                    "changes" => include_str!("changes.rs"),
                    "files" => include_str!("files.rs"),
                    "replay" => include_str!("replay.rs"),
                    "ways" => include_str!("ways.rs"),
                    other => panic!("{name}: no module {other}"),
                };
                let (_, body) = source
                    .split_once(&format!("\nfn {test}() {{"))
                    .unwrap_or_else(|| panic!("{name}: no test {path}"));
                // To the end of the function: a name that stands in another one counts for nothing.
                let (body, _) = body.split_once("\n}\n").unwrap();
                assert!(body.contains(*name), "{name} does not stand in {path}");
            }
        }
    }
}
