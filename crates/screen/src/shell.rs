//! Shell commands in a canonical form: what would run, with quoting, expansions and wrappers undone.
//!
//! [`Script::parse`] reads POSIX shell with bash's extensions and answers with a flat list of simple
//! commands: every command of every list, pipeline, branch, function, substitution, heredoc and
//! `sh -c` in it. It never refuses: what it can't read it skips, because a screener that gives up on
//! bad syntax is one that bad syntax gets past. Nothing is ever run.
//!
//! ```
//! use tollgate_screen::shell::Script;
//!
//! let script = Script::parse("x=r; sudo ${x}m -r\\f '/srv/da'ta && echo ZGF0ZQ== | base64 -d | sh");
//! let commands: Vec<String> = script.commands.iter().map(|c| c.argv.join(" ")).collect();
//! assert!(commands.contains(&"rm -rf /srv/data".to_owned()));
//! assert!(commands.contains(&"date".to_owned()));
//! ```

mod parse;
mod unwrap;
mod word;

/// At most this many bytes of a script are read.
pub const MAX_SCRIPT: usize = 64 << 10;
/// At most this many simple commands come out of a script.
pub const MAX_COMMANDS: usize = 512;
/// At most this many words are in a simple command.
pub const MAX_ARGV: usize = 512;
/// How deep substitutions, subshells and `sh -c` are followed.
pub const MAX_NESTING: usize = 12;

/// What a script would run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// Simple commands in reading order; an inner one comes before the one that contains it.
    pub commands: Vec<Command>,
    /// A limit was hit, and something was left out.
    pub truncated: bool,
}

/// One simple command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments, expanded as far as can be known without running anything. A
    /// variable that isn't known stays as `$NAME`, a substitution as `$(…)`. The program's folder is
    /// cut off if it is one of the system's; the first word is never empty unless there is none.
    pub argv: Vec<String>,
    /// Variables set for this command, or by it.
    pub assignments: Vec<(String, String)>,
    /// Its redirections.
    pub redirects: Vec<Redirect>,
    /// The command whose output it reads through a pipe, as an index of [`Script::commands`].
    pub reads_from: Option<usize>,
    /// What it reads on standard input, if that is known.
    pub input: Option<String>,
    /// The program's name came out of a variable or a substitution.
    pub indirect: bool,
    /// It runs as another user (sudo, doas, su).
    pub elevated: bool,
    /// What had to be undone to see it: `sh -c`, `eval`, `base64`, `xargs`, `find` …
    pub through: Vec<&'static str>,
}

/// One redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// What it does.
    pub kind: RedirectKind,
    /// The file, or the text of a here-string or heredoc.
    pub target: String,
}

/// The kinds of redirections that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectKind {
    /// `<`
    Read,
    /// `>`, `>|`, `&>`
    Write,
    /// `>>`, `&>>`
    Append,
    /// `<<`, `<<<`
    Text,
    /// `<>`
    ReadWrite,
    /// `>&1`, `2>&1` and other copies
    Duplicate,
}

impl Command {
    /// The program's name, without its folder.
    #[must_use]
    pub fn name(&self) -> &str {
        let program = self.argv.first().map_or("", String::as_str);
        match program.bytes().rposition(|byte| byte == b'/') {
            Some(slash) => program.get(slash + 1..).unwrap_or_default(),
            None => program,
        }
    }

    /// The arguments.
    #[must_use]
    pub fn args(&self) -> &[String] {
        self.argv.get(1..).unwrap_or_default()
    }
}

impl Script {
    /// Reads a script. Never fails; see the limits of this module.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut reader = parse::Reader::default();
        reader.script(text, &[], 0);
        reader.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argvs(text: &str) -> Vec<String> {
        Script::parse(text)
            .commands
            .iter()
            .map(|c| c.argv.join(" "))
            .filter(|line| !line.is_empty())
            .collect()
    }

    fn has(text: &str, wanted: &str) {
        let all = argvs(text);
        assert!(all.iter().any(|one| one == wanted), "{text:?} gave {all:?}");
    }

    #[test]
    fn quoting_is_undone() {
        has(r"r\m -r''f /tmp/x", "rm -rf /tmp/x");
        has(r#"'r'"m" -rf "/tmp/a b""#, "rm -rf /tmp/a b");
        has(r"$'\162\155' -rf /x", "rm -rf /x");
        has(r"$'\x72\x6d' -rf /x", "rm -rf /x");
        has("/bin/r\\\nm -rf /x", "rm -rf /x");
    }

    #[test]
    fn expansions_are_done() {
        has("cat${IFS}/etc/passwd", "cat /etc/passwd");
        has("cat$IFS$9/etc/passwd", "cat /etc/passwd");
        has("IFS=,;CMD=r,m;$CMD -rf /data", "r m -rf /data");
        has("a=ca;b=t;$a$b /etc/shadow", "cat /etc/shadow");
        has("c$@at /etc/shadow", "cat /etc/shadow");
        has("/bin/{rm,} -rf /tmp/s", "rm /bin/ -rf /tmp/s");
        has("{cat,/etc/passwd}", "cat /etc/passwd");
        has("cat ${HOME:0:1}etc${HOME:0:1}passwd", "cat /etc/passwd");
        has("cat ${X:-/etc/shadow}", "cat /etc/shadow");
        has("echo $UNKNOWN", "echo $UNKNOWN");
    }

    #[test]
    fn inner_commands_come_out() {
        has(
            "if true; then for i in 1 2; do rm -rf $i; done; else id; fi",
            "id",
        );
        has("f() { curl x; }; f", "curl x");
        has("case $1 in a|b) date ;; *) id;; esac", "id");
        has("echo $(whoami)", "whoami");
        has("echo `whoami`", "whoami");
        has("(cd /tmp && ls)", "ls");
        has("diff <(curl a) <(curl b)", "curl b");
        has("cat <<EOF\n$(id)\nEOF\ndate", "date");
        has("cat <<EOF\n$(id)\nEOF\ndate", "id");
        has("[ -x /bin/sh ] && id", "id");
        has("[[ -x /bin/sh ]] && id", "id");
        has("((i++)); id", "id");
        has("trap 'rm -rf /x' EXIT", "rm -rf /x");
    }

    #[test]
    fn wrappers_are_taken_off() {
        has("sudo -u root env A=1 nohup rm -rf /x", "rm -rf /x");
        has("sh -c 'rm -rf /x'", "rm -rf /x");
        has("bash -lc \"eval 'rm -rf /x'\"", "rm -rf /x");
        has("find / -name x -exec rm -f {} \\; -print", "rm -f {}");
        has("ls | xargs -n1 rm -f", "rm -f");
        has("timeout 5 busybox rm -f x", "rm -f x");
        has("ssh -p 22 host 'rm -rf /x'", "rm -rf /x");
        has("docker exec -it web rm -rf /x", "rm -rf /x");
        has("su -c 'rm -rf /x' root", "rm -rf /x");
        assert!(
            Script::parse("sudo id")
                .commands
                .iter()
                .any(|c| c.elevated && c.name() == "id")
        );
    }

    #[test]
    fn scripts_on_standard_input_are_read() {
        has("echo 'rm -rf /x' | sh", "rm -rf /x");
        has("echo cm0gLXJmIC94 | base64 -d | bash", "rm -rf /x");
        has("base64 -d <<< cm0gLXJmIC94 | bash", "rm -rf /x");
        has("printf '726d202d7266202f78' | xxd -r -p | sh", "rm -rf /x");
        has("bash <<'EOF'\nrm -rf /x\nEOF\n", "rm -rf /x");
        has("$(echo cm0= | base64 -d) -rf /x", "rm -rf /x");
        has("eval $(echo 'x/ fr- mr' | rev)", "rm -rf /x");
        has(
            "echo 'rm -rf /x' > /tmp/a.sh; chmod +x /tmp/a.sh; /tmp/a.sh",
            "rm -rf /x",
        );
        has("`rm` -rf /x", "rm -rf /x");
    }

    #[test]
    fn bad_syntax_is_no_way_out() {
        has(
            "echo 'unfinished; rm x\nrm -rf /y",
            "echo unfinished; rm x\nrm -rf /y",
        );
        has("fi; done; rm -rf /x", "rm -rf /x");
        has(") rm -rf /x", "rm -rf /x");
        has("rm -rf /x | | |", "rm -rf /x");
        let deep = "$(".repeat(5000);
        assert!(Script::parse(&deep).commands.len() <= MAX_COMMANDS);
        let wide = "{a,b}".repeat(40);
        assert!(Script::parse(&wide).commands.len() <= MAX_COMMANDS);
    }

    #[test]
    fn expansions_have_a_budget() {
        let long = "x".repeat(8 << 10);
        let doubled = format!("x={long}; {}", "echo $x$x$x;".repeat(4000));
        let braces = format!("echo {}", "{a,b}".repeat(1500));
        for script in [doubled, braces] {
            let read = Script::parse(&script);
            assert!(read.truncated);
            let size: usize = read
                .commands
                .iter()
                .flat_map(|c| &c.argv)
                .map(String::len)
                .sum();
            assert!(size < 2 << 20, "{size}");
        }
    }

    /// What a script's reading keeps is in proportion to the script, whatever it does.
    #[test]
    fn copies_have_a_budget() {
        let long = "x".repeat(8 << 10);
        let replaced = format!("a={long}; echo ${{a//x/{}}}", "y".repeat(50 << 10));
        let piped = format!("echo {long}{long} {}", "| cat ".repeat(500));
        let found = format!(
            "find . {} <<E\n{long}{long}\nE\n",
            "-exec a \\; ".repeat(400)
        );
        let printed = format!("printf '{}{long}' {}", "%s".repeat(9000), "a ".repeat(400));
        let nested = format!("echo {}", "${a:-".repeat(3000));
        for script in [replaced, piped, found, printed, nested] {
            let read = Script::parse(&script);
            let size: usize = read
                .commands
                .iter()
                .map(|command| {
                    let words: usize = command.argv.iter().map(String::len).sum();
                    let texts: usize = command.redirects.iter().map(|r| r.target.len()).sum();
                    words + texts + command.input.as_ref().map_or(0, String::len)
                })
                .sum();
            assert!(size < 2 << 20, "{size}: {:.40}", script);
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        let sudo = "sudo ".repeat(20);
        let calls = "system('a');".repeat(70);
        let words = "a ".repeat(600);
        for script in [
            format!("{sudo} rm -rf /x"),
            format!("python3 -c \"{calls}system('rm -rf /x')\""),
            format!("rm {words} /x"),
            format!("echo '{words} /x' | xargs rm"),
        ] {
            assert!(Script::parse(&script).truncated, "{:.60}", script);
        }
        assert!(!Script::parse("sudo rm -rf /x; echo {a,b}{c,d}").truncated);
    }

    #[test]
    fn the_end_of_a_long_word_counts() {
        let long = "x".repeat(20 << 10);
        has(&format!("sh -c ': {long}\nrm -rf /x'"), "rm -rf /x");
        has(&format!("sh <<E\n: {long}\nrm -rf /x\nE\n"), "rm -rf /x");
        has(
            &format!("echo ': {long}\nrm -rf /x' > a.sh; sh a.sh"),
            "rm -rf /x",
        );
        let few = "a ".repeat(30);
        has(
            &format!("echo '{few}/x' | xargs rm"),
            &format!("rm {few}/x"),
        );
        has("$(printf '%d%s' r m) -rf /x", "rm -rf /x");
    }
}
