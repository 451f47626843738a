//! The command `tollgate`: an intercepting proxy for the terminal, a wrapper for one command, and the keeper of the authority.
#![allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "the doc comments of arguments are the text of --help"
)]

mod args;
mod audit;
mod authority;
mod child_env;
mod files;
mod flows;
mod held;
mod mcp;
mod mitm_options;
mod os;
mod output;
mod paths;
mod proxy;
mod replay;
mod rules;
mod run;
mod save;
mod scan;
mod scan_server;
mod serve;
mod settings;
mod signals;
mod store;
mod tls;
mod trail;
mod transparent;

use std::io::{self, Write};
use std::process::ExitCode;

use args::{Cli, Command, Exit};
use clap::CommandFactory as _;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Exit::Clap(error)) => {
            // To standard output for --help and --version, to standard error for the rest.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(Exit::Missing(line)) => return fail(&line),
    };
    match dispatch(cli) {
        Ok(code) => code,
        // Whoever reads our output has seen enough.
        Err(error) if files::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<tollgate_rules::RuleError>() {
            // It may point at a column, in lines of its own.
            Some(rule) => {
                let _ = writeln!(io::stderr(), "error: {rule}");
                ExitCode::FAILURE
            }
            None => fail(&format!("{error:#}")),
        },
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => serve::serve(&cli.proxy),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Mcp(args)) => mcp::mcp(&args),
        Some(Command::Ca(command)) => authority::ca(&command),
        Some(Command::Trust(command)) => authority::trust(&command),
        Some(Command::Transparent(command)) => transparent::transparent(&command),
        Some(Command::Convert(args)) => files::convert(&args),
        Some(Command::Export(args)) => files::export(&args),
        Some(Command::Filter(args)) => files::filter(&args),
        Some(Command::Flows(args)) => flows::flows(&args),
        Some(Command::Held(args)) => held::held(&args),
        Some(Command::Audit(command)) => audit::audit(&command),
        Some(Command::Rules(command)) => rules::rules(&command),
        Some(Command::Scan(args)) => Ok(scan::scan(&args)),
        Some(Command::ScanServer(args)) => scan_server::scan_server(&args),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tollgate", &mut script);
            io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One line on standard error, whatever the cause had to say.
fn fail(message: &str) -> ExitCode {
    let line = message.lines().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr(), "error: {line}");
    ExitCode::FAILURE
}
