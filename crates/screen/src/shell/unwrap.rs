//! What a command does through another: wrappers, interpreters, pipes into a shell, known output.

use super::parse::{Reader, ansi_c, with};
use super::{Command, MAX_ARGV, MAX_NESTING, MAX_SCRIPT, Redirect, RedirectKind};
use crate::scan::encoding;

/// At most this many files that a script writes are remembered.
const MAX_FILES: usize = 64;
/// At most this many calls of a kind are followed in code.
const MAX_CALLS: usize = 64;

/// Folders whose programs are called by name alone.
const SYSTEM_FOLDERS: [&str; 8] = [
    "/bin/",
    "/sbin/",
    "/usr/bin/",
    "/usr/sbin/",
    "/usr/local/bin/",
    "/usr/local/sbin/",
    "/opt/homebrew/bin/",
    "/system/bin/",
];

/// Shells: what they read or get with `-c` is a script.
pub(super) fn shell(name: &str) -> bool {
    matches!(
        name,
        "sh" | "bash"
            | "zsh"
            | "dash"
            | "ksh"
            | "ash"
            | "fish"
            | "rbash"
            | "mksh"
            | "csh"
            | "tcsh"
            | "pwsh"
    )
}

/// How a program runs others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// It doesn't, as far as is known.
    None,
    Shell,
    /// As another user.
    User,
    Env,
    /// A wrapper whose options take no arguments.
    Plain,
    /// A wrapper whose options do.
    Valued,
    /// A wrapper with a word of its own before the command.
    Second,
    Xargs,
    Find,
    Eval,
    Trap,
    Alias,
    /// In a terminal of its own, or later.
    Session,
    Ssh,
    Sshpass,
    Container,
    AppleScript,
    Source,
    Interpreter,
    /// A program called by its path: it may be a file that the script has written.
    Program,
}

impl Inner {
    /// What the program with this name does.
    fn of(name: &str, program: &str) -> Self {
        match name {
            name if shell(name) => Self::Shell,
            "sudo" | "doas" | "pkexec" | "su" | "runuser" | "sudoedit" => Self::User,
            "env" => Self::Env,
            "nohup" | "setsid" | "command" | "builtin" | "exec" | "busybox" | "toybox"
            | "catchsegv" | "eatmydata" | "unbuffer" | "proxychains" | "proxychains4"
            | "torsocks" | "firejail" | "caffeinate" | "fakeroot" | "time" | "coproc" => {
                Self::Plain
            }
            "nice" | "ionice" | "chrt" | "taskset" | "stdbuf" | "strace" | "ltrace" | "unshare"
            | "nsenter" | "systemd-run" | "systemd-inhibit" | "watch" | "cgexec" | "numactl"
            | "prlimit" => Self::Valued,
            "timeout" | "chroot" | "flock" => Self::Second,
            "xargs" | "parallel" => Self::Xargs,
            "find" | "fd" | "fdfind" | "gfind" => Self::Find,
            "eval" => Self::Eval,
            "trap" => Self::Trap,
            "alias" => Self::Alias,
            "script" | "screen" | "tmux" | "at" | "batch" => Self::Session,
            "ssh" => Self::Ssh,
            "sshpass" => Self::Sshpass,
            "docker" | "podman" | "nerdctl" | "kubectl" | "oc" | "lxc" | "crictl" => {
                Self::Container
            }
            "osascript" => Self::AppleScript,
            "source" | "." => Self::Source,
            "perl" | "ruby" | "node" | "php" | "lua" | "awk" | "gawk" | "mawk" => Self::Interpreter,
            name if name.starts_with("python") => Self::Interpreter,
            _ if program.contains('/') => Self::Program,
            _ => Self::None,
        }
    }
}

impl Reader {
    /// A command is complete: finds out what it is and what runs through it.
    pub(super) fn settle(&mut self, at: usize, depth: usize) {
        let Some(command) = self.commands.get_mut(at) else {
            return;
        };
        if let Some(program) = command.argv.first_mut() {
            for folder in SYSTEM_FOLDERS {
                if let Some(name) = program.strip_prefix(folder)
                    && !name.contains('/')
                    && !name.is_empty()
                {
                    *program = name.to_owned();
                    break;
                }
            }
            // On file systems that don't care about case, `Rm` is `rm`.
            if program
                .chars()
                .next()
                .is_some_and(|c| c.is_ascii_uppercase())
                && program.chars().all(|c| c.is_ascii_alphabetic())
                && program.len() <= 6
            {
                *program = program.to_ascii_lowercase();
            }
        }
        let text = command
            .redirects
            .iter()
            .rev()
            .find(|redirect| redirect.kind == RedirectKind::Text)
            .map(|redirect| redirect.target.clone());
        let from = command.reads_from;
        let input = text
            .or_else(|| from.and_then(|from| self.output(from, 0)))
            .filter(|input| self.spend(input.len()));
        let Some(command) = self.commands.get_mut(at) else {
            return;
        };
        command.input = input;
        let program = command.argv.first().map_or("", String::as_str);
        let inner = Inner::of(command.name(), program);
        if command.argv.is_empty() {
            self.variables.extend(command.assignments.iter().cloned());
        }
        self.remember_file(at);
        if depth >= MAX_NESTING {
            self.truncated = true;
            return;
        }
        // Most commands are only themselves, and needn't be copied.
        if inner == Inner::None || inner == Inner::Program && self.files.is_empty() {
            return;
        }
        if let Some(command) = self.commands.get(at).cloned() {
            self.inside(inner, &command, at, depth);
        }
    }

    /// Files whose contents are known.
    fn remember_file(&mut self, at: usize) {
        let Some(command) = self.commands.get(at) else {
            return;
        };
        let tee = command.name() == "tee";
        let writes = |redirect: &Redirect| {
            matches!(redirect.kind, RedirectKind::Write | RedirectKind::Append)
        };
        if !tee && !command.redirects.iter().any(writes) {
            return;
        }
        let text = if tee {
            command.input.clone()
        } else {
            output_of(command)
        };
        let Some(text) = text else {
            return;
        };
        let mut files: Vec<(String, bool)> = command
            .redirects
            .iter()
            .filter(|redirect| writes(redirect))
            .map(|redirect| {
                (
                    redirect.target.clone(),
                    redirect.kind == RedirectKind::Append,
                )
            })
            .collect();
        if tee {
            let append = command.args().iter().any(|arg| arg == "-a");
            files.extend(
                command
                    .args()
                    .iter()
                    .filter(|arg| !arg.starts_with('-'))
                    .map(|arg| (arg.clone(), append)),
            );
        }
        for (file, append) in files {
            if self.files.len() > MAX_FILES || !self.spend(text.len()) {
                self.truncated = true;
                return;
            }
            let known = self.files.entry(file).or_default();
            if !append {
                known.clear();
            }
            if known.len() < MAX_SCRIPT {
                known.push_str(&text);
            } else {
                self.truncated = true;
            }
        }
    }

    /// What runs inside a command.
    fn inside(&mut self, inner: Inner, command: &Command, at: usize, depth: usize) {
        let name = command.name();
        let args = command.args();
        let elevated = command.elevated;
        match inner {
            Inner::None => {}
            Inner::Shell => self.shell(command, name, depth),
            Inner::User => {
                if matches!(name, "su" | "runuser")
                    && let Some(script) = option(args, &["-c", "--command"])
                {
                    self.script_as(&script, &with(&command.through, "su"), depth + 1, true);
                    return;
                }
                if name == "sudo"
                    && args
                        .iter()
                        .take_while(|arg| arg.starts_with('-'))
                        .any(|arg| arg == "-s" || arg == "-i")
                    && args.iter().all(|arg| arg.starts_with('-'))
                {
                    return;
                }
                let rest = skip_options(
                    args,
                    &[
                        "-u", "-g", "-h", "-p", "-C", "-r", "-t", "-U", "-D", "-R", "-T", "--user",
                        "--group",
                    ],
                );
                let rest = skip_assignments(rest);
                if name != "su" {
                    self.again(command, at, rest, "sudo", depth, true);
                }
            }
            Inner::Env => {
                let rest = skip_options(args, &["-u", "-C", "-S", "--unset", "--chdir"]);
                if let Some(script) = option(args, &["-S", "--split-string"]) {
                    self.script_as(&script, &with(&command.through, "env"), depth + 1, elevated);
                    return;
                }
                self.again(command, at, skip_assignments(rest), "env", depth, elevated);
            }
            Inner::Plain => {
                let rest = skip_options(args, &["-a", "-f", "-n"]);
                self.again(command, at, rest, "wrapper", depth, elevated);
            }
            Inner::Valued => {
                let rest = skip_options(
                    args,
                    &[
                        "-n",
                        "-c",
                        "-p",
                        "-i",
                        "-o",
                        "-e",
                        "-t",
                        "-u",
                        "-E",
                        "-s",
                        "-P",
                        "--interval",
                        "--adjustment",
                        "--target",
                        "--on-calendar",
                    ],
                );
                self.again(command, at, rest, "wrapper", depth, elevated);
                if name == "watch" {
                    let script = rest.join(" ");
                    self.script_as(
                        &script,
                        &with(&command.through, "watch"),
                        depth + 1,
                        elevated,
                    );
                }
            }
            Inner::Second => {
                let rest = skip_options(
                    args,
                    &["-k", "-s", "--signal", "--kill-after", "--userspec", "-w"],
                );
                let rest = rest.get(1..).unwrap_or_default();
                if let Some(script) = option(rest, &["-c"]) {
                    self.script_as(
                        &script,
                        &with(&command.through, "wrapper"),
                        depth + 1,
                        elevated,
                    );
                    return;
                }
                self.again(command, at, rest, "wrapper", depth, elevated);
            }
            Inner::Xargs => {
                let rest = skip_options(
                    args,
                    &[
                        "-n",
                        "-P",
                        "-I",
                        "-L",
                        "-d",
                        "-s",
                        "-a",
                        "-E",
                        "-j",
                        "-i",
                        "--max-args",
                        "--max-procs",
                        "--delimiter",
                    ],
                );
                let mut inner: Vec<String> = rest.to_vec();
                // What comes through the pipe becomes arguments, if it is known.
                if let Some(input) = &command.input
                    && !inner.iter().any(|arg| arg.contains("{}"))
                {
                    let room = MAX_ARGV.saturating_sub(inner.len());
                    let mut words = input.split_whitespace();
                    inner.extend(words.by_ref().take(room).map(str::to_owned));
                    self.truncated |= words.next().is_some();
                }
                self.again(command, at, &inner, "xargs", depth, elevated);
            }
            Inner::Find => {
                let mut rest = args;
                while let Some(start) = rest.iter().position(|arg| {
                    matches!(
                        arg.as_str(),
                        "-exec" | "-execdir" | "-ok" | "-okdir" | "-x" | "-X" | "--exec"
                    )
                }) {
                    let tail = rest.get(start + 1..).unwrap_or_default();
                    let end = tail
                        .iter()
                        .position(|arg| arg == ";" || arg == "+")
                        .unwrap_or(tail.len());
                    self.again(
                        command,
                        at,
                        tail.get(..end).unwrap_or_default(),
                        "find",
                        depth,
                        elevated,
                    );
                    rest = tail.get(end..).unwrap_or_default();
                }
            }
            Inner::Eval => {
                let script = args.join(" ");
                self.script_as(
                    &script,
                    &with(&command.through, "eval"),
                    depth + 1,
                    elevated,
                );
            }
            Inner::Trap => {
                if let Some(script) = args.first() {
                    self.script_as(script, &with(&command.through, "trap"), depth + 1, elevated);
                }
            }
            Inner::Alias => {
                for arg in args {
                    if let Some((_, script)) = arg.split_once('=') {
                        self.script_as(
                            script,
                            &with(&command.through, "alias"),
                            depth + 1,
                            elevated,
                        );
                    }
                }
            }
            Inner::Session => {
                if let Some(script) = option(args, &["-c"]) {
                    self.script_as(
                        &script,
                        &with(&command.through, "wrapper"),
                        depth + 1,
                        elevated,
                    );
                } else if matches!(name, "at" | "batch") {
                    if let Some(script) = &command.input {
                        self.script_as(script, &with(&command.through, "at"), depth + 1, elevated);
                    }
                } else if matches!(name, "screen" | "tmux")
                    && let Some(script) = args.iter().rev().find(|arg| arg.contains(' '))
                {
                    self.script_as(
                        script,
                        &with(&command.through, "wrapper"),
                        depth + 1,
                        elevated,
                    );
                }
            }
            Inner::Ssh => {
                let rest = skip_options(
                    args,
                    &[
                        "-p", "-i", "-l", "-o", "-F", "-L", "-R", "-D", "-J", "-b", "-c", "-E",
                        "-W", "-w", "-m", "-S", "-e",
                    ],
                );
                let script = rest.get(1..).unwrap_or_default().join(" ");
                if !script.is_empty() {
                    self.script_as(&script, &with(&command.through, "ssh"), depth + 1, elevated);
                }
            }
            Inner::Sshpass => {
                let rest = skip_options(args, &["-p", "-f", "-d", "-P"]);
                self.again(command, at, rest, "wrapper", depth, elevated);
            }
            Inner::Container => self.container(command, at, depth),
            Inner::AppleScript => {
                for code in args.iter().filter(|arg| arg.contains("do shell script")) {
                    for part in code.split("do shell script").skip(1) {
                        if let Some(script) = apple_string(part) {
                            self.script_as(
                                &script,
                                &with(&command.through, "osascript"),
                                depth + 1,
                                elevated,
                            );
                        }
                    }
                }
            }
            Inner::Source => {
                if let Some(file) = args.first() {
                    self.file(file, command, depth);
                }
            }
            Inner::Interpreter => self.interpreter(command, depth),
            Inner::Program => {
                if let Some(program) = command.argv.first() {
                    self.file(program, command, depth);
                }
            }
        }
    }

    fn shell(&mut self, command: &Command, name: &str, depth: usize) {
        let args = command.args();
        let how = if name == "pwsh" { "pwsh" } else { "sh -c" };
        for (at, arg) in args.iter().enumerate() {
            if arg.starts_with('-') && !arg.starts_with("--") && arg.contains('c')
                || arg == "--command"
            {
                if let Some(script) = args.get(at + 1) {
                    self.script_as(
                        script,
                        &with(&command.through, how),
                        depth + 1,
                        command.elevated,
                    );
                }
                return;
            }
            if !arg.starts_with('-') && !arg.starts_with('+') {
                self.file(arg, command, depth);
                return;
            }
        }
        if let Some(script) = &command.input {
            let how = if command.reads_from.is_some() {
                "pipe into sh"
            } else {
                "heredoc"
            };
            self.script_as(
                script,
                &with(&command.through, how),
                depth + 1,
                command.elevated,
            );
        }
    }

    fn file(&mut self, file: &str, command: &Command, depth: usize) {
        let plain = file.strip_prefix("./").unwrap_or(file);
        let known = self
            .files
            .get(file)
            .or_else(|| self.files.get(plain))
            .or_else(|| {
                self.files
                    .iter()
                    .find(|(path, _)| path.ends_with(&format!("/{plain}")))
                    .map(|(_, text)| text)
            })
            .cloned();
        if let Some(script) = known {
            self.files.remove(file);
            self.files.remove(plain);
            self.script_as(
                &script,
                &with(&command.through, "written file"),
                depth + 1,
                command.elevated,
            );
        }
    }

    fn container(&mut self, command: &Command, at: usize, depth: usize) {
        let args = command.args();
        let Some(verb) = args
            .iter()
            .position(|arg| matches!(arg.as_str(), "exec" | "run" | "debug"))
        else {
            return;
        };
        let rest = args.get(verb + 1..).unwrap_or_default();
        let inner = match rest.iter().position(|arg| arg == "--") {
            Some(dashes) => rest.get(dashes + 1..),
            None => skip_options(
                rest,
                &[
                    "-u",
                    "-e",
                    "-w",
                    "-v",
                    "-p",
                    "--name",
                    "--user",
                    "--env",
                    "--workdir",
                    "-n",
                    "-c",
                    "--network",
                    "--entrypoint",
                    "--mount",
                    "--namespace",
                    "--pid",
                    "--device",
                    "-h",
                    "-l",
                    "-m",
                ],
            )
            .get(1..),
        };
        self.again(
            command,
            at,
            inner.unwrap_or_default(),
            "container",
            depth,
            command.elevated,
        );
    }

    /// `system("…")` and the like in code on the command line.
    fn interpreter(&mut self, command: &Command, depth: usize) {
        let args = command.args();
        let mut code = args
            .iter()
            .position(|arg| {
                matches!(
                    arg.as_str(),
                    "-c" | "-e" | "-r" | "-E" | "--eval" | "-ne" | "-pe"
                )
            })
            .and_then(|at| args.get(at + 1))
            .cloned();
        if code.is_none() && command.name().ends_with("awk") {
            code = args.iter().find(|arg| arg.contains('{')).cloned();
        }
        let code = code.or_else(|| {
            if args.iter().all(|arg| arg == "-") {
                command.input.clone()
            } else {
                None
            }
        });
        let Some(code) = code else {
            return;
        };
        for call in [
            "system(",
            "popen(",
            "exec(",
            "call(",
            "run(",
            "Popen(",
            "check_output(",
            "spawn(",
            "execSync(",
            "shell_exec(",
            "passthru(",
        ] {
            let mut rest = code.as_str();
            let mut found = 0;
            while let Some((_, tail)) = rest.split_once(call) {
                if found == MAX_CALLS {
                    self.truncated = true;
                    break;
                }
                found += 1;
                rest = tail;
                if let Some(script) = code_string(tail) {
                    self.script_as(
                        &script,
                        &with(&command.through, "interpreter"),
                        depth + 1,
                        command.elevated,
                    );
                }
            }
        }
    }

    /// The rest of a wrapper's arguments as a command of its own.
    fn again(
        &mut self,
        outer: &Command,
        at: usize,
        argv: &[String],
        how: &'static str,
        depth: usize,
        elevated: bool,
    ) {
        if argv.is_empty() {
            return;
        }
        let words = argv.iter().map(String::len);
        let targets = outer.redirects.iter().map(|redirect| redirect.target.len());
        let values = outer.assignments.iter().map(|(_, value)| value.len());
        let copied = words.chain(targets).chain(values).sum();
        if self.commands.len() >= super::MAX_COMMANDS || depth >= MAX_NESTING || !self.spend(copied)
        {
            self.truncated = true;
            return;
        }
        let mut inner = Command {
            argv: argv.to_vec(),
            assignments: outer.assignments.clone(),
            redirects: outer.redirects.clone(),
            reads_from: outer.reads_from,
            input: None,
            indirect: false,
            elevated,
            through: with(&outer.through, how),
        };
        if inner.reads_from == Some(at) {
            inner.reads_from = None;
        }
        self.commands.push(inner);
        self.settle(self.commands.len() - 1, depth + 1);
    }

    /// What a command prints, if that can be known.
    pub(super) fn output(&self, at: usize, depth: usize) -> Option<String> {
        if depth > 8 {
            return None;
        }
        let command = self.commands.get(at)?;
        let input = || {
            command.input.clone().or_else(|| {
                command
                    .reads_from
                    .and_then(|from| self.output(from, depth + 1))
            })
        };
        let args = command.args();
        let flag = |names: &[&str]| args.iter().any(|arg| names.contains(&arg.as_str()));
        match command.name() {
            "base64" | "gbase64" | "openssl" | "b64decode" => {
                let decodes =
                    flag(&["-d", "-D", "--decode", "-di", "-r"]) || command.name() == "b64decode";
                let decoded = encoding::base64(input()?.trim().as_bytes());
                decodes.then_some(())?;
                String::from_utf8(decoded?).ok()
            }
            "base32" => {
                flag(&["-d", "--decode"]).then_some(())?;
                String::from_utf8(encoding::base32(input()?.trim().as_bytes())?).ok()
            }
            "xxd" => {
                let reverse = args.iter().any(|arg| arg.starts_with("-r") || arg == "-p");
                reverse.then_some(())?;
                let digits: String = input()?.chars().filter(char::is_ascii_hexdigit).collect();
                String::from_utf8(encoding::hex(digits.as_bytes())?).ok()
            }
            "rev" => Some(
                input()?
                    .lines()
                    .map(|line| line.chars().rev().collect::<String>())
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
            "tr" => {
                let [from, to] = args else { return None };
                let (from, to) = (letters(from), letters(to));
                Some(
                    input()?
                        .chars()
                        .map(|c| match from.iter().position(|&known| known == c) {
                            Some(at) => to.get(at).or(to.last()).copied().unwrap_or(c),
                            None => c,
                        })
                        .collect(),
                )
            }
            "which" | "basename" => args
                .iter()
                .find(|arg| !arg.starts_with('-'))
                .map(|arg| arg.rsplit('/').next().unwrap_or(arg).to_owned()),
            "cat" | "tee" | "head" | "tail" if args.iter().all(|arg| arg.starts_with('-')) => {
                input()
            }
            _ => output_of(command),
        }
    }
}

/// What `echo`, `printf` and `cat <<EOF` print.
fn output_of(command: &Command) -> Option<String> {
    let args = command.args();
    if command.argv.iter().any(|arg| arg.starts_with("$(")) && command.name() != "echo" {
        return None;
    }
    match command.name() {
        "echo" => {
            let mut escapes = false;
            let mut newline = true;
            let mut from = 0;
            for arg in args {
                match arg.as_str() {
                    "-e" => escapes = true,
                    "-n" => newline = false,
                    "-ne" | "-en" => {
                        escapes = true;
                        newline = false;
                    }
                    "-E" => {}
                    _ => break,
                }
                from += 1;
            }
            let text = args.get(from..).unwrap_or_default().join(" ");
            let mut text = if escapes { ansi_c(&text) } else { text };
            if newline {
                text.push('\n');
            }
            Some(text)
        }
        "printf" => {
            let (format, values) = args.split_first()?;
            let text = ansi_c(format);
            if values.is_empty() {
                return Some(text);
            }
            let mut rest = values.iter();
            let mut out = String::new();
            // The format is used again until no value is left.
            for _ in 0..values.len() {
                let before = rest.len();
                let mut format = text.as_str();
                while let Some(at) = format.find('%') {
                    let (plain, conversion) = format.split_at_checked(at).unwrap_or((format, ""));
                    out.push_str(plain);
                    let taken = match conversion.as_bytes().get(1) {
                        Some(b's' | b'b' | b'd') => {
                            out.push_str(rest.next().map_or("", String::as_str));
                            2
                        }
                        _ => {
                            out.push('%');
                            1
                        }
                    };
                    format = conversion.get(taken..).unwrap_or_default();
                    if out.len() > MAX_SCRIPT {
                        return Some(out);
                    }
                }
                out.push_str(format);
                if rest.len() == 0 || rest.len() == before || out.len() > MAX_SCRIPT {
                    break;
                }
            }
            Some(out)
        }
        "cat" if args.iter().all(|arg| arg.starts_with('-')) => {
            command.input.clone().or_else(|| {
                command
                    .redirects
                    .iter()
                    .find(|redirect| redirect.kind == RedirectKind::Text)
                    .map(|redirect| redirect.target.clone())
            })
        }
        _ => None,
    }
}

/// The sets of `tr`.
fn letters(set: &str) -> Vec<char> {
    let chars: Vec<char> = set.chars().filter(|c| !matches!(c, '[' | ']')).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        if chars.get(at + 1) == Some(&'-')
            && let Some(&end) = chars.get(at + 2)
            && c <= end
        {
            out.extend((c..=end).take(256));
            at += 3;
        } else {
            out.push(c);
            at += 1;
        }
    }
    out
}

fn option(args: &[String], names: &[&str]) -> Option<String> {
    let at = args.iter().position(|arg| names.contains(&arg.as_str()))?;
    args.get(at + 1).cloned()
}

/// Past a wrapper's options; those in `valued` take an argument.
fn skip_options<'a>(args: &'a [String], valued: &[&str]) -> &'a [String] {
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        if arg == "--" {
            at += 1;
            break;
        }
        if !arg.starts_with('-') || arg == "-" {
            break;
        }
        at += if valued.contains(&arg.as_str()) { 2 } else { 1 };
    }
    args.get(at..).unwrap_or_default()
}

fn skip_assignments(args: &[String]) -> &[String] {
    let count = args
        .iter()
        .take_while(|arg| {
            arg.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            })
        })
        .count();
    args.get(count..).unwrap_or_default()
}

/// The string literal that an AppleScript expression starts with.
fn apple_string(text: &str) -> Option<String> {
    code_string(text.trim_start())
}

/// The string literals that a call's arguments start with: `"rm -rf"`, `['rm', '-rf']`.
fn code_string(text: &str) -> Option<String> {
    let mut words = Vec::new();
    let mut chars = text.chars();
    let mut listed = false;
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' | '`' => {
                let mut word = String::new();
                while let Some(inner) = chars.next() {
                    match inner {
                        '\\' => word.extend(chars.next()),
                        inner if inner == c => break,
                        inner => word.push(inner),
                    }
                }
                words.push(word);
                if !listed {
                    break;
                }
            }
            '[' | '(' => listed = true,
            ',' | ' ' | 'f' | 'r' | 'b' if words.is_empty() || listed => {}
            _ => break,
        }
    }
    (!words.is_empty()).then(|| words.join(" "))
}
