//! Rules for the kernel: which connections it hands to mode transparent (nftables, Linux).

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

use crate::args::{TransparentArgs, TransparentCommand, TransparentMethod};

/// The mark of connections that TPROXY hands over, and the routing table that keeps them here.
const MARK: &str = "0x746f6c6c";
const TABLE: &str = "29807";

/// Runs `tollgate transparent`.
///
/// # Errors
/// nft or ip aren't there, or refuse.
pub fn transparent(command: &TransparentCommand) -> anyhow::Result<ExitCode> {
    match command {
        TransparentCommand::Rules(args) => {
            let mut out = rules(args);
            for command in routes(args.method, "add") {
                let _ = writeln!(out, "# also: {}", command.join(" "));
            }
            io::stdout().write_all(out.as_bytes())?;
        }
        TransparentCommand::Apply(args) => {
            // What an earlier call left must not stay half in force.
            remove()?;
            nft(&rules(args))?;
            for command in routes(args.method, "add") {
                run(&command)?;
            }
        }
        TransparentCommand::Remove => remove()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The rules, as a script for nft. One table holds them all; they come and go in one transaction.
fn rules(args: &TransparentArgs) -> String {
    let ports: Vec<String> = args.ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    let port = args.port;
    let mut out = String::from("table inet tollgate {\n");
    match args.method {
        TransparentMethod::Redirect => {
            let _ = write!(
                out,
                "\tchain prerouting {{\n\
                 \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                 \t\tfib daddr type local return\n\
                 \t\ttcp dport {{ {ports} }} redirect to :{port}\n\
                 \t}}\n"
            );
        }
        TransparentMethod::Tproxy => {
            let _ = write!(
                out,
                "\tchain prerouting {{\n\
                 \t\ttype filter hook prerouting priority mangle; policy accept;\n\
                 \t\tfib daddr type local return\n\
                 \t\tmeta l4proto tcp socket transparent 1 meta mark set {MARK} accept\n\
                 \t\ttcp dport {{ {ports} }} tproxy to :{port} meta mark set {MARK} accept\n\
                 \t}}\n"
            );
        }
    }
    // Refused at once, so that clients of HTTP/3 use TCP.
    out.push_str(
        "\tchain forward {\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tudp dport 443 reject\n\
         \t}\n",
    );
    if let Some(user) = &args.local_except_user {
        let user: String = user
            .chars()
            .filter(|c| !c.is_control() && *c != '"')
            .collect();
        let _ = write!(
            out,
            "\tchain output {{\n\
             \t\ttype nat hook output priority dstnat; policy accept;\n\
             \t\tmeta skuid \"{user}\" return\n\
             \t\tfib daddr type local return\n\
             \t\ttcp dport {{ {ports} }} redirect to :{port}\n\
             \t}}\n\
             \tchain output_udp {{\n\
             \t\ttype filter hook output priority filter; policy accept;\n\
             \t\tmeta skuid \"{user}\" return\n\
             \t\tudp dport 443 reject\n\
             \t}}\n"
        );
    }
    out.push_str("}\n");
    out
}

/// What TPROXY needs beside the rules: packets with its mark stay on this machine.
fn routes(method: TransparentMethod, action: &str) -> Vec<Vec<String>> {
    if method == TransparentMethod::Redirect {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for family in ["-4", "-6"] {
        let words = [
            format!("ip {family} rule {action} fwmark {MARK} lookup {TABLE}"),
            format!("ip {family} route {action} local default dev lo table {TABLE}"),
        ];
        commands.extend(words.map(|line| line.split(' ').map(str::to_owned).collect()));
    }
    commands
}

fn remove() -> anyhow::Result<()> {
    // Made first if it isn't there, so that there is something to delete in any case.
    nft("table inet tollgate {}\ndelete table inet tollgate\n")?;
    for command in routes(TransparentMethod::Tproxy, "del") {
        // They are there after `--method tproxy` only.
        let _ = output(&command);
    }
    Ok(())
}

fn nft(script: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run nft (package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).context("nft")?;
    }
    let done = child.wait_with_output().context("nft")?;
    if !done.status.success() {
        bail!(
            "nft refuses: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}

fn run(command: &[String]) -> anyhow::Result<()> {
    let done = output(command)?;
    if !done.status.success() {
        bail!(
            "`{}` fails: {}",
            command.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}

fn output(command: &[String]) -> anyhow::Result<std::process::Output> {
    let (program, arguments) = command.split_first().context("no command")?;
    Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("can't run {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(method: TransparentMethod) -> TransparentArgs {
        TransparentArgs {
            port: 8081,
            ports: vec![80, 443],
            method,
            local_except_user: Some("proxy\"user".to_owned()),
        }
    }

    #[test]
    fn rules_hand_over_and_refuse_quic() {
        let redirect = rules(&args(TransparentMethod::Redirect));
        assert!(redirect.contains("tcp dport { 80, 443 } redirect to :8081"));
        assert!(redirect.contains("udp dport 443 reject"));
        assert!(redirect.contains("meta skuid \"proxyuser\" return"));
        let tproxy = rules(&args(TransparentMethod::Tproxy));
        assert!(tproxy.contains("tproxy to :8081"));
        assert_eq!(routes(TransparentMethod::Redirect, "add").len(), 0);
        assert_eq!(
            routes(TransparentMethod::Tproxy, "add")[0].join(" "),
            format!("ip -4 rule add fwmark {MARK} lookup {TABLE}")
        );
    }
}
