//! A network of the test's own: three hosts in a row.

use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::LIMIT;
use crate::process::{Process, command};

/// Network namespaces for a client, a gateway and an origin, where the client reaches the origin through the gateway only.
/// They are taken down when this is dropped.
///
/// Needs `ip`, `nft` and `root`, see [`require!`](crate::require).
///
/// | | IPv4 | IPv6 |
/// |---|---|---|
/// | client | 10.9.1.1 | fd09:1::1 |
/// | gateway | 10.9.1.2, 10.9.2.2 | fd09:1::2, fd09:2::2 |
/// | origin | 10.9.2.1 | fd09:2::1 |
pub struct Net {
    prefix: String,
}

/// A host in a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where clients run.
    Client,
    /// What lies between.
    Gate,
    /// Where servers run.
    Origin,
}

impl End {
    const ALL: [Self; 3] = [Self::Client, Self::Gate, Self::Origin];
}

impl Net {
    /// The origin's address of IPv4.
    pub const ORIGIN: &'static str = "10.9.2.1";

    /// The origin's address of IPv6.
    pub const ORIGIN_6: &'static str = "fd09:2::1";

    /// Sets it up.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            prefix: format!("tollgate-{}-{number}", process::id()),
        };
        for end in End::ALL {
            ip(&format!("netns add {}", net.name(end)));
            ip(&format!("-n {} link set lo up", net.name(end)));
        }
        for (end, number) in [(End::Client, 1), (End::Origin, 2)] {
            let (here, gate) = (net.name(end), net.name(End::Gate));
            ip(&format!(
                "link add uplink netns {here} type veth peer name to{number} netns {gate}"
            ));
            let to_gate = format!("to{number}");
            // Without a search for others with the same address, which takes a second.
            for (name, link, host) in [(&here, "uplink", 1), (&gate, to_gate.as_str(), 2)] {
                ip(&format!(
                    "-n {name} addr add 10.9.{number}.{host}/24 dev {link}"
                ));
                ip(&format!(
                    "-n {name} addr add fd09:{number}::{host}/64 dev {link} nodad"
                ));
                ip(&format!("-n {name} link set {link} up"));
            }
            ip(&format!("-n {here} route add default via 10.9.{number}.2"));
            ip(&format!(
                "-n {here} -6 route add default via fd09:{number}::2"
            ));
        }
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            let mut sysctl = net.command(End::Gate, "sysctl");
            sysctl.args(["-q", "-w", &format!("{key}=1")]);
            Process::run(sysctl, LIMIT).success();
        }
        net
    }

    /// A command that runs at one of its ends, as [`command`] makes it.
    pub fn command(&self, end: End, program: &str) -> Command {
        let mut ip = command("ip");
        ip.args(["netns", "exec", &self.name(end)])
            .arg(command(program).get_program());
        ip
    }

    fn name(&self, end: End) -> String {
        format!("{}-{end:?}", self.prefix).to_lowercase()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for end in End::ALL {
            let mut ip = command("ip");
            ip.args(["netns", "del", &self.name(end)]);
            // One that could not be made isn't there.
            let _ = Process::run(ip, LIMIT);
        }
    }
}

fn ip(line: &str) {
    let mut ip = command("ip");
    ip.args(line.split(' '));
    Process::run(ip, LIMIT).success();
}
