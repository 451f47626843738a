//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use tollgate_flow::export::ExportFormat as FlowFormat;
use tollgate_remote::ScannerUrl;

use crate::mitm_options::missing_flag;

/// An intercepting proxy: opens HTTPS, shows what passes, and passes it on.
///
/// Without a command it listens on 127.0.0.1:8080 and prints one line for each request. Point a client at it:
///
///   curl -x http://127.0.0.1:8080 --cacert ~/.local/share/tollgate/tollgate-ca-cert.pem https://example.com
///
/// or let `tollgate run -- CMD` set everything up for one command.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    args_conflicts_with_subcommands = true,
    verbatim_doc_comment,
    max_term_width = 120,
    after_help = "Options of mitmdump that Tollgate has work with their names and meaning; --set takes mitmproxy's option names."
)]
pub struct Cli {
    /// The command; none runs the proxy.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How the proxy works.
    #[command(flatten)]
    pub proxy: ProxyArgs,
}

/// What to do instead of running the proxy.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command with its traffic through a proxy of its own.
    ///
    /// The proxy listens on a free port, with an authority that lives in memory only. The command gets the proxy and the
    /// authority through its environment: HTTP_PROXY, HTTPS_PROXY and ALL_PROXY (also in lower case; NO_PROXY is emptied, so
    /// that nothing goes past the proxy), and the variables by which curl, OpenSSL, Python, Node.js, Git, Go, Rust, Java,
    /// AWS, gRPC and Deno find authorities. Signals are passed on to it, and its exit code is tollgate's.
    ///
    /// Nothing is printed beside the command's own output, unless -v, --flow-detail or --json asks for flows, or --screen
    /// for what it finds: those go to standard error.
    Run(Box<RunArgs>),
    /// Run an MCP server that is a program, and screen what it and its client say.
    ///
    /// In the configuration of the client, `tollgate mcp -- ` stands before the command of the server. What passes is passed
    /// byte for byte. A dangerous call of a tool, or one that carries a secret, is answered with an error that the model
    /// reads, and never reaches the server; a tool with a poisoned description, or one that has changed, is taken out of the
    /// list. Signals are passed on to the server, its standard error is ours, and its exit code is tollgate's.
    Mcp(Box<McpArgs>),
    /// Look at, export or replace the certificate authority.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Make this machine trust the authority, or stop it.
    #[command(subcommand)]
    Trust(TrustCommand),
    /// Rules for the kernel that hand this machine's connections to mode transparent (Linux).
    #[command(subcommand)]
    Transparent(TransparentCommand),
    /// Convert recorded flows between mitmproxy's flow files and HAR.
    ///
    /// Flow files of format versions 7 to 21 (mitmproxy 5 and later) are read, and version 21 is written. What the input is
    /// shows in its first bytes, what the output is to be in its name: .har for HAR, anything else for a flow file.
    ///
    /// A file that is cut off or damaged gives its good flows; then the exit code is 1, and a warning says where it broke.
    Convert(ConvertArgs),
    /// Write recorded flows as commands for curl or HTTPie, or as raw HTTP/1.
    ///
    /// A flow that can't be written in the format, such as TCP, is named in a warning. The exit code is 1 if no flow was
    /// written.
    Export(ExportArgs),
    /// Show the recorded flows that match a filter expression, or write them to a file.
    ///
    /// The expressions are mitmproxy's: `~d example.com & ~c 500`, `~m post ~t json`. docs/reference/filters.md lists the
    /// operators.
    Filter(FilterArgs),
    /// List, search, show, follow, export and delete the flows that a proxy has recorded.
    ///
    /// Without arguments it lists the newest 50.
    Flows(Box<FlowsArgs>),
    /// Check a file of rules, or try it on recorded flows.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// List the flows that rules hold in a running proxy, and decide about them.
    ///
    /// A rule with `hold` keeps a flow until somebody decides, and says what happens if nobody does in time. Any proxy of
    /// this user that has rules can be asked.
    Held(HeldArgs),
    /// Check, sign and show logs of verdicts.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Look for secrets, dangerous commands, injection and exfiltration in text.
    ///
    /// Exit code: 0 if nothing was found, 1 if something was, 2 if something went wrong.
    Scan(crate::scan::ScanArgs),
    /// Screen for others: an ICAP server that puts the scanners behind another proxy, such as squid, and a scan endpoint
    /// over HTTP.
    ///
    /// The services are icap://ADDR/reqmod for requests, icap://ADDR/respmod for responses, and POST http://ADDR/scan for
    /// texts, URLs, calls of tools, requests and responses as JSON. What is shown is judged as the proxy does with --screen; docs/scan-server.md has a configuration for squid.
    ScanServer(Box<crate::scan_server::ScanServerArgs>),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `tollgate run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// How the proxy works.
    #[command(flatten)]
    pub proxy: ProxyArgs,
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

/// `tollgate mcp`.
#[derive(Debug, Args)]
pub struct McpArgs {
    /// What happens to what is found: enforce refuses it, monitor reports it.
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        default_value = "enforce",
        env = "TOLLGATE_SCREEN"
    )]
    pub screen: ScreenArg,
    /// Decide by the rules in this file what follows from findings, calls of tools, methods and tools that change: allow,
    /// warn, redact, block. It is read once, at the start. Nobody can be asked here: a rule with hold is an error, unless its
    /// conditions can never hold here.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_SCREEN_POLICY")]
    pub screen_policy: Option<PathBuf>,
    /// What happens, where no rule decides, to a tool that is not what it was: refuse takes it out of the list, and refuses calls of it; warn
    /// reports it.
    #[arg(long, value_name = "WHAT", value_enum, default_value = "refuse")]
    pub drift: DriftArg,
    /// Compare the tools with those in this file; without the file, write those of the first list into it. A tool that is
    /// new or has changed counts as drift; one that is gone is reported. Remove the file to trust the tools anew.
    #[arg(long, value_name = "FILE")]
    pub pin: Option<PathBuf>,
    /// Add a rule pack in gitleaks' TOML [repeatable].
    #[arg(long, value_name = "FILE")]
    pub screen_rules: Vec<PathBuf>,
    /// Don't report this rule [repeatable].
    #[arg(long, value_name = "RULE")]
    pub screen_allow: Vec<String>,
    /// Values that must not pass, in all their encodings: env:NAME, file:PATH, cmd:COMMAND [repeatable].
    #[arg(long, value_name = "SOURCE")]
    pub known_secrets: Vec<String>,
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Let pass what can't be read (no JSON, a name twice in an object, a line over 32 MiB) instead of refusing it.
    #[arg(long)]
    pub screen_fail_open: bool,
    /// Print each verdict as a JSON object on standard error, in place of text.
    #[arg(long)]
    pub json: bool,
    /// The server and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

/// `--drift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DriftArg {
    /// Take it out of the list, and refuse calls of it.
    Refuse,
    /// Report it.
    Warn,
}

/// How a proxy works.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    #[command(flatten, next_help_heading = "Listening")]
    pub listen: ListenArgs,
    #[command(flatten, next_help_heading = "Output")]
    pub output: OutputArgs,
    #[command(flatten, next_help_heading = "Recording")]
    pub store: StoreArgs,
    #[command(flatten, next_help_heading = "Certificate authority")]
    pub authority: AuthorityArgs,
    #[command(flatten, next_help_heading = "Which hosts")]
    pub hosts: HostArgs,
    #[command(flatten, next_help_heading = "Towards origins")]
    pub upstream: UpstreamArgs,
    #[command(flatten, next_help_heading = "Changing traffic")]
    pub rules: RulesArgs,
    #[command(flatten, next_help_heading = "Files and replay")]
    pub replay: ReplayArgs,
    #[command(flatten, next_help_heading = "Screening")]
    pub screen: ScreenArgs,
    #[command(flatten, next_help_heading = "Screening")]
    pub external: ExternalArgs,
    /// An option by mitmproxy's name, e.g. --set confdir=DIR, --set tls_version_server_min=TLS1_3 [repeatable].
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "mitmproxy")]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ListenArgs {
    /// Where to listen: an address and port (port 0: a free one), or unix:PATH [repeatable] [default: 127.0.0.1:8080].
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "TOLLGATE_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<ListenAt>,
    /// The port to listen on.
    #[arg(short = 'p', long, value_name = "PORT")]
    pub listen_port: Option<u16>,
    /// The address to listen on; empty for all.
    #[arg(long, value_name = "HOST")]
    pub listen_host: Option<String>,
    /// What clients take the proxy for, and where: mitmproxy's NAME[:DATA][@[HOST:]PORT], or NAME[:DATA]@unix:PATH
    /// [repeatable] [default: regular].
    ///
    /// regular: an HTTP proxy. upstream:http://HOST:PORT (https, socks5): the same, through another proxy.
    /// reverse:https://HOST[:PORT] (http, http3, tcp, tls): one server. socks5: a SOCKS proxy. transparent: what the kernel hands
    /// over (see `tollgate transparent`). return: takes back what --scanner was given.
    #[arg(short, long, value_name = "MODE")]
    pub mode: Vec<String>,
    /// Who may use the proxy: user:pass, any (whoever gives a name), or @FILE (htpasswd with bcrypt or SHA-1).
    #[arg(
        long,
        value_name = "SPEC",
        env = "TOLLGATE_PROXYAUTH",
        hide_env_values = true
    )]
    pub proxyauth: Option<String>,
    /// Peers that begin with a PROXY protocol header, whose word for who the client is counts: 10.0.0.0/8 [repeatable].
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub proxy_protocol_from: Vec<String>,
    /// Threads that serve connections; 0 for one per core.
    #[arg(long, value_name = "N", env = "TOLLGATE_WORKERS")]
    pub workers: Option<usize>,
    /// How long connections may take to end after SIGTERM or Ctrl-C (a second one ends them at once).
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub drain: Duration,
    /// Whether `listen` came from the environment, which a flag overrides.
    #[arg(skip)]
    pub listen_from_env: bool,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How much to show of a flow: 0 nothing, 1 a line, 2 headers, 3 bodies, 4 bodies without a cut after 512 lines.
    #[arg(long, value_name = "0..4", env = "TOLLGATE_FLOW_DETAIL", value_parser = clap::value_parser!(u8).range(0..=4))]
    pub flow_detail: Option<u8>,
    /// Show nothing but errors.
    #[arg(short, long, conflicts_with_all = ["verbose", "json"])]
    pub quiet: bool,
    /// Show headers, and log more.
    #[arg(short, long)]
    pub verbose: bool,
    /// Print one JSON object per line and flow.
    #[arg(long)]
    pub json: bool,
    /// Name the local process behind each flow (with --json).
    #[arg(long, requires = "json")]
    pub process: bool,
    /// No colours. They appear on a terminal only, and not with NO_COLOR; CLICOLOR_FORCE=1 forces them.
    #[arg(long)]
    pub no_color: bool,
}

/// What changes traffic: files of rules, and mitmproxy's options, which act behind them.
#[derive(Clone, Debug, Default, Args)]
pub struct RulesArgs {
    /// A file of rules: block, allow, tunnel, map, modify, respond, redirect, slow down, hold, inject credentials
    /// [repeatable]. A change of the file takes effect within a second; docs/rules.md has the format.
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_RULES",
        value_delimiter = ','
    )]
    pub rules: Vec<PathBuf>,
    /// While this file exists, refuse what comes with 503 and cut what passes. It is looked for every second.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_KILL_SWITCH")]
    pub kill_switch: Option<PathBuf>,
    /// Answer requests that match a filter with an empty response: /FILTER/STATUS; 444 cuts the connection. The first
    /// character separates, here and below [repeatable].
    #[arg(long, value_name = "SPEC")]
    pub block_list: Vec<String>,
    /// Send requests elsewhere: |[FILTER|]URL-REGEX|REPLACEMENT [repeatable].
    #[arg(short = 'M', long, value_name = "SPEC")]
    pub map_remote: Vec<String>,
    /// Answer from files: |[FILTER|]URL-REGEX|PATH [repeatable].
    #[arg(long, value_name = "SPEC")]
    pub map_local: Vec<String>,
    /// Set a header, or remove it with an empty value: /[FILTER/]NAME/[@]VALUE; @ names a file [repeatable].
    #[arg(short = 'H', long, value_name = "SPEC")]
    pub modify_headers: Vec<String>,
    /// Replace in bodies, while they stream: /[FILTER/]REGEX/[@]REPLACEMENT [repeatable].
    #[arg(short = 'B', long, value_name = "SPEC")]
    pub modify_body: Vec<String>,
    /// Remember the cookies of responses, and put them into requests that match this filter.
    #[arg(long, value_name = "FILTER")]
    pub stickycookie: Option<String>,
    /// Remember the credentials of each host, and put them into requests that match this filter.
    #[arg(long, value_name = "FILTER")]
    pub stickyauth: Option<String>,
    /// Take out of requests what makes a server answer 304.
    #[arg(long, overrides_with = "no_anticache")]
    pub anticache: bool,
    #[arg(long, hide = true, overrides_with = "anticache")]
    pub no_anticache: bool,
    /// Ask servers for uncompressed bodies.
    #[arg(long, overrides_with = "no_anticomp")]
    pub anticomp: bool,
    #[arg(long, hide = true, overrides_with = "anticomp")]
    pub no_anticomp: bool,
}

/// Flow files as output and as input.
#[derive(Clone, Debug, Default, Args)]
pub struct ReplayArgs {
    /// Write flows to this file as they end: a flow file of mitmproxy, or HAR if it is called .har; +FILE appends. %Y, %m,
    /// %d, %H and the like of strftime stand for the time: another name begins another file, and its folder.
    #[arg(short = 'w', long, value_name = "FILE")]
    pub save_stream_file: Option<String>,
    /// Show the flows of this file as if they had passed (and write them, with -w), and end; - for standard input.
    #[arg(short, long, value_name = "FILE")]
    pub rfile: Option<PathBuf>,
    /// Don't listen.
    #[arg(short = 'n', long)]
    pub no_server: bool,
    /// Send the requests of this file again, through the proxy, say what is different, and end [repeatable].
    #[arg(short = 'C', long, value_name = "FILE")]
    pub client_replay: Vec<PathBuf>,
    /// Replayed requests under way at once; -1 for as many as there are, up to 256.
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        requires = "client_replay"
    )]
    pub client_replay_concurrency: Option<i64>,
    /// Begin replayed requests when they were recorded, so many times as fast: 1 as recorded, 2 in half the time. Without
    /// it they are sent as fast as they can be. Up to 256 are under way at once, unless --client-replay-concurrency says
    /// otherwise.
    #[arg(long, value_name = "FACTOR", requires = "client_replay")]
    pub replay_speed: Option<f64>,
    /// Exit with 1 if an answer to a replayed request is different, or none came.
    #[arg(long, requires = "client_replay")]
    pub replay_check: bool,
    /// Answer requests from the recorded flows of this file [repeatable].
    #[arg(short = 'S', long, value_name = "FILE", conflicts_with_all = ["replay", "client_replay"])]
    pub server_replay: Vec<PathBuf>,
    /// What a request without a recording gets: forward, kill, or a status.
    #[arg(long, value_name = "WHAT")]
    pub server_replay_extra: Option<String>,
    /// The same as --server-replay-extra kill.
    #[arg(long)]
    pub server_replay_kill_extra: bool,
    /// Let a recording answer more than once.
    #[arg(long)]
    pub server_replay_reuse: bool,
    /// Leave dates and the expiry of cookies as they were recorded.
    #[arg(long, overrides_with = "server_replay_refresh")]
    pub no_server_replay_refresh: bool,
    #[arg(long, hide = true, overrides_with = "no_server_replay_refresh")]
    pub server_replay_refresh: bool,
    /// Record flows into this folder, for --replay.
    #[arg(long, value_name = "DIR", conflicts_with = "replay")]
    pub record: Option<PathBuf>,
    /// Answer everything from a folder of --record: nothing is connected to, whatever the protocol, and a request without
    /// a recording gets 404 with a text that says what is different from the one that is most like it.
    #[arg(long, value_name = "DIR")]
    pub replay: Option<PathBuf>,
    /// Give recorded answers at the times at which they came: the head after as long, and the pieces of its body with
    /// the pauses between them. Without it they come at once.
    #[arg(long)]
    pub replay_timing: bool,
    /// Only flows that match this filter expression are shown, written and read, as mitmdump.
    #[arg(long, value_name = "EXPR")]
    pub filter: Option<String>,
}

/// `tollgate held`.
#[derive(Debug, Args)]
pub struct HeldArgs {
    #[command(subcommand)]
    pub command: Option<HeldCommand>,
    /// List those that are held from now on, too, and those that no longer are, until the proxy ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Print JSON, one object per line.
    #[arg(long, global = true)]
    pub json: bool,
    /// The proxy's process id, where several run.
    #[arg(long, global = true, value_name = "PID", conflicts_with = "socket")]
    pub pid: Option<u32>,
    /// The proxy's socket [default: the one in $XDG_RUNTIME_DIR/tollgate, or in tollgate-UID in the folder for temporary
    /// files].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Don't colour.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// What is done about held flows.
#[derive(Debug, Subcommand)]
pub enum HeldCommand {
    /// List them, the oldest first. Without a command it does the same.
    List {
        /// List those that are held from now on, too, and those that no longer are, until the proxy ends.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show one, with its headers, and its body where the rule's filter looks at bodies.
    Show {
        /// Its id, or how that begins.
        #[arg(value_name = "ID")]
        flow: String,
    },
    /// Let one go on, to the rules behind the one that holds it.
    Release {
        /// Its id, or how that begins; all for all of them.
        #[arg(value_name = "ID")]
        flow: String,
    },
    /// Refuse one: what is held of it never arrives.
    Refuse {
        /// Its id, or how that begins; all for all of them.
        #[arg(value_name = "ID")]
        flow: String,
        /// What its client is answered, 200 to 599; 444 cuts its connection.
        #[arg(long, value_name = "STATUS", default_value_t = 403, value_parser = clap::value_parser!(u16).range(200..=599))]
        status: u16,
    },
}

/// `tollgate audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Follow the chain of a log, with the files that were set aside before it. Exit code: 0 if it is whole, 1 if not.
    ///
    /// What was cut off at its end shows only by the hash that this prints: keep it elsewhere.
    Verify {
        /// The log.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Prove the signed checkpoints with this public key, in PEM. Exit code 1 also if there is none.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a key that signs logs, unless it is there, and print its public key.
    ///
    /// The key is PKCS#8 in PEM, in a file of its owner's. Keep it where the log's readers can't write.
    Key {
        /// The file of the private key.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show a log, with the files that were set aside before it, a line for each verdict.
    Show {
        /// The log.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Wait for more, until you stop it.
        #[arg(short, long)]
        follow: bool,
        /// Print the lines as they are, checkpoints as well.
        #[arg(long)]
        json: bool,
        /// Only verdicts with a finding of this rule.
        #[arg(long, value_name = "RULE")]
        rule: Option<String>,
        /// Only verdicts of the last so long: 10min, 2h, 1d.
        #[arg(long, value_name = "TIME", value_parser = age)]
        since: Option<Duration>,
    },
}

/// `tollgate rules`.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Read files of rules, and list what is in them.
    Check {
        /// The files.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// Print one JSON object per line and rule.
        #[arg(long)]
        json: bool,
    },
    /// Say which rules match recorded flows, and what they would do.
    Test {
        /// The file of rules.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The recorded flows, a flow file or HAR; - for standard input.
        #[arg(long, value_name = "FLOWS")]
        flow: PathBuf,
        /// The format of the flows; without this flag, their first bytes tell.
        #[arg(long, value_enum, value_name = "FORMAT")]
        from: Option<FileFormat>,
        /// Only flows that match this filter expression.
        #[arg(short, long, value_name = "EXPR")]
        filter: Option<String>,
        /// Print one JSON object per line and flow.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct ScreenArgs {
    /// Look for secrets in what leaves, and for dangerous tool calls in what models answer: enforce refuses, monitor
    /// reports.
    #[arg(long, value_name = "MODE", value_enum, env = "TOLLGATE_SCREEN")]
    pub screen: Option<ScreenArg>,
    /// Add a rule pack in gitleaks' TOML [repeatable].
    #[arg(long, value_name = "FILE", requires = "screen")]
    pub screen_rules: Vec<PathBuf>,
    /// Don't report this rule [repeatable].
    #[arg(long, value_name = "RULE", requires = "screen")]
    pub screen_allow: Vec<String>,
    /// Values that must not leave, in all their encodings: env:NAME, file:PATH, cmd:COMMAND [repeatable].
    #[arg(long, value_name = "SOURCE", requires = "screen")]
    pub known_secrets: Vec<String>,
    /// Decide by the rules in this file what follows from findings and tool calls: allow, warn, redact, hold, block. It is
    /// read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        requires = "screen",
        env = "TOLLGATE_SCREEN_POLICY"
    )]
    pub screen_policy: Option<PathBuf>,
    /// Tools whose calls are not held, by exact name: those that only read [repeatable].
    #[arg(long, value_name = "TOOL", value_delimiter = ',', requires = "screen")]
    pub read_only_tools: Vec<String>,
    #[command(flatten)]
    pub audit: AuditArgs,
    /// Let pass what can't be read (a broken content coding, a body over the limit) instead of refusing it.
    #[arg(long, requires = "screen")]
    pub screen_fail_open: bool,
    /// Prices of models, in TOML: what their answers cost is shown and counted.
    #[arg(
        long,
        value_name = "FILE",
        requires = "screen",
        env = "TOLLGATE_PRICES"
    )]
    pub prices: Option<PathBuf>,
    /// Refuse requests to models when this is used up, e.g. tokens=1m,per=1d,host=api.example.com or
    /// cost=5,per=1d,each=process [repeatable].
    #[arg(long, value_name = "LIMIT", requires = "screen")]
    pub budget: Vec<String>,
}

/// Scanners elsewhere.
#[derive(Clone, Debug, Args)]
pub struct ExternalArgs {
    /// Show requests and whole answers to a scanner elsewhere before they go on: icap://HOST[:PORT]/SERVICE (requests
    /// or answers, by what its OPTIONS say), or http://HOST[:PORT]/scan (`tollgate scan-server`); icaps:// and https://
    /// within TLS. With --screen monitor, what it says is only reported [repeatable].
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_EXTERNAL_SCANNER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub external_scanner: Vec<ScannerUrl>,
    /// How long a scanner may take.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, requires = "external_scanner")]
    pub external_scanner_timeout: Duration,
    /// The longest body that is shown. A request with a longer one is refused; an answer passes unseen.
    #[arg(long, value_name = "SIZE", default_value = "1m", value_parser = bytes, requires = "external_scanner")]
    pub external_scanner_limit: u64,
    /// Let pass what a scanner can't be asked about, instead of answering 502. So it is with --screen monitor.
    #[arg(long, requires = "external_scanner")]
    pub external_scanner_fail_open: bool,
    /// A file with the token for scanners over HTTP, as `scan-server --token-file` has it.
    #[arg(long, value_name = "FILE", requires = "external_scanner")]
    pub external_scanner_token_file: Option<PathBuf>,
    /// A PEM file with authorities to trust beside the platform's, for scanners within TLS [repeatable].
    #[arg(long, value_name = "FILE", requires = "external_scanner")]
    pub external_scanner_ca: Vec<PathBuf>,
}

/// Where verdicts are kept.
#[derive(Clone, Debug, Default, Args)]
pub struct AuditArgs {
    /// Write every verdict to this file, as JSON lines that show when somebody has changed them (`tollgate audit
    /// verify`). One process writes a file at a time.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Sign the audit log with this Ed25519 key (`tollgate audit key FILE` makes one): every 256 lines, 10 seconds after a
    /// line, and at the end.
    #[arg(long, value_name = "FILE", requires = "audit_log")]
    pub audit_key: Option<PathBuf>,
    /// What happens when the audit log can't be written, because the disk is full, say: go-on counts the verdicts that are
    /// missing, stop refuses traffic (with 503) until it can be written [default: go-on].
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        requires = "audit_log",
        hide_possible_values = true
    )]
    pub audit_full: Option<AuditFullArg>,
    /// Send every verdict to a syslog server (RFC 5424): udp://HOST:PORT, tcp://HOST:PORT, unix:///dev/log.
    #[arg(long, value_name = "WHERE", env = "TOLLGATE_AUDIT_SYSLOG")]
    pub audit_syslog: Option<String>,
    /// How a verdict stands in a syslog message: json, as in the audit log, or cef [default: json].
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        requires = "audit_syslog",
        hide_possible_values = true
    )]
    pub audit_format: Option<AuditFormatArg>,
    /// Send verdicts to a web service as JSON, up to 100 in one POST. What can't be delivered is tried again; 4096 wait at
    /// most, more are dropped and counted.
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_AUDIT_WEBHOOK",
        hide_env_values = true
    )]
    pub audit_webhook: Option<String>,
    /// The secret that signs those requests (HMAC-SHA256, header X-Tollgate-Signature): env:NAME or file:PATH [default:
    /// env:TOLLGATE_AUDIT_WEBHOOK_SECRET, if it is there].
    #[arg(long, value_name = "SOURCE", requires = "audit_webhook")]
    pub audit_webhook_secret: Option<String>,
}

/// `--audit-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuditFormatArg {
    /// As in the audit log.
    Json,
    /// The Common Event Format.
    Cef,
}

/// `--audit-full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuditFullArg {
    /// Traffic goes on.
    GoOn,
    /// Traffic is refused.
    Stop,
}

/// `--screen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScreenArg {
    /// Refuse what is found.
    Enforce,
    /// Report it.
    Monitor,
}

/// Whether flows are recorded, and how much of them.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// Whether flows are recorded, for `tollgate flows`: disk, or off [default: disk; for `tollgate run`: off, also where
    /// the environment says otherwise].
    ///
    /// What passes is recorded as it is, passwords and tokens included, in files that only their owner can read.
    #[arg(
        long,
        value_name = "WHERE",
        value_enum,
        env = "TOLLGATE_STORE",
        hide_possible_values = true
    )]
    pub store: Option<StorePlace>,
    /// The folder of the recorded flows [default: ~/.local/share/tollgate/flows, or flows in --data-dir].
    #[arg(long, value_name = "DIR", env = "TOLLGATE_STORE_DIR")]
    pub store_dir: Option<PathBuf>,
    /// The most that recorded flows may take: 500m, 2g [default: 1g]. At the bound the oldest go.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub store_max_size: Option<u64>,
    /// How long flows are kept: 12h, 7d; 0 for as long as there is room.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = age)]
    pub store_max_age: Duration,
    /// The most that is recorded of one body or message; the rest passes unrecorded, and the flow is marked.
    #[arg(long, value_name = "BYTES", default_value = "1m", value_parser = bytes)]
    pub store_body_limit: u64,
    /// Whether `store` came from the environment.
    #[arg(skip)]
    pub store_from_env: bool,
    /// Whether `store_dir` came from the environment.
    #[arg(skip)]
    pub store_dir_from_env: bool,
}

/// `--store`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StorePlace {
    /// In a folder.
    Disk,
    /// Nowhere.
    Off,
}

/// `tollgate flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// What to do instead of listing.
    #[command(subcommand)]
    pub command: Option<FlowsCommand>,
    /// Which flows to list.
    #[command(flatten)]
    pub query: FlowsQuery,
    /// How many, the newest of them [default: 50; with --export: all]; 0 for all.
    #[arg(short = 'n', long, value_name = "N")]
    pub number: Option<usize>,
    /// Go on with the flows that come.
    #[arg(short, long, conflicts_with = "export")]
    pub follow: bool,
    /// Write the flows to this file in place of listing them: .har for HAR, anything else for a flow file of mitmproxy.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// The folder of the flows.
    #[command(flatten)]
    pub folder: FlowsFolder,
    /// Print JSON: one object per line and flow, or what the command has to say.
    #[arg(long, global = true)]
    pub json: bool,
    /// No colours.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// What to do with recorded flows instead of listing them.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// Show one flow with its headers and bodies; with --json, bodies as text, or base64 where they are none.
    Show {
        /// Its number, or its id or how that begins.
        #[arg(value_name = "NUMBER|ID")]
        flow: String,
    },
    /// Delete flows.
    ///
    /// A proxy that records into the folder overwrites their bytes within about a second; without one, this command does.
    Delete {
        #[command(flatten)]
        query: FlowsQuery,
        /// Delete every flow.
        #[arg(long)]
        all: bool,
        /// Only flows that are older: 30min, 12h, 7d.
        #[arg(long, value_name = "TIME", value_parser = age)]
        older: Option<Duration>,
    },
    /// Show how many flows there are and what they take.
    Stats,
}

/// Which recorded flows.
#[derive(Debug, Args)]
pub struct FlowsQuery {
    /// A filter expression, such as '~d example.com & ~c 500' (docs/reference/filters.md), or words that URL, headers or
    /// bodies have: all of them, and word* for a beginning. What begins with ~, ! or ( is an expression.
    #[arg(value_name = "EXPR|WORD")]
    pub query: Vec<String>,
    /// Only flows of the last so long: 10min, 2h, 1d.
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub since: Option<Duration>,
}

/// Where recorded flows are.
#[derive(Debug, Args)]
pub struct FlowsFolder {
    /// The folder of the recorded flows [default: ~/.local/share/tollgate/flows, or flows in --data-dir].
    #[arg(long, global = true, value_name = "DIR", env = "TOLLGATE_STORE_DIR")]
    pub store_dir: Option<PathBuf>,
    /// Tollgate's folder.
    #[arg(long, global = true, value_name = "DIR", env = "TOLLGATE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Which authority to use.
#[derive(Clone, Debug, Default, Args)]
pub struct AuthorityArgs {
    /// The folder of the authority, made at the first start [default: ~/.local/share/tollgate].
    #[arg(
        long,
        value_name = "DIR",
        env = "TOLLGATE_DATA_DIR",
        conflicts_with = "confdir"
    )]
    pub data_dir: Option<PathBuf>,
    /// mitmproxy's folder: uses or makes the authority there, under mitmproxy's file names (as --set confdir=DIR).
    #[arg(long, value_name = "DIR")]
    pub confdir: Option<PathBuf>,
    /// A PEM file with the certificate of your own authority (and the key, if --ca-key is not given).
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CA_CERT")]
    pub ca_cert: Option<PathBuf>,
    /// A PEM file with its key.
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_CA_KEY",
        requires = "ca_cert"
    )]
    pub ca_key: Option<PathBuf>,
    /// Limit a new authority to a domain and what is below it, or to an address block [repeatable].
    #[arg(long, value_name = "example.com|10.0.0.0/8")]
    pub permit: Vec<String>,
    /// Whether `data_dir` came from the environment, which a flag overrides.
    #[arg(skip)]
    pub data_dir_from_env: bool,
}

#[derive(Debug, Args)]
pub struct HostArgs {
    /// Tunnel hosts unopened whose host:port matches this regex, as mitmproxy [repeatable].
    #[arg(long, value_name = "REGEX")]
    pub ignore_hosts: Vec<String>,
    /// Open only hosts whose host:port matches this regex, as mitmproxy [repeatable].
    #[arg(long, value_name = "REGEX")]
    pub allow_hosts: Vec<String>,
    /// Tunnel these hosts unopened: example.com, *.example.com, 10.0.0.0/8, each with :port if you like [repeatable].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub tunnel_hosts: Vec<String>,
    /// Open TLS to hosts that match this regex, but don't read what is inside as HTTP, as mitmproxy [repeatable].
    #[arg(long, value_name = "REGEX")]
    pub tcp_hosts: Vec<String>,
    /// Show tunnels, too, as streams of bytes.
    #[arg(long)]
    pub show_ignored_hosts: bool,
    /// Refuse these hosts with 403; nothing is sent to them [repeatable].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub block_hosts: Vec<String>,
    /// Connect to public addresses only: not to this machine, a private network, a metadata service or another special
    /// range, whatever name leads there. Upstream proxies and the server of mode reverse are exempt.
    #[arg(long, env = "TOLLGATE_PUBLIC_ONLY")]
    pub public_only: bool,
    /// Hosts that may have any address all the same, with --public-only [repeatable].
    #[arg(
        long,
        value_name = "PATTERN",
        value_delimiter = ',',
        requires = "public_only"
    )]
    pub private_hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpstreamArgs {
    /// Go through this proxy: http://[USER:PASS@]HOST:PORT, https://, or socks5://.
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_UPSTREAM_PROXY",
        hide_env_values = true
    )]
    pub upstream_proxy: Option<String>,
    /// Hosts that are reached without a proxy: example.com, *.example.com, 10.0.0.0/8 [repeatable].
    #[arg(
        long,
        value_name = "PATTERN",
        env = "TOLLGATE_NO_PROXY",
        value_delimiter = ','
    )]
    pub no_proxy: Vec<String>,
    /// The way to some hosts: PATTERN=URL, or PATTERN=direct; the first that matches counts [repeatable].
    #[arg(long, value_name = "PATTERN=URL")]
    pub via: Vec<String>,
    /// User and password for the proxy of mode upstream, or for the server of mode reverse.
    #[arg(
        long,
        value_name = "USER:PASS",
        env = "TOLLGATE_UPSTREAM_AUTH",
        hide_env_values = true
    )]
    pub upstream_auth: Option<String>,
    /// Use these addresses for a name: example.com=127.0.0.1,::1 [repeatable].
    #[arg(long, value_name = "HOST=IP")]
    pub resolve: Vec<String>,
    /// In mode reverse, leave the client's Host as it is.
    #[arg(long)]
    pub keep_host_header: bool,
    /// Begin connections to origins with a PROXY protocol header.
    #[arg(long, value_name = "VERSION", value_enum)]
    pub send_proxy_protocol: Option<ProxyProtocolArg>,
    /// Hand every request, opened, to this HTTP proxy; it must forward to a listener of mode `return`.
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_SCANNER",
        hide_env_values = true
    )]
    pub scanner: Option<String>,
    /// While the scanner can't be reached, send requests past it instead of refusing them.
    #[arg(long, requires = "scanner")]
    pub scanner_fail_open: bool,
    /// In mode socks5, relay datagrams to port 443 (HTTP/3), which are not looked into.
    #[arg(long)]
    pub allow_quic: bool,
    /// Leave in responses of these hosts what would lead clients to HTTP/3, where they aren't seen: h3 in Alt-Svc, h3 and
    /// ECH in answers of DNS over HTTPS [repeatable].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub show_http3: Vec<String>,
    /// Don't verify certificates of origins.
    #[arg(short = 'k', long, overrides_with = "no_ssl_insecure")]
    pub ssl_insecure: bool,
    #[arg(long, hide = true, overrides_with = "ssl_insecure")]
    pub no_ssl_insecure: bool,
    /// Don't verify the certificates of these hosts [repeatable].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub insecure_host: Vec<String>,
    /// A PEM file with authorities to trust beside the platform's [repeatable].
    #[arg(long, value_name = "FILE", env = "TOLLGATE_UPSTREAM_TRUSTED_CA")]
    pub upstream_trusted_ca: Vec<PathBuf>,
    /// A certificate to show clients in place of a minted one, [domain=]path.pem, as mitmproxy [repeatable].
    #[arg(long, value_name = "SPEC")]
    pub certs: Vec<String>,
    /// Speak HTTP/1.1 only, on both sides.
    #[arg(long, overrides_with = "http2")]
    pub no_http2: bool,
    #[arg(long, hide = true, overrides_with = "no_http2")]
    pub http2: bool,
    /// Which HTTP to speak to origins.
    #[arg(long, value_name = "VERSION", value_enum)]
    pub upstream_http: Option<UpstreamHttpArg>,
}

/// `--send-proxy-protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProxyProtocolArg {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// `--upstream-http`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UpstreamHttpArg {
    /// What the client speaks.
    Mirror,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 where the origin has it.
    Http2,
    /// HTTP/3, over UDP; origins without it are not reached.
    Http3,
}

/// `tollgate ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Show where the authority is, its fingerprint and its end.
    Show {
        #[command(flatten)]
        authority: AuthorityArgs,
    },
    /// Write the certificate for clients to import.
    Export {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// The format.
        #[arg(long, value_enum, default_value = "pem")]
        format: ExportFormat,
        /// The file to write; standard output if not given.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Replace the authority by a new one; clients must be told to trust it. The old key stays beside it as a backup.
    Rotate {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// The kind of key.
        #[arg(long, value_enum, default_value = "p256")]
        key_type: KeyType,
    },
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Text, for most clients.
    Pem,
    /// Binary, for Windows and Android.
    Der,
    /// PKCS#12 with an empty password, for Java.
    P12,
}

/// `--key-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyType {
    /// ECDSA on P-256: fast.
    P256,
    /// RSA with 2048 bits, for old clients.
    Rsa2048,
    /// RSA with 3072 bits.
    Rsa3072,
    /// RSA with 4096 bits.
    Rsa4096,
}

/// `tollgate transparent`.
#[derive(Debug, Subcommand)]
pub enum TransparentCommand {
    /// Print the rules, as a script for nft.
    Rules(TransparentArgs),
    /// Put them in force; needs root and nft.
    Apply(TransparentArgs),
    /// Take them out again.
    Remove,
}

/// Which connections are handed over.
#[derive(Debug, Args)]
pub struct TransparentArgs {
    /// The port of mode transparent.
    #[arg(short = 'p', long, value_name = "PORT", default_value = "8080")]
    pub port: u16,
    /// The ports whose connections are handed over.
    #[arg(
        long,
        value_name = "PORT",
        value_delimiter = ',',
        default_value = "80,443"
    )]
    pub ports: Vec<u16>,
    /// How: redirect (NAT), or tproxy, which keeps addresses and needs a route of its own.
    #[arg(long, value_enum, default_value = "redirect")]
    pub method: TransparentMethod,
    /// Also this machine's own connections, except those of this user: the one that the proxy runs as.
    #[arg(long, value_name = "USER")]
    pub local_except_user: Option<String>,
}

/// `--method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransparentMethod {
    /// NAT: works everywhere.
    Redirect,
    /// Without NAT; for connections that are routed through this machine.
    Tproxy,
}

/// `tollgate convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The file to read; - for standard input.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file to write; - for standard output. It appears when it is complete, and its owner only can read it.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// The format of the input; without this flag, its first bytes tell.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub from: Option<FileFormat>,
    /// The format of the output; without this flag, its name tells.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: Option<FileFormat>,
    /// Only flows that match this filter expression.
    #[arg(short, long, value_name = "EXPR")]
    pub filter: Option<String>,
    /// Print what was done as JSON: flows, bytes, not_http, broken.
    #[arg(long)]
    pub json: bool,
}

/// `tollgate export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The format.
    #[arg(value_name = "FORMAT", value_parser = PossibleValuesParser::new(FlowFormat::ALL.map(FlowFormat::as_str))
        .try_map(|name| name.parse::<FlowFormat>()))]
    pub format: FlowFormat,
    /// The file to read, a flow file or HAR; - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// Only flows that match this filter expression.
    #[arg(short, long, value_name = "EXPR")]
    pub filter: Option<String>,
    /// Only the first of them.
    #[arg(long)]
    pub first: bool,
    /// The format of the file; without this flag, its first bytes tell.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub from: Option<FileFormat>,
    /// Let curl connect to the address that the flow was connected to, with --resolve.
    #[arg(long)]
    pub preserve_original_ip: bool,
    /// Print one JSON object per line and flow: id, format, and text or base64.
    #[arg(long)]
    pub json: bool,
}

/// `tollgate filter`.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// The filter expression.
    #[arg(value_name = "EXPR")]
    pub expression: String,
    /// The file to read, a flow file or HAR; - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// Write the flows to this file in place of showing them; - for standard output.
    #[arg(short, long, value_name = "OUT", conflicts_with_all = ["json", "count"])]
    pub output: Option<PathBuf>,
    /// The format of the file; without this flag, its first bytes tell.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub from: Option<FileFormat>,
    /// The format of the output; without this flag, its name tells.
    #[arg(long, value_enum, value_name = "FORMAT", requires = "output")]
    pub to: Option<FileFormat>,
    /// Print one JSON object per line and flow.
    #[arg(long)]
    pub json: bool,
    /// Print how many flows match, and nothing else.
    #[arg(short, long, conflicts_with = "json")]
    pub count: bool,
    /// No colours.
    #[arg(long)]
    pub no_color: bool,
}

/// A format of files with recorded flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// mitmproxy's flow file.
    Mitm,
    /// HAR 1.2.
    Har,
}

/// `tollgate trust`.
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Put the authority into the trust stores of this machine and user (made first, if there is none).
    Install {
        #[command(flatten)]
        authority: AuthorityArgs,
    },
    /// Take it out again.
    Uninstall {
        #[command(flatten)]
        authority: AuthorityArgs,
    },
    /// Look where it is trusted; exit code 1 when nowhere.
    Status {
        #[command(flatten)]
        authority: AuthorityArgs,
    },
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// `ADDR:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("the path of the socket is missing".to_owned()),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "expected an address and port such as 127.0.0.1:8080 or [::1]:8080, or unix:PATH".to_owned()
            }),
        }
    }
}

impl Cli {
    /// Reads a command line.
    ///
    /// # Errors
    /// [`Exit`], with what to print: help, a version, or what is wrong.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let matches = match Self::command().try_get_matches_from(arguments.clone()) {
            Err(error) => match with_filter_flag(&error, arguments) {
                Some(arguments) => Self::command().try_get_matches_from(arguments),
                None => Err(error),
            },
            matches => matches,
        };
        let matches = matches.map_err(Exit::from)?;
        let mut cli = Self::from_arg_matches(&matches).map_err(Exit::from)?;
        let from_env = |matches: &ArgMatches, id: &str| {
            matches.value_source(id) == Some(ValueSource::EnvVariable)
        };
        match (&mut cli.command, matches.subcommand()) {
            (Some(Command::Run(run)), Some((_, matches))) => {
                run.proxy.listen.listen_from_env = from_env(matches, "listen");
                run.proxy.authority.data_dir_from_env = from_env(matches, "data_dir");
                run.proxy.store.store_from_env = from_env(matches, "store");
                run.proxy.store.store_dir_from_env = from_env(matches, "store_dir");
            }
            (None, _) => {
                cli.proxy.listen.listen_from_env = from_env(&matches, "listen");
                cli.proxy.authority.data_dir_from_env = from_env(&matches, "data_dir");
            }
            _ => {}
        }
        Ok(cli)
    }
}

/// mitmdump takes a filter expression where we have commands: puts `--filter` before one.
fn with_filter_flag(error: &clap::Error, mut arguments: Vec<OsString>) -> Option<Vec<OsString>> {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict
    ) {
        return None;
    }
    let found = error
        .get(ContextKind::InvalidArg)
        .or_else(|| error.get(ContextKind::InvalidSubcommand));
    let Some(ContextValue::String(expression)) = found else {
        return None;
    };
    if !expression.starts_with(['~', '!', '(']) {
        return None;
    }
    let at = arguments
        .iter()
        .position(|argument| argument.to_str() == Some(expression))?;
    arguments.insert(at, OsString::from("--filter"));
    Some(arguments)
}

/// A command line that ends the program.
#[derive(Debug)]
pub enum Exit {
    /// Something of mitmproxy's that is not here: one line, exit code 1.
    Missing(String),
    /// Help, a version, or a usage error.
    Clap(clap::Error),
}

impl From<clap::Error> for Exit {
    fn from(error: clap::Error) -> Self {
        let Some(ContextValue::String(argument)) = error
            .get(ContextKind::InvalidArg)
            .or_else(|| error.get(ContextKind::InvalidSubcommand))
        else {
            return Self::Clap(error);
        };
        let missing = match error.kind() {
            ErrorKind::UnknownArgument if argument.starts_with('-') => {
                missing_flag(argument.split('=').next().unwrap_or(argument))
            }
            _ => None,
        };
        missing.map_or(Self::Clap(error), Self::Missing)
    }
}

/// A number of bytes with a unit: `500m`, `1g`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("", 1),
        ("b", 1),
        ("k", 1 << 10),
        ("m", 1 << 20),
        ("g", 1 << 30),
        ("t", 1 << 40),
    ];
    scaled(text, &units).ok_or_else(|| "expected a number of bytes such as 500m or 1g".to_owned())
}

/// A time with a unit: `12h`, `7d`.
fn age(text: &str) -> Result<Duration, String> {
    let units = [
        ("", 1),
        ("s", 1),
        ("min", 60),
        ("m", 60),
        ("h", 3600),
        ("d", 86_400),
    ];
    scaled(text, &units)
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time such as 30min, 12h or 7d".to_owned())
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*scale)
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Cli, Exit> {
        Cli::read(
            std::iter::once("tollgate")
                .chain(arguments.iter().copied())
                .map(OsString::from),
        )
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_takes_everything_behind_the_dashes() {
        let cli = read(&["run", "-v", "--", "curl", "-v", "--", "x"]).unwrap();
        let Some(Command::Run(run)) = cli.command else {
            panic!("{cli:?}")
        };
        assert!(run.proxy.output.verbose);
        assert_eq!(run.command, ["curl", "-v", "--", "x"]);
        let cli = read(&["run", "curl", "-k"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Run(run)) if !run.proxy.upstream.ssl_insecure));
    }

    #[test]
    fn the_later_of_two_opposite_flags_wins() {
        let flags = |arguments: &[&str]| {
            let upstream = read(arguments).unwrap().proxy.upstream;
            (upstream.no_http2, upstream.http2)
        };
        assert_eq!(flags(&["--no-http2"]), (true, false));
        assert_eq!(flags(&["--no-http2", "--http2"]), (false, true));
    }

    #[test]
    fn flags_of_mitmdump_that_are_missing_are_named() {
        for arguments in [&["-s", "addon.py"][..], &["--proxy-debug"]] {
            match read(arguments) {
                Err(Exit::Missing(line)) => assert!(line.contains("mitmproxy"), "{line}"),
                other => panic!("{arguments:?}: {other:?}"),
            }
        }
        assert!(matches!(read(&["--frobnicate"]), Err(Exit::Clap(_))));
        assert!(matches!(read(&["frobnicate"]), Err(Exit::Clap(_))));
    }

    #[test]
    fn a_filter_expression_may_stand_alone() {
        for arguments in [
            &["~m post"][..],
            &["-n", "-r", "in", "~m post"],
            &["~m post", "-q"],
        ] {
            let cli = read(arguments).unwrap();
            assert_eq!(cli.proxy.replay.filter.as_deref(), Some("~m post"));
        }
        assert!(matches!(read(&["flowz"]), Err(Exit::Clap(_))));
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(bytes("500"), Ok(500));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(age("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(age("30min"), Ok(Duration::from_secs(1800)));
        for text in ["", "g", "1x", "-1", "1.5g", "99999999999999999t"] {
            assert!(bytes(text).is_err(), "{text}");
            assert!(age(text).is_err(), "{text}");
        }
    }

    #[test]
    fn places_to_listen_at() {
        let at = |text: &str| text.parse::<ListenAt>().ok();
        assert_eq!(
            at("[::1]:80"),
            Some(ListenAt::Tcp("[::1]:80".parse().unwrap()))
        );
        assert_eq!(at("unix:/run/t"), Some(ListenAt::Unix("/run/t".into())));
        assert_eq!(at("unix:"), None);
        assert_eq!(at("8080"), None);
    }
}
