//! From the command line to what the proxy is told. A flag wins over an environment variable, and that over `--set`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tollgate_ca::{Authority, AuthorityParams, KeyKind, Naming};
use tollgate_engine::{
    Config, ConnectionStrategy, Endpoint, HostPattern, Listen, Mode, ModeSpec,
    ProxyProtocolVersion, Roots, Sandwich, TlsVersions, UpstreamHttp, ViaRule,
};
use tollgate_flow::filter::Filter;
use tollgate_flow::{Credentials, OnFailure, TlsVersion, UpstreamProxy};
use tollgate_remote::{ExternalConfig, ExternalScanner, ScannerUrl};
use tollgate_rules::replay::{Extra, ReplayOptions};
use tollgate_screen::policy::{Policy, PolicyError};
use tollgate_screen::scan::Scanner;
use tollgate_screen::usage::{Ledger, Limit, Prices};
use tollgate_screen::{Enforcement, PolicyInForce, ScreenConfig};

use crate::args::{
    AuthorityArgs, ExternalArgs, ListenAt, OutputArgs, ProxyArgs, ProxyProtocolArg, ReplayArgs,
    ScreenArg, ScreenArgs, UpstreamHttpArg,
};
use crate::files::filter_of;
use crate::mitm_options::MitmOptions;
use crate::output::Verbosity;
use crate::paths::default_data_dir;
use crate::replay::{ClientReplaySettings, RECORDING, ServerReplaySettings};
use crate::rules::RulesSettings;
use crate::save::SaveSettings;
use crate::scan;
use crate::store::StoreSettings;
use crate::trail::Trail;

/// Everything that the command line decides.
#[derive(Debug)]
pub struct Settings {
    /// For the engine.
    pub config: Config,
    /// Where the authority comes from.
    pub authority: AuthoritySource,
    /// What is shown.
    pub output: OutputSettings,
    /// What changes what passes.
    pub rules: RulesSettings,
    /// What looks at what passes.
    pub screen: Option<ScreenSettings>,
    /// Scanners elsewhere.
    pub external: ExternalSettings,
    /// How long connections may take to end.
    pub drain: Duration,
    /// Whether and how flows are recorded.
    pub store: StoreSettings,
    /// Files as output and input.
    pub files: FileSettings,
    /// Things to tell the person at the terminal that are no errors.
    pub warnings: Vec<String>,
}

/// Files as output and input: `-w`, `-r`, `-C`, `-S`, `--record`, `--replay`.
#[derive(Debug, Default)]
pub struct FileSettings {
    /// Files that flows are written to.
    pub save: Vec<SaveSettings>,
    /// A file whose flows are shown.
    pub read: Option<PathBuf>,
    /// Which of its flows.
    pub read_filter: Option<Filter>,
    /// Which flows are shown.
    pub filter: Option<Filter>,
    /// Requests that are sent again.
    pub client_replay: Option<ClientReplaySettings>,
    /// Recordings that answer.
    pub server_replay: Option<ServerReplaySettings>,
    /// Whether the proxy listens.
    pub server: bool,
    /// Whether nothing may be connected to: `--replay`.
    pub offline: bool,
    /// Whether it goes on when files were read and requests replayed.
    pub keepserving: bool,
}

impl FileSettings {
    fn new(args: &ReplayArgs, set: &MitmOptions, json: bool) -> anyhow::Result<Self> {
        let filter = |own: &Option<String>| -> anyhow::Result<Option<Filter>> {
            let text = args.filter.as_ref().or(own.as_ref());
            text.map(|text| filter_of(text)).transpose()
        };
        let save_filter = filter(&set.save_stream_filter)?;
        let mut save = Vec::new();
        let stream = args
            .save_stream_file
            .as_ref()
            .or(set.save_stream_file.as_ref());
        save.extend(stream.map(|spec| SaveSettings::new(spec, save_filter.clone())));
        if let Some(har) = &set.hardump {
            ensure!(
                har.ends_with(".har") || har == "-",
                "option 'hardump' must name a .har file, or be -"
            );
            save.push(SaveSettings::new(har, save_filter.clone()));
        }
        if let Some(folder) = &args.record {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("can't make the folder {}", folder.display()))?;
            save.push(SaveSettings {
                path: folder.join(RECORDING),
                dated: false,
                append: false,
                filter: None,
            });
        }
        let paths = |args: &[PathBuf], set: &[String]| -> Vec<PathBuf> {
            let set = set.iter().map(|path| crate::paths::expand_home(path));
            set.chain(args.iter().cloned()).collect()
        };
        let client = paths(&args.client_replay, &set.client_replay);
        let concurrency = args
            .client_replay_concurrency
            .or(set.client_replay_concurrency)
            .unwrap_or(if args.replay_speed.is_some() { -1 } else { 1 });
        if let Some(speed) = args.replay_speed {
            ensure!(
                speed.is_finite() && speed > 0.0,
                "--replay-speed must be more than 0: 1 is as recorded, 2 twice as fast"
            );
        }
        let concurrency = match usize::try_from(concurrency) {
            Ok(1..) => usize::try_from(concurrency).unwrap_or(1).min(256),
            _ if concurrency == -1 => 256,
            _ => bail!("--client-replay-concurrency must be 1 or more, or -1"),
        };
        let client_replay = (!client.is_empty()).then_some(ClientReplaySettings {
            files: client,
            concurrency,
            speed: args.replay_speed,
            check: args.replay_check,
            json,
            credentials: None,
        });
        let rfile = set.rfile.as_deref().map(crate::paths::expand_home);
        let settings = Self {
            save,
            read: args.rfile.clone().or(rfile),
            read_filter: filter(&set.readfile_filter)?,
            filter: filter(&set.dumper_filter)?,
            client_replay,
            server_replay: server_replay(args, set)?,
            offline: args.replay.is_some(),
            server: !args.no_server && set.server.unwrap_or(true),
            keepserving: set.keepserving.unwrap_or(false),
        };
        let has_work = settings.read.is_some() || settings.client_replay.is_some();
        ensure!(
            settings.server || has_work,
            "there is nothing to do: -n doesn't listen, and neither -r nor -C is there"
        );
        ensure!(
            settings.server || !settings.keepserving,
            "-n doesn't listen, and keepserving goes on listening"
        );
        Ok(settings)
    }
}

fn server_replay(
    args: &ReplayArgs,
    set: &MitmOptions,
) -> anyhow::Result<Option<ServerReplaySettings>> {
    let mut files: Vec<PathBuf> = set
        .server_replay
        .iter()
        .map(|path| crate::paths::expand_home(path))
        .collect();
    files.extend(args.server_replay.iter().cloned());
    let mut options = ReplayOptions::default();
    if let Some(folder) = &args.replay {
        files.push(folder.join(RECORDING));
        options.extra = Extra::Status(404);
    }
    if files.is_empty() {
        ensure!(
            !args.replay_timing,
            "--replay-timing needs recordings to answer from: --replay or -S"
        );
        return Ok(None);
    }
    options.timing = args.replay_timing;
    let is = |option: Option<bool>| option.unwrap_or(false);
    let extra = args
        .server_replay_extra
        .as_ref()
        .or(set.server_replay_extra.as_ref());
    match extra.map(String::as_str) {
        None => {}
        Some("forward") => {
            ensure!(
                args.replay.is_none(),
                "--replay connects to nothing, and --server-replay-extra forward does; use -S {} in its place",
                files
                    .last()
                    .map_or("FILE".into(), |file| file.display().to_string())
            );
            options.extra = Extra::Forward;
        }
        Some("kill") => options.extra = Extra::Kill,
        Some(status) => {
            let status = status
                .parse()
                .ok()
                .filter(|status| (200..600).contains(status));
            options.extra = Extra::Status(status.with_context(|| {
                format!(
                    "--server-replay-extra must be forward, kill or a status from 200 to 599, not '{}'",
                    extra.map_or("", String::as_str)
                )
            })?);
        }
    }
    if args.server_replay_kill_extra || is(set.server_replay_kill_extra) {
        options.extra = Extra::Kill;
    }
    options.reuse = args.server_replay_reuse || is(set.server_replay_reuse);
    options.refresh = match (args.server_replay_refresh, args.no_server_replay_refresh) {
        (true, _) => true,
        (_, true) => false,
        _ => set.server_replay_refresh.unwrap_or(true),
    };
    options.use_headers = set.server_replay_use_headers.clone();
    options.ignore_content = is(set.server_replay_ignore_content);
    options.ignore_host = is(set.server_replay_ignore_host);
    options.ignore_port = is(set.server_replay_ignore_port);
    options.ignore_params = set.server_replay_ignore_params.clone();
    options.ignore_payload_params = set.server_replay_ignore_payload_params.clone();
    Ok(Some(ServerReplaySettings { files, options }))
}

/// What the proxy is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve whoever connects.
    Serve,
    /// To serve one command: a free port and an authority in memory, unless flags say otherwise.
    Run,
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputSettings {
    /// 0 to 4.
    pub flow_detail: u8,
    /// One JSON object per flow, in place of text.
    pub json: bool,
    /// Whether flows name their process.
    pub process: bool,
    /// The least severe log line that is shown.
    pub verbosity: Verbosity,
    /// Whether colours are forbidden.
    pub no_color: bool,
}

/// What looks at what passes.
#[derive(Clone, Debug)]
pub struct ScreenSettings {
    /// What it looks for.
    pub scanner: Scanner,
    /// How it works.
    pub config: ScreenConfig,
    /// What follows, where a file says so.
    pub policy: Option<ScreenPolicy>,
    /// Where verdicts are written.
    pub audit: Option<Trail>,
    /// What models used, and may use.
    pub ledger: Arc<Ledger>,
}

/// Scanners elsewhere.
pub struct ExternalSettings {
    urls: Vec<ScannerUrl>,
    config: ExternalConfig,
    /// Those that are asked.
    running: OnceLock<Vec<ExternalScanner>>,
}

/// Without the token.
impl std::fmt::Debug for ExternalSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalSettings")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

impl ExternalSettings {
    fn new(args: &ExternalArgs, screen: Option<ScreenArg>, offline: bool) -> anyhow::Result<Self> {
        ensure!(
            !offline || args.external_scanner.is_empty(),
            "--replay connects to nothing, and --external-scanner would: leave one of them out"
        );
        let mut config = ExternalConfig::default();
        if screen == Some(ScreenArg::Monitor) {
            config.enforcement = Enforcement::Monitor;
        }
        config.deadline = args.external_scanner_timeout;
        config.body = args.external_scanner_limit;
        if args.external_scanner_fail_open {
            config.on_failure = OnFailure::Open;
        }
        if let Some(path) = &args.external_scanner_token_file {
            config.token = Some(crate::scan_server::read_token(path)?);
        }
        match args.external_scanner.iter().any(ScannerUrl::is_tls) {
            true => {
                let tls = crate::tls::client_config(&args.external_scanner_ca)?;
                config.tls = Some(Arc::new(tls));
            }
            false => ensure!(
                args.external_scanner_ca.is_empty(),
                "--external-scanner-ca is for scanners within TLS: icaps:// or https://"
            ),
        }
        Ok(Self {
            urls: args.external_scanner.clone(),
            config,
            running: OnceLock::new(),
        })
    }

    /// The scanners; their connections live on this runtime.
    pub fn start(&self, runtime: &tokio::runtime::Handle) -> &[ExternalScanner] {
        self.running.get_or_init(|| {
            let urls = self.urls.iter().cloned();
            urls.map(|url| ExternalScanner::new(url, self.config.clone(), runtime.clone()))
                .collect()
        })
    }

    /// What was asked of each, a line for each; `None` without scanners.
    pub fn totals(&self) -> Option<String> {
        let running = self.running.get().filter(|all| !all.is_empty())?;
        let lines = running.iter().map(|scanner| {
            let stats = scanner.stats();
            format!(
                "External scanner {}: {} asked, {} refused, {} changed, {} failed, {} passed unseen\n",
                scanner.url(),
                stats.asked,
                stats.refused,
                stats.changed,
                stats.failed,
                stats.unseen
            )
        });
        Some(lines.collect())
    }
}

/// A policy in a file.
#[derive(Clone, Debug)]
pub struct ScreenPolicy {
    /// The file.
    pub file: PathBuf,
    /// What it says.
    pub in_force: PolicyInForce,
    /// The ids of rules that scanners have.
    ids: Arc<[Arc<str>]>,
}

impl ScreenPolicy {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn open(file: &Path, scanner: &Scanner) -> anyhow::Result<Self> {
        let policy = Self {
            file: file.to_owned(),
            in_force: PolicyInForce::new(Policy::default()),
            ids: scanner.rules().map(|rule| rule.id).collect(),
        };
        policy.in_force.replace(policy.load()?);
        Ok(policy)
    }

    /// Reads the file as it is now. Blocks.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn load(&self) -> Result<Policy, PolicyError> {
        let policy = Policy::load(&self.file)?;
        policy.check_findings(self.ids.iter().map(|id| &**id))?;
        Ok(policy)
    }
}

impl ScreenSettings {
    /// `None` without `--screen`.
    ///
    /// # Errors
    /// A file or a source that can't be read.
    pub fn new(args: &ScreenArgs) -> anyhow::Result<Option<Self>> {
        let Some(mode) = args.screen else {
            Trail::without_screen(&args.audit)?;
            return Ok(None);
        };
        let mut config = ScreenConfig::default();
        config.enforcement = match mode {
            ScreenArg::Enforce => Enforcement::Enforce,
            ScreenArg::Monitor => Enforcement::Monitor,
        };
        config.stream_at_once = args.read_only_tools.clone();
        if args.screen_fail_open {
            config.on_failure = OnFailure::Open;
        }
        let scanner = scan::build(
            &args.screen_rules,
            &args.known_secrets,
            &[],
            &args.screen_allow,
        )?;
        let audit = Trail::open(&args.audit)?;
        let policy = match &args.screen_policy {
            Some(file) => Some(ScreenPolicy::open(file, &scanner)?),
            None => None,
        };
        Ok(Some(Self {
            scanner,
            config,
            policy,
            audit,
            ledger: Arc::new(ledger(args)?),
        }))
    }
}

fn ledger(args: &ScreenArgs) -> anyhow::Result<Ledger> {
    let prices = match &args.prices {
        Some(path) => {
            let shown = path.display();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("--prices {shown}"))?;
            Prices::parse(&text).with_context(|| format!("--prices {shown}"))?
        }
        None => Prices::default(),
    };
    let mut limits = Vec::new();
    for text in &args.budget {
        let limit: Limit = text.parse().with_context(|| format!("--budget {text}"))?;
        ensure!(
            !limit.needs_prices() || args.prices.is_some(),
            "--budget {text}: cost can't be counted without --prices"
        );
        limits.push(limit);
    }
    Ok(Ledger::new(prices, limits))
}

/// Where the authority comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthoritySource {
    /// A folder; it is made there if there is none.
    Folder {
        /// The folder.
        dir: PathBuf,
        /// The names of its files.
        naming: Naming,
        /// How a new one looks.
        params: AuthorityParams,
    },
    /// PEM files of one's own.
    Files {
        /// The certificate.
        cert: PathBuf,
        /// The key; the same file, if it holds both.
        key: PathBuf,
    },
    /// Made anew, and gone with the process.
    Memory(AuthorityParams),
}

/// An authority that was opened.
pub struct OpenAuthority {
    /// The authority.
    pub authority: Arc<Authority>,
    /// Whether it was made just now.
    pub created: bool,
    /// The file with its certificate; `None` for one in memory.
    pub cert_file: Option<PathBuf>,
}

impl Settings {
    /// Lowers the arguments.
    ///
    /// # Errors
    /// One line that says what can't be used, and why.
    pub fn new(args: &ProxyArgs, purpose: Purpose) -> anyhow::Result<Self> {
        let set = MitmOptions::parse(&args.set)?;
        let mut warnings = Vec::new();
        let mut config = Config::default();
        config.listen = listen(args, &set, purpose)?;
        config.workers = args.listen.workers.unwrap_or_default();
        apply_hosts(&mut config, args, &set)?;
        apply_tls(&mut config, args, &set, &mut warnings)?;
        config.http2 = if args.upstream.http2 || args.upstream.no_http2 {
            args.upstream.http2
        } else {
            set.http2.unwrap_or(true)
        };
        config.upstream_http = match args.upstream.upstream_http {
            None | Some(UpstreamHttpArg::Mirror) => UpstreamHttp::Mirror,
            Some(UpstreamHttpArg::Http1) => UpstreamHttp::Http1,
            Some(UpstreamHttpArg::Http2) => UpstreamHttp::Http2,
            Some(UpstreamHttpArg::Http3) => UpstreamHttp::Http3,
        };
        ensure!(
            config.http2 || config.upstream_http != UpstreamHttp::Http2,
            "--upstream-http http2 and --no-http2 contradict each other"
        );
        if let Some(address) = &set.connect_addr {
            config.connect_addr = Some(address.parse().ok().with_context(|| {
                format!("option 'connect_addr' must be an IP address, not '{address}'")
            })?);
        }
        if let Some(seconds) = set.tcp_timeout {
            config.timeouts.idle = u64::try_from(seconds)
                .map(Duration::from_secs)
                .ok()
                .context("option 'tcp_timeout' can't be negative")?;
        }
        let mut files = FileSettings::new(&args.replay, &set, args.output.json)?;
        if !files.server {
            // Replayed requests have to pass somewhere: a port that nobody else is told of.
            config.listen = vec![Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).into()];
        }
        if files.offline {
            ensure!(
                set.lazy != Some(false),
                "--replay connects to nothing, and option 'connection_strategy' is eager"
            );
            config.connection_strategy = ConnectionStrategy::Never;
        } else if set.lazy.unwrap_or(files.server_replay.is_some()) {
            config.connection_strategy = ConnectionStrategy::Lazy;
        }
        apply_ways(&mut config, args, &set)?;
        if let (Some(replay), Some(auth)) = (&mut files.client_replay, &config.auth) {
            // What is replayed comes in by the same door.
            let (auth, own) = auth.clone().with_own("client-replay")?;
            config.auth = Some(auth);
            replay.credentials = Some(own);
        }
        let offline = files.offline;
        Ok(Self {
            config,
            authority: AuthoritySource::new(&args.authority, &set, purpose)?,
            output: OutputSettings::new(&args.output, &set, purpose, args.screen.screen.is_some())?,
            rules: RulesSettings::new(&args.rules, &set.rules),
            screen: ScreenSettings::new(&args.screen)?,
            external: ExternalSettings::new(&args.external, args.screen.screen, offline)?,
            drain: args.listen.drain,
            store: StoreSettings::new(&args.store, &args.authority, purpose)?,
            files,
            warnings,
        })
    }
}

impl AuthoritySource {
    /// The authority that the arguments name.
    ///
    /// # Errors
    /// A wrong constraint or key size, or no folder to be found.
    pub fn new(args: &AuthorityArgs, set: &MitmOptions, purpose: Purpose) -> anyhow::Result<Self> {
        let mut params = AuthorityParams::default();
        for constraint in &args.permit {
            params.permit.push(constraint.parse()?);
        }
        params.key = match set.key_size {
            None => KeyKind::P256,
            Some(2048) => KeyKind::Rsa2048,
            Some(3072) => KeyKind::Rsa3072,
            Some(4096) => KeyKind::Rsa4096,
            Some(other) => bail!("option 'key_size' must be 2048, 3072 or 4096, not '{other}'"),
        };
        if let Some(cert) = &args.ca_cert {
            ensure!(
                args.permit.is_empty(),
                "--permit limits a new authority, and --ca-cert names one that exists"
            );
            let key = args.ca_key.as_ref().unwrap_or(cert).clone();
            return Ok(Self::Files {
                cert: cert.clone(),
                key,
            });
        }
        let data_dir = args.data_dir.as_ref();
        let flag_dir = data_dir.filter(|_| !args.data_dir_from_env);
        let env_dir = data_dir.filter(|_| purpose == Purpose::Serve);
        let ours = |dir: &PathBuf| (dir.clone(), Naming::Tollgate);
        let mitmproxys = |dir: &PathBuf| (dir.clone(), Naming::Mitmproxy);
        let chosen = flag_dir
            .map(ours)
            .or_else(|| args.confdir.as_ref().map(mitmproxys))
            .or_else(|| set.confdir.as_ref().map(mitmproxys))
            .or_else(|| env_dir.map(ours));
        let (dir, naming) = match (chosen, purpose) {
            (Some(chosen), _) => chosen,
            (None, Purpose::Run) => return Ok(Self::Memory(params)),
            (None, Purpose::Serve) => (default_data_dir()?, Naming::Tollgate),
        };
        Ok(Self::Folder {
            dir,
            naming,
            params,
        })
    }

    /// Opens the authority, or makes it.
    ///
    /// # Errors
    /// What the authority's files say; or a constraint that an existing authority doesn't have.
    pub fn open(&self) -> anyhow::Result<OpenAuthority> {
        let (authority, created, cert_file) = match self {
            Self::Folder {
                dir,
                naming,
                params,
            } => {
                let (authority, created) = Authority::open_or_create(dir, *naming, params)?;
                // A name that no constraint permits tells an authority without any.
                if !created
                    && !params.permit.is_empty()
                    && authority.permits("unconstrained.invalid")
                {
                    bail!(
                        "the authority in {} exists already and is not limited by --permit; replace it with `tollgate ca rotate --permit …`",
                        dir.display()
                    );
                }
                (authority, created, Some(naming.cert_file(dir)))
            }
            Self::Files { cert, key } => {
                (Authority::from_files(cert, key)?, false, Some(cert.clone()))
            }
            Self::Memory(params) => (Authority::generate(params)?, true, None),
        };
        Ok(OpenAuthority {
            authority: Arc::new(authority),
            created,
            cert_file,
        })
    }
}

impl OutputSettings {
    /// `screens`: whether something looks at what passes, and has something to say.
    fn new(
        args: &OutputArgs,
        set: &MitmOptions,
        purpose: Purpose,
        screens: bool,
    ) -> anyhow::Result<Self> {
        let from_set = match set.flow_detail {
            None => None,
            Some(detail) => Some(
                u8::try_from(detail)
                    .ok()
                    .filter(|detail| *detail <= 4)
                    .with_context(|| {
                        format!("option 'flow_detail' must be from 0 to 4, not '{detail}'")
                    })?,
            ),
        };
        let flow_detail = match (args.quiet, args.flow_detail, args.verbose) {
            (true, ..) => 0,
            (_, Some(detail), _) => detail,
            (_, None, true) => 2,
            (_, None, false) => from_set.unwrap_or(match purpose {
                Purpose::Serve => 1,
                Purpose::Run => 0,
            }),
        };
        let from_set = match set.termlog_verbosity.as_deref() {
            Some("error") => Some(Verbosity::Error),
            Some("warn") => Some(Verbosity::Warn),
            Some("debug") => Some(Verbosity::Debug),
            Some(_) => Some(Verbosity::Info),
            None => None,
        };
        let verbosity = match (args.quiet, args.verbose) {
            (true, _) => Verbosity::Error,
            (_, true) => Verbosity::Debug,
            _ => from_set.unwrap_or(match (purpose, flow_detail) {
                // Who asked for a screen wants to know what it saw.
                (Purpose::Run, 0) if screens => Verbosity::Warn,
                (Purpose::Run, 0) => Verbosity::Error,
                _ => Verbosity::Info,
            }),
        };
        Ok(Self {
            flow_detail,
            json: args.json,
            process: args.process,
            verbosity,
            no_color: args.no_color,
        })
    }
}

/// Where to listen, and in which modes.
fn listen(args: &ProxyArgs, set: &MitmOptions, purpose: Purpose) -> anyhow::Result<Vec<Endpoint>> {
    let credentials = upstream_auth(args, set)?;
    let scans = args.upstream.scanner.is_some();
    let args = &args.listen;
    let given = if args.mode.is_empty() {
        &set.mode
    } else {
        &args.mode
    };
    let mut specs = Vec::new();
    for mode in given {
        let mut spec: ModeSpec = mode.parse()?;
        match &mut spec.mode {
            Mode::Upstream(proxy) if proxy.credentials.is_none() => {
                *proxy = Arc::new(UpstreamProxy {
                    credentials: credentials.clone(),
                    ..UpstreamProxy::clone(proxy)
                });
            }
            Mode::Reverse(reverse) => reverse.credentials = credentials.clone(),
            _ => {}
        }
        specs.push(spec);
    }
    if specs.iter().all(|spec| spec.mode == Mode::Return) && (scans || specs.is_empty()) {
        specs.insert(0, "regular".parse()?);
    }
    let from_flag = !args.listen.is_empty() && !args.listen_from_env;
    ensure!(
        !from_flag || (args.listen_host.is_none() && args.listen_port.is_none()),
        "--listen names the whole address: leave out --listen-host and --listen-port"
    );
    let host = args.listen_host.as_ref().or(set.listen_host.as_ref());
    let port = args.listen_port.map(i64::from).or(set.listen_port);
    // The environment is about the proxy that serves everybody, not about one beside it for one command.
    let from_env = args.listen_from_env && purpose == Purpose::Serve;
    let mut places = if from_flag || (from_env && host.is_none() && port.is_none()) {
        args.listen.as_slice()
    } else {
        &[]
    };
    let mut endpoints = Vec::new();
    for spec in specs {
        let mode = spec.mode;
        let mut add = |at| {
            let mode = mode.clone();
            endpoints.push(Endpoint { mode, at });
        };
        if let Some(path) = spec.unix {
            add(Listen::Unix(path));
            continue;
        }
        let somewhere = spec.host.is_some() || spec.port.is_some();
        if !somewhere && !places.is_empty() {
            for place in std::mem::take(&mut places) {
                add(match place {
                    ListenAt::Tcp(address) => Listen::Tcp(*address),
                    ListenAt::Unix(path) => Listen::Unix(path.clone()),
                });
            }
            continue;
        }
        let port = match (spec.port.map(i64::from).or(port), purpose) {
            (Some(port), _) => u16::try_from(port).ok().with_context(|| {
                format!("option 'listen_port' must be from 0 to 65535, not '{port}'")
            })?,
            (None, Purpose::Serve) => mode.default_port(),
            (None, Purpose::Run) => 0,
        };
        let host = spec.host.as_ref().or(host);
        add(Listen::Tcp(resolve(host.map(String::as_str), port)?));
    }
    ensure!(
        places.is_empty() || !from_flag,
        "every --mode says where it listens: leave out --listen"
    );
    Ok(endpoints)
}

fn upstream_auth(args: &ProxyArgs, set: &MitmOptions) -> anyhow::Result<Option<Credentials>> {
    let given = args.upstream.upstream_auth.as_ref();
    given
        .or(set.upstream_auth.as_ref())
        .map(|text| Credentials::parse(text).context("--upstream-auth must be user:pass"))
        .transpose()
}

/// Who may use the proxy, and the ways out.
fn apply_ways(config: &mut Config, args: &ProxyArgs, set: &MitmOptions) -> anyhow::Result<()> {
    let upstream = &args.upstream;
    let proxy = |url: &str| -> anyhow::Result<_> { Ok(Arc::new(url.parse::<UpstreamProxy>()?)) };
    let auth = args.listen.proxyauth.as_ref().or(set.proxyauth.as_ref());
    config.auth = match auth {
        Some(auth) => Some(auth.parse().context("--proxyauth")?),
        None => None,
    };
    config.keep_host_header = upstream.keep_host_header || set.keep_host_header.unwrap_or_default();
    config.block_quic = !upstream.allow_quic;
    config.show_http3 = globs(&upstream.show_http3)?;
    config.proxy_protocol.from = globs(&args.listen.proxy_protocol_from)?;
    config.proxy_protocol.send = upstream.send_proxy_protocol.map(|version| match version {
        ProxyProtocolArg::V1 => ProxyProtocolVersion::V1,
        ProxyProtocolArg::V2 => ProxyProtocolVersion::V2,
    });
    config.via.proxy = upstream.upstream_proxy.as_deref().map(proxy).transpose()?;
    config.via.no_proxy = globs(&upstream.no_proxy)?;
    for rule in &upstream.via {
        let (pattern, way) = rule
            .split_once('=')
            .with_context(|| format!("--via '{rule}': expected PATTERN=URL or PATTERN=direct"))?;
        config.via.rules.push(ViaRule {
            hosts: vec![HostPattern::new(pattern)?],
            proxy: match way {
                "direct" => None,
                url => Some(proxy(url)?),
            },
        });
    }
    for entry in &upstream.resolve {
        let (host, addresses) = entry
            .split_once('=')
            .with_context(|| format!("--resolve '{entry}': expected HOST=IP"))?;
        let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
        let addresses =
            addresses.with_context(|| format!("--resolve '{entry}': that is not an address"))?;
        config.hosts.push((host.to_ascii_lowercase(), addresses));
    }
    if let Some(url) = &upstream.scanner {
        let mut sandwich = Sandwich::new(url.parse()?);
        if upstream.scanner_fail_open {
            sandwich.on_failure = OnFailure::Open;
        }
        config.sandwich = Some(sandwich);
    }
    Ok(())
}

fn resolve(host: Option<&str>, port: u16) -> anyhow::Result<SocketAddr> {
    let host = match host {
        None => return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        // mitmproxy's word for every address of this machine.
        Some("") => return Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        Some(host) => host,
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
        return Ok(SocketAddr::from((address, port)));
    }
    (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .with_context(|| format!("can't listen on '{host}': no such address on this machine"))
}

fn apply_hosts(config: &mut Config, args: &ProxyArgs, set: &MitmOptions) -> anyhow::Result<()> {
    fn regexes(flags: &[String], set: &[String]) -> anyhow::Result<Vec<HostPattern>> {
        let chosen = if flags.is_empty() { set } else { flags };
        let patterns = chosen.iter().map(|pattern| HostPattern::regex(pattern));
        Ok(patterns.collect::<Result<_, _>>()?)
    }
    let policy = &mut config.policy;
    policy.block = globs(&args.hosts.block_hosts)?;
    policy.public_only = args.hosts.public_only;
    policy.private = globs(&args.hosts.private_hosts)?;
    policy.allow = regexes(&args.hosts.allow_hosts, &set.allow_hosts)?;
    policy.ignore = regexes(&args.hosts.ignore_hosts, &set.ignore_hosts)?;
    policy.ignore.extend(globs(&args.hosts.tunnel_hosts)?);
    let raw = if args.hosts.tcp_hosts.is_empty() {
        &set.tcp_hosts
    } else {
        &args.hosts.tcp_hosts
    };
    let raw = raw.iter().map(|pattern| HostPattern::host_regex(pattern));
    policy.raw = raw.collect::<Result<_, _>>()?;
    policy.show_ignored =
        args.hosts.show_ignored_hosts || set.show_ignored_hosts.unwrap_or_default();
    Ok(())
}

fn globs(patterns: &[String]) -> anyhow::Result<Vec<HostPattern>> {
    let patterns = patterns.iter().map(|pattern| HostPattern::new(pattern));
    Ok(patterns.collect::<Result<_, _>>()?)
}

fn apply_tls(
    config: &mut Config,
    args: &ProxyArgs,
    set: &MitmOptions,
    warnings: &mut Vec<String>,
) -> anyhow::Result<()> {
    let upstream = &args.upstream;
    let tls = &mut config.tls;
    tls.insecure = if upstream.ssl_insecure || upstream.no_ssl_insecure {
        upstream.ssl_insecure
    } else {
        set.ssl_insecure.unwrap_or_default()
    };
    if tls.insecure {
        warnings.push("certificates of origins are not verified".to_owned());
    }
    tls.insecure_hosts = globs(&upstream.insecure_host)?;
    tls.extra_roots = upstream.upstream_trusted_ca.clone();
    let only: Vec<PathBuf> = [
        &set.ssl_verify_upstream_trusted_ca,
        &set.ssl_verify_upstream_trusted_confdir,
    ]
    .into_iter()
    .flatten()
    .cloned()
    .collect();
    if !only.is_empty() {
        tls.roots = Roots::Files(only);
    }
    tls.client_certs = set.client_certs.clone();
    tls.certs = if upstream.certs.is_empty() {
        set.certs.clone()
    } else {
        upstream.certs.clone()
    };
    tls.client_versions = versions(
        "client",
        set.tls_version_client_min.as_deref(),
        set.tls_version_client_max.as_deref(),
        warnings,
    )?;
    tls.upstream_versions = versions(
        "server",
        set.tls_version_server_min.as_deref(),
        set.tls_version_server_max.as_deref(),
        warnings,
    )?;
    Ok(())
}

fn versions(
    side: &str,
    min: Option<&str>,
    max: Option<&str>,
    warnings: &mut Vec<String>,
) -> anyhow::Result<TlsVersions> {
    let mut versions = TlsVersions::default();
    match min {
        Some("TLS1_3") => versions.min = TlsVersion::Tls13,
        Some(old @ ("SSL3" | "TLS1" | "TLS1_1")) => warnings.push(format!(
            "option 'tls_version_{side}_min': Tollgate speaks TLS 1.2 and later; {old} means TLS1_2"
        )),
        _ => {}
    }
    match max {
        Some("TLS1_2") => versions.max = TlsVersion::Tls12,
        Some(old @ ("SSL3" | "TLS1" | "TLS1_1")) => {
            bail!(
                "option 'tls_version_{side}_max': Tollgate speaks TLS 1.2 and later, so it can't be {old}"
            )
        }
        _ => {}
    }
    ensure!(
        versions.min <= versions.max,
        "options 'tls_version_{side}_min' and 'tls_version_{side}_max' leave no version"
    );
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use tollgate_engine::ProxyAuth;

    use super::*;
    use crate::args::{Cli, Command};

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        let cli = Cli::read(
            std::iter::once("tollgate")
                .chain(arguments.iter().copied())
                .map(OsString::from),
        )
        .unwrap();
        match &cli.command {
            Some(Command::Run(run)) => Settings::new(&run.proxy, Purpose::Run),
            _ => Settings::new(&cli.proxy, Purpose::Serve),
        }
        .map_err(|error| format!("{error:#}"))
    }

    fn tcp(address: &str) -> Endpoint {
        Listen::Tcp(address.parse().unwrap()).into()
    }

    fn shown(endpoints: &[Endpoint]) -> Vec<String> {
        let shown = |e: &Endpoint| format!("{} {}", e.mode, e.at);
        endpoints.iter().map(shown).collect()
    }

    #[test]
    fn where_to_listen() {
        let listen = |arguments: &[&str]| settings(arguments).unwrap().config.listen;
        assert_eq!(listen(&[]), [tcp("127.0.0.1:8080")]);
        assert_eq!(listen(&["run", "x"]), [tcp("127.0.0.1:0")]);
        assert_eq!(listen(&["-p", "9000"]), [tcp("127.0.0.1:9000")]);
        assert_eq!(
            listen(&["--listen-host", "::1", "--set", "listen_port=9000"]),
            [tcp("[::1]:9000")]
        );
        assert_eq!(
            listen(&["-p", "1", "--set", "listen_port=2"]),
            [tcp("127.0.0.1:1")]
        );
        assert_eq!(listen(&["--listen-host", ""]), [tcp("0.0.0.0:8080")]);
        assert_eq!(listen(&["-m", "regular@9001"]), [tcp("127.0.0.1:9001")]);
        assert_eq!(
            listen(&["--set", "mode=regular@0.0.0.0:9001"]),
            [tcp("0.0.0.0:9001")]
        );
        assert_eq!(
            listen(&["--listen", "127.0.0.1:1", "--listen", "unix:/x"]),
            [tcp("127.0.0.1:1"), Listen::Unix("/x".into()).into()]
        );
        assert!(settings(&["--listen", "127.0.0.1:1", "-p", "2"]).is_err());
        let shown = |arguments: &[&str]| shown(&listen(arguments));
        assert_eq!(
            shown(&[
                "-m",
                "regular",
                "-m",
                "socks5",
                "-m",
                "reverse:http://h:1@[::1]:7"
            ]),
            [
                "regular 127.0.0.1:8080",
                "socks5 127.0.0.1:1080",
                "reverse:http://h:1 [::1]:7"
            ]
        );
        assert_eq!(
            shown(&[
                "-m",
                "socks5",
                "--listen",
                "127.0.0.1:5",
                "-m",
                "regular@unix:/s"
            ]),
            ["socks5 127.0.0.1:5", "regular unix:/s"]
        );
        assert_eq!(
            shown(&["--scanner", "http://s:1", "-m", "return@9"]),
            ["regular 127.0.0.1:8080", "return 127.0.0.1:9"]
        );
        for wrong in [
            &["-m", "sideways"][..],
            &["-m", "wireguard"],
            &["-m", "regular@1", "--listen", "127.0.0.1:2"],
            &["-m", "upstream:http://p:1", "--upstream-auth", "nobody"],
        ] {
            assert!(settings(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ways_in_and_out() {
        let config = settings(&[
            "-m",
            "upstream:http://p:1",
            "-m",
            "reverse:http://h:1@2",
            "--upstream-auth",
            "u:p",
            "--proxyauth",
            "any",
            "--via",
            "*.example=socks5://s:1",
            "--via",
            "*=direct",
            "--no-proxy",
            "a,b",
            "--resolve",
            "H.example=127.0.0.1,::1",
            "--show-http3",
            "a,*.b",
            "--set",
            "keep_host_header",
            "--set",
            "tcp_hosts=x",
            "--proxy-protocol-from",
            "10.0.0.0/8",
            "--send-proxy-protocol",
            "v2",
            "--upstream-proxy",
            "p:3128",
        ])
        .unwrap()
        .config;
        let credentials = Credentials::parse("u:p");
        assert!(
            matches!(&config.listen[0].mode, Mode::Upstream(p) if p.credentials == credentials)
        );
        assert!(matches!(&config.listen[1].mode, Mode::Reverse(r) if r.credentials == credentials));
        assert!(config.auth.is_some() && config.keep_host_header && config.block_quic);
        assert_eq!(config.via.rules.len(), 2);
        assert_eq!(config.via.rules[1].proxy, None);
        assert_eq!(config.via.no_proxy.len(), 2);
        assert!(config.hide_http3 && config.show_http3.len() == 2);
        assert_eq!(config.via.proxy.unwrap().to_string(), "http://p:3128");
        assert_eq!(config.hosts[0].0, "h.example");
        assert_eq!(config.hosts[0].1.len(), 2);
        assert_eq!(config.policy.raw.len(), 1);
        assert_eq!(config.proxy_protocol.from.len(), 1);
        assert_eq!(config.proxy_protocol.send, Some(ProxyProtocolVersion::V2));
        for wrong in [
            ["--via", "x"],
            ["--via", "x=ftp://y:1"],
            ["--resolve", "x"],
            ["--resolve", "x=y"],
            ["--proxyauth", "nobody"],
            ["--proxyauth", "@/nowhere"],
            ["--upstream-proxy", "p"],
            ["--scanner", "s"],
        ] {
            assert!(settings(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn hosts_and_tls() {
        let settings = settings(&[
            "-k",
            "--ignore-hosts",
            "a\\.example",
            "--set",
            "ignore_hosts=lost",
            "--set",
            "allow_hosts=example",
            "--tunnel-hosts",
            "b.example,c.example",
            "--block-hosts",
            "*.d.example",
            "--set",
            "ssl_verify_upstream_trusted_ca=/a.pem",
            "--upstream-trusted-ca",
            "/b.pem",
            "--set",
            "tls_version_server_min=TLS1_3",
            "--set",
            "tls_version_client_min=TLS1",
            "--set",
            "tcp_timeout=7",
            "--no-http2",
        ])
        .unwrap();
        let config = settings.config;
        assert!(config.tls.insecure && !config.http2);
        assert_eq!(config.policy.ignore.len(), 3);
        assert_eq!(config.policy.allow.len(), 1);
        assert_eq!(config.policy.block.len(), 1);
        assert_eq!(config.tls.roots, Roots::Files(vec!["/a.pem".into()]));
        assert_eq!(config.tls.extra_roots, [PathBuf::from("/b.pem")]);
        assert_eq!(config.tls.upstream_versions.min, TlsVersion::Tls13);
        assert_eq!(config.tls.client_versions, TlsVersions::default());
        assert_eq!(config.timeouts.idle, Duration::from_secs(7));
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
    }

    #[test]
    fn contradictions_are_errors() {
        for arguments in [
            &["--set", "tls_version_client_max=TLS1_1"][..],
            &[
                "--set",
                "tls_version_server_min=TLS1_3",
                "--set",
                "tls_version_server_max=TLS1_2",
            ],
            &["--no-http2", "--upstream-http", "http2"],
            &["--set", "flow_detail=5"],
            &["--set", "connect_addr=eth0"],
            &["--set", "key_size=1024"],
            &["--ignore-hosts", "("],
            &["--block-hosts", "a:b"],
            &["--permit", "a b"],
        ] {
            assert!(settings(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn whoever_has_to_be_asked_is_asked_with_a_replay_and_without() {
        let config = settings(&["--proxyauth", "anna:secret"]).unwrap().config;
        assert!(matches!(config.auth, Some(ProxyAuth::Single(_))));
        let replaying = settings(&["--proxyauth", "anna:secret", "-C", "x.mitm"]).unwrap();
        assert!(matches!(replaying.config.auth, Some(ProxyAuth::Also(..))));
        let own = |settings: &Settings| {
            let replay = settings.files.client_replay.clone().unwrap();
            replay.credentials
        };
        let again = settings(&["--proxyauth", "anna:secret", "-C", "x.mitm"]).unwrap();
        assert!(own(&replaying).is_some());
        assert_ne!(own(&replaying), own(&again));
        let open = settings(&["-C", "x.mitm"]).unwrap();
        assert!(open.config.auth.is_none() && own(&open).is_none());
    }

    #[test]
    fn how_much_is_shown() {
        let shown = |arguments: &[&str]| {
            let output = settings(arguments).unwrap().output;
            (output.flow_detail, output.verbosity)
        };
        assert_eq!(shown(&[]), (1, Verbosity::Info));
        assert_eq!(shown(&["-q"]), (0, Verbosity::Error));
        assert_eq!(shown(&["-v"]), (2, Verbosity::Debug));
        assert_eq!(shown(&["-v", "--flow-detail", "3"]), (3, Verbosity::Debug));
        assert_eq!(shown(&["--set", "flow_detail=4"]), (4, Verbosity::Info));
        assert_eq!(shown(&["run", "x"]), (0, Verbosity::Error));
        assert_eq!(
            shown(&["run", "--flow-detail", "1", "x"]),
            (1, Verbosity::Info)
        );
        assert_eq!(
            shown(&["--set", "termlog_verbosity=warn"]),
            (1, Verbosity::Warn)
        );
    }

    #[test]
    fn where_the_authority_comes_from() {
        let source = |arguments: &[&str]| settings(arguments).unwrap().authority;
        let folder = |dir: &str, naming| AuthoritySource::Folder {
            dir: dir.into(),
            naming,
            params: AuthorityParams::default(),
        };
        assert_eq!(
            source(&["--data-dir", "/d"]),
            folder("/d", Naming::Tollgate)
        );
        assert_eq!(
            source(&["--set", "confdir=/m"]),
            folder("/m", Naming::Mitmproxy)
        );
        assert_eq!(
            source(&["run", "x"]),
            AuthoritySource::Memory(AuthorityParams::default())
        );
        assert_eq!(
            source(&["--ca-cert", "/c.pem"]),
            AuthoritySource::Files {
                cert: "/c.pem".into(),
                key: "/c.pem".into()
            }
        );
    }

    #[test]
    fn an_authority_is_never_wider_than_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let open = |permit: &[&str]| {
            let args = AuthorityArgs {
                data_dir: Some(dir.path().to_owned()),
                permit: permit.iter().map(|name| (*name).to_owned()).collect(),
                ..AuthorityArgs::default()
            };
            AuthoritySource::new(&args, &MitmOptions::default(), Purpose::Serve)
                .unwrap()
                .open()
        };
        assert!(open(&[]).unwrap().created);
        assert!(open(&["example.com"]).is_err());
    }
}
