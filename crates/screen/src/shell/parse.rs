//! Reading shell syntax into simple commands.

use std::collections::HashMap;

use super::word::{Piece, Room, Word, keyword};
use super::{
    Command, MAX_ARGV, MAX_COMMANDS, MAX_NESTING, MAX_SCRIPT, Redirect, RedirectKind, Script,
};

/// How many characters all scripts inside a script may have together.
const MAX_WORK: usize = 8 * MAX_SCRIPT;

/// How many characters expansions and copies may add to a script, all together.
const MAX_EXPANDED: usize = 8 * MAX_SCRIPT;

/// What has been read, and what is known about variables and files.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) commands: Vec<Command>,
    pub(super) variables: HashMap<String, String>,
    pub(super) files: HashMap<String, String>,
    pub(super) truncated: bool,
    /// Room for the pieces of a word.
    spare: Vec<Piece>,
    work: usize,
    /// How many characters expansions and copies have added.
    expanded: usize,
}

/// The characters of one script, and where the reader is.
struct Text {
    chars: Vec<char>,
    at: usize,
    /// Heredocs announced in the line that is being read: delimiter, whether it was quoted, whether
    /// tabs are cut, and which command and redirection wait for the text.
    heredocs: Vec<Heredoc>,
}

struct Heredoc {
    delimiter: String,
    quoted: bool,
    tabs: bool,
    command: usize,
    redirect: usize,
}

/// What surrounds the commands that are being read.
struct Around<'a> {
    through: &'a [&'static str],
    depth: usize,
    elevated: bool,
}

impl Text {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn done(&self) -> bool {
        self.at >= self.chars.len()
    }

    fn starts(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(at, c)| self.peek(at) == c)
    }

    /// The word that begins here, if nothing in it means anything but itself: most words.
    fn plain(&self) -> Option<&[char]> {
        let rest = self.chars.get(self.at..)?;
        let means = |c: &char| {
            matches!(
                c,
                ' ' | '\t'
                    | '\n'
                    | '\r'
                    | ';'
                    | '|'
                    | ')'
                    | '&'
                    | '('
                    | '<'
                    | '>'
                    | '\\'
                    | '\''
                    | '"'
                    | '$'
                    | '`'
                    | '{'
                    | '='
            )
        };
        let length = rest.iter().position(means).unwrap_or(rest.len());
        let more = rest
            .get(length)
            .is_some_and(|c| matches!(c, '\\' | '\'' | '"' | '$' | '`' | '{' | '='));
        let (word, _) = rest.split_at_checked(length)?;
        (!word.is_empty() && !more).then_some(word)
    }

    fn line(&mut self) -> Option<String> {
        if self.done() {
            return None;
        }
        let mut line = String::new();
        while !self.done() {
            let c = self.peek(0);
            self.at += 1;
            if c == '\n' {
                break;
            }
            line.push(c);
        }
        Some(line)
    }
}

impl Reader {
    pub(super) fn finish(self) -> Script {
        Script {
            commands: self.commands,
            truncated: self.truncated,
        }
    }

    /// Reads a script that runs as part of another.
    pub(super) fn script(&mut self, text: &str, through: &[&'static str], depth: usize) {
        self.script_as(text, through, depth, false);
    }

    pub(super) fn script_as(
        &mut self,
        text: &str,
        through: &[&'static str],
        depth: usize,
        elevated: bool,
    ) {
        let chars: Vec<char> = text.chars().take(MAX_SCRIPT).collect();
        self.work += chars.len();
        if depth > MAX_NESTING || self.work > MAX_WORK {
            self.truncated = true;
            return;
        }
        self.truncated |= text.len() > MAX_SCRIPT;
        let mut text = Text {
            chars,
            at: 0,
            heredocs: Vec::new(),
        };
        let around = Around {
            through,
            depth,
            elevated,
        };
        self.list(&mut text, &around, None);
        while !text.done() && self.commands.len() < MAX_COMMANDS {
            // A closing bracket that nothing opened.
            text.at += 1;
            self.list(&mut text, &around, None);
        }
    }

    /// Commands up to a closing bracket.
    fn list(&mut self, text: &mut Text, around: &Around<'_>, close: Option<char>) {
        let mut reads_from = None;
        while !text.done() {
            if self.commands.len() >= MAX_COMMANDS {
                self.truncated = true;
                text.at = text.chars.len();
                return;
            }
            match text.peek(0) {
                '\n' => {
                    text.at += 1;
                    self.heredocs(text, around);
                    reads_from = None;
                }
                ' ' | '\t' | '\r' => text.at += 1,
                '\\' if text.peek(1) == '\n' => text.at += 2,
                ';' | '&' => {
                    text.at += 1;
                    reads_from = None;
                }
                '|' => {
                    let or = text.peek(1) == '|';
                    text.at += if or || text.peek(1) == '&' { 2 } else { 1 };
                    if or {
                        reads_from = None;
                    } else {
                        reads_from = self.commands.len().checked_sub(1);
                    }
                }
                '#' => {
                    while !text.done() && text.peek(0) != '\n' {
                        text.at += 1;
                    }
                }
                ')' => {
                    if close == Some(')') {
                        return;
                    }
                    // The end of a pattern of `case`, or nothing.
                    text.at += 1;
                    reads_from = None;
                }
                '(' if text.peek(1) == '(' => skip_arithmetic(text),
                '(' => {
                    text.at += 1;
                    let first = self.commands.len();
                    if around.depth < MAX_NESTING {
                        let inner = Around {
                            through: around.through,
                            depth: around.depth + 1,
                            elevated: around.elevated,
                        };
                        self.list(text, &inner, Some(')'));
                    }
                    if text.peek(0) == ')' {
                        text.at += 1;
                    }
                    if let Some(command) = self.commands.get_mut(first)
                        && command.reads_from.is_none()
                    {
                        command.reads_from = reads_from;
                    }
                    reads_from = None;
                }
                _ => {
                    self.simple(text, around, reads_from);
                    reads_from = None;
                }
            }
        }
    }

    /// One simple command, or a keyword on the way to one.
    fn simple(&mut self, text: &mut Text, around: &Around<'_>, reads_from: Option<usize>) {
        let mut command = Command {
            reads_from,
            elevated: around.elevated,
            through: around.through.to_vec(),
            ..Command::default()
        };
        let mut substituted = None;
        let mut heredocs = Vec::new();
        let mut skip_to = None;
        loop {
            while matches!(text.peek(0), ' ' | '\t' | '\r') || text.starts("\\\n") {
                text.at += if text.peek(0) == '\\' { 2 } else { 1 };
            }
            if text.done() || matches!(text.peek(0), '\n' | ';' | '|' | ')') {
                break;
            }
            if text.peek(0) == '&' && text.peek(1) != '>' {
                break;
            }
            if text.peek(0) == '#' {
                break;
            }
            if text.peek(0) == '(' {
                // `name()`: a function; `name=(…)`: an array.
                if command.argv.len() == 1 && text.peek(1) == ')' {
                    text.at += 2;
                    return;
                }
                break;
            }
            if let Some(redirect) =
                self.redirect(text, around, &mut heredocs, command.redirects.len())
            {
                command.redirects.push(redirect);
                continue;
            }
            if let Some(plain) = text.plain()
                && (!command.argv.is_empty() || keyword(plain).is_none())
            {
                let length = plain.len();
                if skip_to.is_none() && command.argv.is_empty() {
                    command.indirect = false;
                }
                let ends = skip_to.map(|end: &str| end.chars().eq(plain.iter().copied()));
                match ends {
                    None if command.argv.len() < MAX_ARGV => {
                        command.argv.push(joined(plain));
                    }
                    None => self.truncated = true,
                    Some(_) => {}
                }
                text.at += length;
                if ends == Some(true) {
                    break;
                }
                continue;
            }
            let before = text.at;
            let word = self.word(text, around);
            if text.at == before {
                text.at += 1;
                continue;
            }
            if let Some(end) = skip_to {
                let ends = word.is_bare(end);
                self.spare = word.pieces;
                if ends {
                    break;
                }
                continue;
            }
            if command.argv.is_empty() {
                command.indirect = word
                    .pieces
                    .iter()
                    .all(|piece| matches!(piece, Piece::Expanded(_)));
                if let Some((name, value)) = assignment(&word) {
                    if text.peek(0) == '(' && value.is_empty() {
                        // An array: its words, joined.
                        text.at += 1;
                        let mut all = Vec::new();
                        while !text.done() && text.peek(0) != ')' {
                            if text.peek(0).is_whitespace() {
                                text.at += 1;
                                continue;
                            }
                            let at = text.at;
                            all.push(self.word(text, around).text());
                            if text.at == at {
                                text.at += 1;
                            }
                        }
                        text.at += 1;
                        self.variables.insert(name.clone(), all.join(" "));
                        command.assignments.push((name, all.join(" ")));
                    } else {
                        command.assignments.push((name, value));
                    }
                    continue;
                }
                match word.keyword() {
                    Some(
                        "if" | "then" | "else" | "elif" | "fi" | "do" | "done" | "while" | "until"
                        | "!" | "{" | "}" | "time" | "coproc" | "esac" | "function",
                    ) => {
                        self.spare = word.pieces;
                        if command.redirects.is_empty() {
                            continue;
                        }
                        break;
                    }
                    Some("for" | "select") => {
                        self.for_loop(text, around);
                        return;
                    }
                    Some("case") => {
                        case_head(self, text, around);
                        return;
                    }
                    Some("[[") => {
                        skip_to = Some("]]");
                        continue;
                    }
                    _ => {}
                }
                if substituted.is_none() {
                    substituted.clone_from(&word.substituted);
                }
            }
            self.fields(&word, &mut command.argv);
            self.spare = word.pieces;
        }
        // `case x in a)`: patterns look like commands; one that is followed by `)` is one.
        if text.peek(0) == ')'
            && around.depth == 0
            && command.argv.len() == 1
            && command.redirects.is_empty()
        {
            return;
        }
        if command.argv.is_empty() {
            for (name, value) in &command.assignments {
                self.variables.insert(name.clone(), value.clone());
            }
        }
        if command.argv.is_empty() && command.assignments.is_empty() && command.redirects.is_empty()
        {
            return;
        }
        if let (Some(inner), Some(first)) = (substituted, command.argv.first_mut())
            && first.starts_with("$(")
        {
            *first = inner;
        }
        for (delimiter, quoted, tabs, redirect) in heredocs {
            text.heredocs.push(Heredoc {
                delimiter,
                quoted,
                tabs,
                // Substitutions in its words came first; the command is the next one.
                command: self.commands.len(),
                redirect,
            });
        }
        self.commands.push(command);
        if text.heredocs.is_empty() {
            self.settle(self.commands.len() - 1, around.depth);
        }
    }

    /// The texts that follow the line.
    fn heredocs(&mut self, text: &mut Text, around: &Around<'_>) {
        if text.heredocs.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut text.heredocs);
        let first = waiting.first().map_or(0, |one| one.command);
        let before = self.commands.len();
        for heredoc in waiting {
            let mut body = String::new();
            while let Some(line) = text.line() {
                let shown = if heredoc.tabs {
                    line.trim_start_matches('\t')
                } else {
                    line.as_str()
                };
                if shown.trim_end_matches('\r') == heredoc.delimiter {
                    break;
                }
                body.push_str(shown);
                body.push('\n');
            }
            if !heredoc.quoted {
                body = self.expand_text(&body, around);
            }
            if let Some(redirect) = self
                .commands
                .get_mut(heredoc.command)
                .and_then(|command| command.redirects.get_mut(heredoc.redirect))
            {
                redirect.target = body;
            }
        }
        for at in first..before {
            self.settle(at, around.depth);
        }
    }

    /// Expands what a heredoc expands: variables and substitutions.
    fn expand_text(&mut self, body: &str, around: &Around<'_>) -> String {
        self.work += body.len();
        if self.work > MAX_WORK || around.depth > MAX_NESTING {
            self.truncated = true;
            return body.to_owned();
        }
        let around = &Around {
            depth: around.depth + 1,
            ..*around
        };
        let mut text = Text {
            chars: body.chars().collect(),
            at: 0,
            heredocs: Vec::new(),
        };
        let mut word = Word::default();
        while !text.done() {
            match text.peek(0) {
                '$' | '`' => self.dollar(&mut text, around, &mut word, true),
                '\\' if matches!(text.peek(1), '$' | '`' | '\\') => {
                    word.push(Piece::Quoted(text.peek(1)));
                    text.at += 2;
                }
                c => {
                    word.push(Piece::Quoted(c));
                    text.at += 1;
                }
            }
        }
        self.truncated |= word.cut;
        word.text()
    }

    fn for_loop(&mut self, text: &mut Text, around: &Around<'_>) {
        skip_blanks(text);
        if text.peek(0) == '(' {
            skip_arithmetic(text);
            return;
        }
        let name = self.word(text, around).text();
        skip_blanks(text);
        let before = text.at;
        let word = self.word(text, around);
        if !word.is_bare("in") {
            text.at = before;
            return;
        }
        let mut values = Vec::new();
        loop {
            skip_blanks(text);
            if text.done() || matches!(text.peek(0), '\n' | ';' | '&' | '|' | ')') {
                break;
            }
            let before = text.at;
            let word = self.word(text, around);
            let mut fields = Vec::new();
            self.fields(&word, &mut fields);
            values.append(&mut fields);
            if text.at == before {
                text.at += 1;
            }
        }
        values.truncate(32);
        self.variables.insert(name, values.join(" "));
    }

    /// A redirection, if one starts here.
    fn redirect(
        &mut self,
        text: &mut Text,
        around: &Around<'_>,
        heredocs: &mut Vec<(String, bool, bool, usize)>,
        index: usize,
    ) -> Option<Redirect> {
        let mut ahead = 0;
        while text.peek(ahead).is_ascii_digit() {
            ahead += 1;
        }
        if ahead > 2 {
            return None;
        }
        let rest = |n: usize| text.peek(ahead + n);
        if ahead == 0 && rest(0) == '&' && rest(1) == '>' {
            text.at += if rest(2) == '>' { 3 } else { 2 };
            let kind = if text.peek(0) == '>' {
                RedirectKind::Append
            } else {
                RedirectKind::Write
            };
            skip_blanks(text);
            let target = self.word(text, around).text();
            return Some(Redirect { kind, target });
        }
        let (kind, len) = match (rest(0), rest(1), rest(2)) {
            // Process substitution is a word.
            ('<' | '>', '(', _) => return None,
            ('<', '<', '<') => (RedirectKind::Text, 3),
            ('<', '<', '-') => (RedirectKind::Text, 3),
            ('<', '<', _) => (RedirectKind::Text, 2),
            ('<', '>', _) => (RedirectKind::ReadWrite, 2),
            ('<', '&', _) | ('>', '&', _) => (RedirectKind::Duplicate, 2),
            ('<', _, _) => (RedirectKind::Read, 1),
            ('>', '>', _) => (RedirectKind::Append, 2),
            ('>', '|', _) => (RedirectKind::Write, 2),
            ('>', _, _) => (RedirectKind::Write, 1),
            _ => return None,
        };
        let heredoc =
            kind == RedirectKind::Text && !(rest(0) == '<' && rest(1) == '<' && rest(2) == '<');
        let tabs = heredoc && len == 3;
        text.at += ahead + len;
        skip_blanks(text);
        if heredoc {
            let word = self.word(text, around);
            let quoted = word
                .pieces
                .iter()
                .any(|piece| matches!(piece, Piece::Quoted(_) | Piece::Mark));
            heredocs.push((word.text(), quoted, tabs, index));
            return Some(Redirect {
                kind,
                target: String::new(),
            });
        }
        let target = match text.plain() {
            Some(plain) => {
                let (length, target) = (plain.len(), joined(plain));
                text.at += length;
                target
            }
            None => {
                let word = self.word(text, around);
                let target = word.text();
                self.spare = word.pieces;
                target
            }
        };
        let kind = match kind {
            // `>&file` writes a file; `>&2` copies.
            RedirectKind::Duplicate if !target.chars().all(|c| c.is_ascii_digit() || c == '-') => {
                RedirectKind::Write
            }
            other => other,
        };
        Some(Redirect { kind, target })
    }

    /// One word, up to a blank or an operator.
    fn word(&mut self, text: &mut Text, around: &Around<'_>) -> Word {
        let mut word = Word {
            pieces: std::mem::take(&mut self.spare),
            ..Word::default()
        };
        word.pieces.clear();
        loop {
            let c = text.peek(0);
            if text.done() {
                break;
            }
            match c {
                ' ' | '\t' | '\n' | '\r' | ';' | '|' | ')' => break,
                '&' => break,
                '(' => {
                    // `name=(`: left to the caller. Globs like @(a|b) are rare; the bracket ends the word.
                    break;
                }
                '<' | '>' => {
                    if text.peek(1) == '(' && word.pieces.is_empty() {
                        text.at += 2;
                        let first = self.commands.len();
                        self.nested(text, around, "process substitution");
                        let name = self
                            .commands
                            .get(first)
                            .map(|c| c.argv.join(" "))
                            .unwrap_or_default();
                        word.quoted(&format!("{c}({name})"));
                        word.push(Piece::Mark);
                        continue;
                    }
                    break;
                }
                '\\' => {
                    if text.peek(1) == '\n' {
                        text.at += 2;
                    } else {
                        if text.at + 1 < text.chars.len() {
                            word.push(Piece::Quoted(text.peek(1)));
                        }
                        text.at += 2;
                    }
                }
                '\'' => {
                    text.at += 1;
                    word.push(Piece::Mark);
                    while !text.done() && text.peek(0) != '\'' {
                        word.push(Piece::Quoted(text.peek(0)));
                        text.at += 1;
                    }
                    text.at += 1;
                }
                '"' => {
                    text.at += 1;
                    self.double_quoted(text, around, &mut word);
                }
                '$' | '`' => self.dollar(text, around, &mut word, false),
                _ => {
                    word.push(Piece::Bare(c));
                    text.at += 1;
                }
            }
        }
        self.truncated |= word.cut;
        word
    }

    fn double_quoted(&mut self, text: &mut Text, around: &Around<'_>, word: &mut Word) {
        word.push(Piece::Mark);
        while !text.done() {
            match text.peek(0) {
                '"' => break,
                '\\' if matches!(text.peek(1), '"' | '\\' | '$' | '`') => {
                    word.push(Piece::Quoted(text.peek(1)));
                    text.at += 2;
                }
                '\\' if text.peek(1) == '\n' => text.at += 2,
                '$' | '`' => self.dollar(text, around, word, true),
                c => {
                    word.push(Piece::Quoted(c));
                    text.at += 1;
                }
            }
        }
        text.at += 1;
    }

    /// What starts with `$` or a backtick.
    fn dollar(&mut self, text: &mut Text, around: &Around<'_>, word: &mut Word, quoted: bool) {
        if text.peek(0) == '`' {
            text.at += 1;
            let mut inner = String::new();
            while !text.done() && text.peek(0) != '`' {
                if text.peek(0) == '\\' && matches!(text.peek(1), '`' | '\\' | '$') {
                    text.at += 1;
                }
                inner.push(text.peek(0));
                text.at += 1;
            }
            text.at += 1;
            let first = self.commands.len();
            self.script_as(
                &inner,
                &with(around.through, "substitution"),
                around.depth + 1,
                around.elevated,
            );
            self.substitute(first, word, quoted);
            return;
        }
        match text.peek(1) {
            '(' if text.peek(2) == '(' => {
                text.at += 1;
                skip_arithmetic(text);
                word.expanded("0", quoted);
            }
            '(' => {
                text.at += 2;
                let first = self.commands.len();
                self.nested(text, around, "substitution");
                self.substitute(first, word, quoted);
            }
            '{' => {
                text.at += 2;
                let mut depth = 1;
                let mut inner = String::new();
                while !text.done() {
                    let c = text.peek(0);
                    text.at += 1;
                    match c {
                        '{' => depth += 1,
                        '}' => {
                            depth -= 1;
                            if depth == 0 {
                                break;
                            }
                        }
                        _ => {}
                    }
                    inner.push(c);
                }
                let value = self.parameter(&inner, around);
                self.expand(word, &value, quoted);
            }
            '\'' if !quoted => {
                text.at += 2;
                word.push(Piece::Mark);
                let mut raw = String::new();
                while !text.done() && text.peek(0) != '\'' {
                    if text.peek(0) == '\\' {
                        raw.push('\\');
                        text.at += 1;
                    }
                    raw.push(text.peek(0));
                    text.at += 1;
                }
                text.at += 1;
                word.quoted(&ansi_c(&raw));
            }
            '"' if !quoted => {
                text.at += 2;
                self.double_quoted(text, around, word);
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                text.at += 1;
                let mut name = String::new();
                while text.peek(0).is_ascii_alphanumeric() || text.peek(0) == '_' {
                    name.push(text.peek(0));
                    text.at += 1;
                }
                let value = self.variable(&name).unwrap_or_else(|| format!("${name}"));
                self.expand(word, &value, quoted);
            }
            // Positional parameters are empty in a command line of its own.
            c if c.is_ascii_digit() || matches!(c, '@' | '*') => {
                text.at += 2;
            }
            '?' | '#' | '-' => {
                text.at += 2;
                word.expanded("0", quoted);
            }
            '$' | '!' => {
                text.at += 2;
                word.expanded("$$", quoted);
            }
            _ => {
                word.push(Piece::Quoted('$'));
                text.at += 1;
            }
        }
    }

    /// Puts what an expansion gives into a word, as long as there is room for it.
    fn expand(&mut self, word: &mut Word, text: &str, quoted: bool) {
        if self.spend(text.len()) {
            word.expanded(text, quoted);
        }
    }

    /// Whether there is room for so many more characters; it is taken then, and otherwise the script counts as cut.
    pub(super) fn spend(&mut self, characters: usize) -> bool {
        let all = self.expanded.saturating_add(characters);
        if all > MAX_EXPANDED {
            self.truncated = true;
            return false;
        }
        self.expanded = all;
        true
    }

    /// Adds the fields of a word, up to [`MAX_ARGV`].
    fn fields(&mut self, word: &Word, out: &mut Vec<String>) {
        let ifs = self.variables.get("IFS");
        let ifs = ifs.map_or(" \t\n", String::as_str);
        let before = MAX_EXPANDED.saturating_sub(self.expanded);
        let mut room = Room {
            left: before,
            cut: false,
        };
        word.fields(ifs, out, &mut room);
        self.truncated |= room.cut;
        self.expanded += before - room.left;
    }

    /// Commands up to the closing bracket of a substitution.
    fn nested(&mut self, text: &mut Text, around: &Around<'_>, how: &'static str) {
        if around.depth >= MAX_NESTING {
            self.truncated = true;
            text.at = text.chars.len();
            return;
        }
        let through = with(around.through, how);
        let inner = Around {
            through: &through,
            depth: around.depth + 1,
            elevated: around.elevated,
        };
        self.list(text, &inner, Some(')'));
        if text.peek(0) == ')' {
            text.at += 1;
        }
    }

    /// What a substitution leaves in the word: its output, if that can be known.
    fn substitute(&mut self, first: usize, word: &mut Word, quoted: bool) {
        let output = self
            .commands
            .len()
            .checked_sub(1)
            .filter(|&last| last >= first)
            .and_then(|last| self.output(last, 0));
        match output {
            Some(output) => self.expand(word, output.trim_end_matches('\n'), quoted),
            None => {
                let inner = self.commands.get(first).map(|command| command.argv.clone());
                let inner = inner.unwrap_or_default();
                if let [only] = inner.as_slice() {
                    word.substituted = Some(only.clone());
                }
                // Quoted, because what it becomes isn't known and can't be split.
                self.expand(word, &format!("$({})", inner.join(" ")), true);
                word.push(Piece::Mark);
            }
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        if let Some(value) = self.variables.get(name) {
            return Some(value.clone());
        }
        Some(
            match name {
                "IFS" => " \t\n",
                "HOME" => "~",
                "SHELL" => "/bin/sh",
                _ => return None,
            }
            .to_owned(),
        )
    }

    /// `${…}`.
    fn parameter(&mut self, inner: &str, around: &Around<'_>) -> String {
        let inner = inner.strip_prefix('!').unwrap_or(inner);
        let len = inner
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .count();
        let (name, rest) = inner.split_at_checked(len).unwrap_or((inner, ""));
        if name.is_empty() {
            return match inner.chars().next() {
                Some('#') => "0".to_owned(),
                _ => String::new(),
            };
        }
        if name.chars().all(|c| c.is_ascii_digit()) {
            return String::new();
        }
        let known = self.variable(name);
        if let Some(default) = rest
            .strip_prefix(":-")
            .or_else(|| rest.strip_prefix(":="))
            .or_else(|| rest.strip_prefix('-'))
            .or_else(|| rest.strip_prefix('='))
        {
            return match known {
                Some(value) if name != "HOME" || !value.is_empty() => value,
                _ => self.expand_text(default, around),
            };
        }
        let value = match (name, known) {
            // Their beginnings are used to spell a slash.
            ("HOME" | "PWD" | "PATH" | "OLDPWD", _) if rest.starts_with(':') => {
                "/home/user".to_owned()
            }
            (_, Some(value)) => value,
            (_, None) => return format!("${name}"),
        };
        if let Some(slice) = rest.strip_prefix(':') {
            let mut numbers = slice.split(':').map(|n| n.trim().parse::<usize>());
            if let Some(Ok(from)) = numbers.next() {
                let count = match numbers.next() {
                    Some(Ok(count)) => count,
                    _ => usize::MAX,
                };
                return value.chars().skip(from).take(count).collect();
            }
        }
        if let Some(substitution) = rest.strip_prefix("//").or_else(|| rest.strip_prefix('/')) {
            let (from, to) = substitution.split_once('/').unwrap_or((substitution, ""));
            if !from.is_empty() {
                // What comes out may be as much longer as a replacement is.
                let times = value.matches(from).count();
                let length = value.len() + times.saturating_mul(to.len());
                if length > MAX_SCRIPT || !self.spend(length) {
                    self.truncated = true;
                    return value;
                }
                return value.replace(from, to);
            }
        }
        if rest.starts_with("^^") {
            return value.to_uppercase();
        }
        if rest.starts_with(",,") {
            return value.to_lowercase();
        }
        value
    }
}

/// `path` with one more step.
pub(super) fn with(through: &[&'static str], step: &'static str) -> Vec<&'static str> {
    let mut all = through.to_vec();
    if all.last() != Some(&step) {
        all.push(step);
    }
    all
}

/// Characters as a text; nearly always they are ASCII, which is fast.
fn joined(word: &[char]) -> String {
    if !word.iter().all(char::is_ascii) {
        return word.iter().collect();
    }
    let bytes = word.iter().map(|c| u8::try_from(*c).unwrap_or(b'?'));
    String::from_utf8(bytes.collect()).unwrap_or_default()
}

fn skip_blanks(text: &mut Text) {
    while matches!(text.peek(0), ' ' | '\t' | '\r') || text.starts("\\\n") {
        text.at += if text.peek(0) == '\\' { 2 } else { 1 };
    }
}

fn skip_arithmetic(text: &mut Text) {
    let mut depth = 0;
    while !text.done() {
        match text.peek(0) {
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth <= 0 {
                    text.at += 1;
                    return;
                }
            }
            _ => {}
        }
        text.at += 1;
    }
}

fn case_head(reader: &mut Reader, text: &mut Text, around: &Around<'_>) {
    skip_blanks(text);
    let _ = reader.word(text, around);
    skip_blanks(text);
    while text.peek(0) == '\n' {
        text.at += 1;
        skip_blanks(text);
    }
    let before = text.at;
    if !reader.word(text, around).is_bare("in") {
        text.at = before;
        return;
    }
    // The first pattern; later ones are seen as commands that end at a bracket.
    let mut ahead = 0;
    while ahead < 200 && !matches!(text.peek(ahead), ')' | '\0' | ';') {
        ahead += 1;
    }
    if text.peek(ahead) == ')' {
        text.at += ahead + 1;
    }
}

fn assignment(word: &Word) -> Option<(String, String)> {
    let letter =
        |piece: &Piece| matches!(piece, Piece::Bare(c) if c.is_ascii_alphabetic() || *c == '_');
    if !word.pieces.first().is_some_and(letter) || !word.pieces.contains(&Piece::Bare('=')) {
        return None;
    }
    let mut name = String::new();
    let mut pieces = word.pieces.iter();
    for piece in pieces.by_ref() {
        match piece {
            Piece::Bare('=') if !name.is_empty() => {
                let value = Word {
                    pieces: pieces.copied().collect(),
                    ..Word::default()
                };
                let name = name.trim_end_matches('+').to_owned();
                return Some((name, value.text()));
            }
            Piece::Bare(c)
                if c.is_ascii_alphabetic()
                    || *c == '_'
                    || (c.is_ascii_digit() && !name.is_empty())
                    || (*c == '+' && !name.is_empty()) =>
            {
                name.push(*c);
            }
            _ => return None,
        }
    }
    None
}

/// The escapes of `$'…'`, `echo -e` and `printf`.
pub(super) fn ansi_c(raw: &str) -> String {
    let mut out = String::new();
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('e' | 'E') => out.push('\u{1b}'),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('x') => out.extend(digits(&mut chars, None, 16, 2)),
            Some('u') => out.extend(digits(&mut chars, None, 16, 4)),
            Some('U') => out.extend(digits(&mut chars, None, 16, 8)),
            Some(octal @ '0'..='7') => {
                let most = if octal == '0' { 4 } else { 3 };
                out.extend(digits(&mut chars, Some(octal), 8, most));
            }
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
    }
    out
}

fn digits(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    first: Option<char>,
    radix: u32,
    most: usize,
) -> Option<char> {
    let mut value = first.and_then(|c| c.to_digit(radix)).unwrap_or(0);
    let mut count = usize::from(first.is_some());
    while count < most
        && let Some(digit) = chars.peek().and_then(|c| c.to_digit(radix))
    {
        value = value * radix + digit;
        chars.next();
        count += 1;
    }
    char::from_u32(value)
}
