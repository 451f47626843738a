//! What a tool call is about, whatever its parameters are called: commands, paths, URLs.

use serde_json::Value as Json;

use super::model::{Arguments, ToolCall};

/// The parts of a call's arguments that rules look at.
///
/// A string counts by the name of the member that it stands in, and by its own form. One string may
/// count twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facets {
    /// Shell commands and code. An array of strings (`["bash", "-c", "ls"]`) is joined by spaces.
    pub commands: Vec<String>,
    /// Paths of files and folders.
    pub paths: Vec<String>,
    /// URLs, and host names in members that name a host.
    pub urls: Vec<String>,
    /// Every other string.
    pub texts: Vec<String>,
    /// There are more strings than were looked at.
    pub truncated: bool,
}

/// Strings looked at in one call; more are left out of the facets (not of [`Arguments::to_text`]).
const MAX_STRINGS: usize = 4096;

impl ToolCall {
    /// Sorts the strings of the arguments by what they are.
    ///
    /// ```
    /// use tollgate_screen::llm::{Arguments, CallId, RunsAt, ToolCall};
    ///
    /// let call = ToolCall {
    ///     call: CallId(0),
    ///     id: "t1".into(),
    ///     name: "bash".into(),
    ///     arguments: Arguments::Json(serde_json::json!({
    ///         "cmd": ["bash", "-c", "cat ~/.ssh/id_ed25519"],
    ///         "workdir": "/srv",
    ///     })),
    ///     runs_at: RunsAt::Client,
    /// };
    /// let facets = call.facets();
    /// assert_eq!(facets.commands, ["bash -c cat ~/.ssh/id_ed25519"]);
    /// assert_eq!(facets.paths, ["/srv"]);
    /// ```
    #[must_use]
    pub fn facets(&self) -> Facets {
        let mut facets = Facets::default();
        match &self.arguments {
            Arguments::Json(value) => {
                let mut left = MAX_STRINGS;
                let mut stack = vec![("", value)];
                while let Some((key, value)) = stack.pop() {
                    if left == 0 {
                        facets.truncated = true;
                        break;
                    }
                    match value {
                        Json::String(text) => {
                            left -= 1;
                            facets.sort(&self.name, key, text);
                        }
                        Json::Array(items) => {
                            let words: Option<Vec<&str>> = items.iter().map(Json::as_str).collect();
                            match words.filter(|_| is_command_key(key) && !is_list_of_commands(key))
                            {
                                Some(words) => facets.commands.push(words.join(" ")),
                                None => stack.extend(items.iter().rev().map(|item| (key, item))),
                            }
                        }
                        Json::Object(members) => {
                            stack.extend(
                                members.iter().rev().map(|(key, item)| (key.as_str(), item)),
                            );
                        }
                        _ => {}
                    }
                }
            }
            Arguments::Text(text) | Arguments::Malformed { text, .. } => {
                facets.sort(&self.name, "", text);
            }
        }
        facets
    }
}

impl Facets {
    fn sort(&mut self, tool: &str, key: &str, text: &str) {
        let mut known = false;
        if is_command_key(key) || (key.is_empty() || is_vague_key(key)) && is_command_tool(tool) {
            self.commands.push(text.to_owned());
            known = true;
        }
        if is_url(text)
            || words(key).any(|word| {
                matches!(
                    word.as_str(),
                    "url" | "uri" | "href" | "endpoint" | "host" | "hostname" | "domain"
                )
            })
        {
            self.urls.push(text.to_owned());
            known = true;
        } else if !text.contains('\n') && (is_path_key(key) || is_path(text)) {
            self.paths.push(text.to_owned());
            known = true;
        }
        if !known {
            self.texts.push(text.to_owned());
        }
    }
}

/// The words of a name in any case style: `filePath`, `file_path`, `file-path`.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut lower = false;
    for c in name.chars().take(64) {
        if !c.is_alphanumeric() || c.is_uppercase() && lower {
            words.push(std::mem::take(&mut word));
        }
        lower = c.is_lowercase();
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    words.push(word);
    words.into_iter().filter(|word| !word.is_empty())
}

fn is_command_key(key: &str) -> bool {
    words(key).any(|word| {
        matches!(
            word.as_str(),
            "command"
                | "commands"
                | "cmd"
                | "cmds"
                | "script"
                | "shell"
                | "bash"
                | "code"
                | "argv"
                | "exec"
                | "sql"
                | "query"
        )
    })
}

/// An array in such a member holds several commands, not the words of one.
fn is_list_of_commands(key: &str) -> bool {
    words(key).any(|word| matches!(word.as_str(), "commands" | "cmds"))
}

fn is_vague_key(key: &str) -> bool {
    matches!(
        key,
        "input" | "text" | "args" | "arguments" | "chars" | "value" | "source"
    )
}

fn is_command_tool(tool: &str) -> bool {
    words(tool).any(|word| {
        matches!(
            word.as_str(),
            "bash"
                | "sh"
                | "zsh"
                | "shell"
                | "exec"
                | "execute"
                | "terminal"
                | "command"
                | "cmd"
                | "powershell"
                | "python"
                | "run"
        )
    })
}

fn is_path_key(key: &str) -> bool {
    words(key).any(|word| {
        matches!(
            word.as_str(),
            "path"
                | "paths"
                | "file"
                | "files"
                | "filename"
                | "filepath"
                | "dir"
                | "directory"
                | "folder"
                | "cwd"
                | "workdir"
                | "root"
                | "destination"
        )
    })
}

fn is_path(text: &str) -> bool {
    let windows = text
        .as_bytes()
        .first_chunk::<3>()
        .is_some_and(|[drive, colon, slash]| {
            drive.is_ascii_alphabetic() && *colon == b':' && matches!(slash, b'\\' | b'/')
        });
    windows
        || ["/", "~/", "./", "../", "\\\\"]
            .iter()
            .any(|start| text.starts_with(start))
            && !text.contains(' ')
            && text.len() > 1
}

fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && !rest.is_empty()
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
            && !text.contains(char::is_whitespace)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::model::{CallId, RunsAt};

    fn facets(name: &str, arguments: Json) -> Facets {
        ToolCall {
            call: CallId(0),
            id: String::new(),
            name: name.to_owned(),
            arguments: Arguments::Json(arguments),
            runs_at: RunsAt::Client,
        }
        .facets()
    }

    #[test]
    fn strings_are_sorted_by_key_and_by_form() {
        let found = facets(
            "anything",
            serde_json::json!({
                "filePath": "notes.txt",
                "nested": [{"target": "https://evil.example/x"}, "/etc/passwd"],
                "commands": ["ls", "rm -rf /"],
                "note": "hello there",
            }),
        );
        assert_eq!(found.paths, ["notes.txt", "/etc/passwd"]);
        assert_eq!(found.urls, ["https://evil.example/x"]);
        assert_eq!(found.commands, ["ls", "rm -rf /"]);
        assert_eq!(found.texts, ["hello there"]);
    }

    #[test]
    fn a_shell_tool_takes_commands_under_any_vague_name() {
        assert_eq!(
            facets("run_terminal", serde_json::json!({"input": "id"})).commands,
            ["id"]
        );
        assert!(
            facets("notes", serde_json::json!({"input": "id"}))
                .commands
                .is_empty()
        );
    }
}
