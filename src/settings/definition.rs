//! Servers that a project describes: `[server.NAME]` in `agent-run.toml`, and the configurations of
//! `.claude/launch.json`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::launch_json;
use super::{KEYS, LISTS, Layer, Origin, SettingError, list, nearest, project_file, scalar};
use crate::run::parse_name;

/// A server as it is described.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Where it is described, as `FILE:LINE`.
    pub place: String,
    /// The command.
    pub command: Vec<OsString>,
    /// As after `--port`, each.
    pub ports: Vec<String>,
    /// As after `--ready`, each.
    pub ready: Vec<String>,
    /// As after `--health`, each.
    pub health: Vec<String>,
    /// Variables.
    pub env: Vec<(OsString, OsString)>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// Servers that must be ready before.
    pub depends_on: Vec<String>,
    /// What is said of settings.
    pub layer: Layer,
}

/// Keys of a server's table that are no settings.
const OWN_KEYS: [&str; 8] = ["command", "port", "ready", "health", "env", "labels", "cwd", "depends_on"];

/// Settings that are not of one run.
fn is_of_server(key: &str) -> bool {
    !key.starts_with("sweep_")
        && !["free_ports", "server_ttl", "session_idle", "max_runs", "max_sessions", "quiet"].contains(&key)
}

/// Returns the servers that the project describes. A name in `agent-run.toml` goes before the same one in
/// `.claude/launch.json`.
pub fn definitions() -> Result<Vec<Definition>, SettingError> {
    let mut found = match project_file() {
        Some(path) => read(&path)?,
        None => Vec::new(),
    };
    for other in launch_json::definitions()? {
        if found.iter().all(|known| known.name != other.name) {
            found.push(other);
        }
    }
    Ok(found)
}

/// Returns `wanted` and all that it depends on, each after what it depends on.
pub fn in_order(all: &[Definition], wanted: &[&str]) -> Result<Vec<Definition>, SettingError> {
    let mut ordered: Vec<Definition> = Vec::new();
    for name in wanted {
        let definition = find(all, name)?;
        visit(all, definition, &mut Vec::new(), &mut ordered)?;
    }
    Ok(ordered)
}

/// Returns the server called `name`; the error names the nearest.
pub fn find<'a>(all: &'a [Definition], name: &str) -> Result<&'a Definition, SettingError> {
    all.iter().find(|it| it.name == name).ok_or_else(|| SettingError::NoServer {
        name: name.to_owned(),
        nearest: nearest(name, all.iter().map(|it| it.name.as_str())),
        known: all.iter().map(|it| it.name.clone()).collect(),
    })
}

fn visit(
    all: &[Definition],
    definition: &Definition,
    path: &mut Vec<String>,
    ordered: &mut Vec<Definition>,
) -> Result<(), SettingError> {
    if ordered.iter().any(|known| known.name == definition.name) {
        return Ok(());
    }
    let begins = path.iter().position(|name| *name == definition.name);
    path.push(definition.name.clone());
    if let Some(begins) = begins {
        return Err(SettingError::Circle { place: definition.place.clone(), names: path[begins..].to_vec() });
    }
    for name in &definition.depends_on {
        let Some(next) = all.iter().find(|it| it.name == *name) else {
            let near = nearest(name, all.iter().map(|it| it.name.as_str()));
            let hint = near.map_or(String::new(), |near| format!("; did you mean '{near}'?"));
            return Err(SettingError::Server {
                place: definition.place.clone(),
                why: format!("depends_on: there is no server '{}'{hint}", name.escape_debug()),
            });
        };
        visit(all, next, path, ordered)?;
    }
    path.pop();
    ordered.push(definition.clone());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Definition>, SettingError> {
    let text =
        fs::read_to_string(path).map_err(|source| SettingError::File { path: path.to_owned(), source })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Definition>, SettingError> {
    let file = File { path, text };
    let table = super::parse_toml(path, text)?;
    let Some(servers) = table.get_ref().get("server").and_then(|it| it.get_ref().as_table()) else {
        return Ok(Vec::new());
    };
    let entries = servers.iter().map(|(name, value)| file.definition(name, value));
    entries.collect()
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        super::line_of(self.text, offset)
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(offset))
    }

    fn wrong(&self, offset: usize, why: impl Into<String>) -> SettingError {
        SettingError::Server { place: self.place(offset), why: why.into() }
    }

    fn definition(&self, name: &Key<'_>, value: &Spanned<DeValue<'_>>) -> Result<Definition, SettingError> {
        let at = name.span().start;
        let key = name.get_ref().as_ref();
        let Some(table) = value.get_ref().as_table() else {
            return Err(
                self.wrong(at, format!("server.{}: write a table, [server.NAME]", key.escape_debug()))
            );
        };
        let name = parse_name(key).map_err(|error| self.wrong(at, error.to_string()))?;
        let base = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut definition = Definition { name, place: self.place(at), cwd: base, ..Definition::default() };
        for (key, value) in table {
            self.take(&mut definition, key, value)?;
        }
        if definition.command.is_empty() {
            return Err(self.wrong(at, format!("server.{}: it has no command", definition.name)));
        }
        Ok(definition)
    }

    fn take(
        &self,
        definition: &mut Definition,
        key: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), SettingError> {
        let (at, name, value) = (key.span().start, key.get_ref().as_ref(), value.get_ref());
        let wrong = |what: &str| self.wrong(at, format!("{name}: {what}"));
        let words = || words(value).ok_or_else(|| wrong("write a text, or a list of texts"));
        match name {
            "command" => {
                definition.command =
                    command(value).ok_or_else(|| wrong("write a text for sh, or a list of words"))?
            }
            "port" => definition.ports = words()?,
            "ready" => definition.ready = words()?,
            "health" => definition.health = words()?,
            "depends_on" => definition.depends_on = words()?,
            "cwd" => {
                let path = value.as_str().ok_or_else(|| wrong("write a path"))?;
                definition.cwd = definition.cwd.join(path);
            }
            "env" => {
                let pairs = pairs(value).ok_or_else(|| wrong("write a table, as in { NAME = \"value\" }"))?;
                definition.env = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            }
            "labels" => {
                let pairs = pairs(value).ok_or_else(|| wrong("write a table, as in { team = \"web\" }"))?;
                definition.labels = pairs.into_iter().collect();
            }
            _ => return self.take_setting(definition, at, name, value),
        }
        Ok(())
    }

    fn take_setting(
        &self,
        definition: &mut Definition,
        at: usize,
        name: &str,
        value: &DeValue<'_>,
    ) -> Result<(), SettingError> {
        let Some(key) = KEYS.into_iter().find(|key| *key == name && is_of_server(key)) else {
            let known = KEYS.into_iter().filter(|key| is_of_server(key)).chain(OWN_KEYS);
            let near = nearest(name, known.clone());
            let hint = near.map_or_else(
                || format!("known are {}", known.collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean '{near}'?"),
            );
            return Err(self.wrong(at, format!("a server has no '{}'; {hint}", name.escape_debug())));
        };
        let origin = Origin::File(self.path.to_owned(), self.line(at));
        let read = if LISTS.contains(&key) { list } else { scalar };
        let text = read(value)
            .ok_or_else(|| self.wrong(at, format!("{key}: write one value, as in \"1h\" or 1024")))?;
        definition.layer.insert(key, (text, origin));
        Ok(())
    }
}

/// One text is a line for the shell.
fn command(value: &DeValue<'_>) -> Option<Vec<OsString>> {
    match value {
        DeValue::String(line) if !line.trim().is_empty() => Some(shell(line)),
        DeValue::Array(_) => {
            let words = words(value)?;
            (!words.is_empty()).then(|| words.into_iter().map(OsString::from).collect())
        }
        _ => None,
    }
}

fn shell(line: &str) -> Vec<OsString> {
    ["sh", "-c", line].map(OsString::from).to_vec()
}

pub(super) fn words(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::Array(values) => values.iter().map(|value| scalar(value.get_ref())).collect(),
        value => Some(vec![scalar(value)?]),
    }
}

fn pairs(value: &DeValue<'_>) -> Option<Vec<(String, String)>> {
    let table: &DeTable<'_> = value.as_table()?;
    let pair = |(name, value): (&Key<'_>, &Spanned<DeValue<'_>>)| {
        Some((name.get_ref().to_string(), scalar(value.get_ref())?))
    };
    table.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Result<Vec<Definition>, String> {
        parse(Path::new("/p/agent-run.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn tables_become_servers() {
        let text = r#"
            ttl = "1h"
            [server.api]
            command = "uvicorn app:app --port {port}"
            port = 8003
            ready = ["http:/health", "log:x"]
            env = { A = "b", N = 1 }
            memory = "1G"
            restart = "on-failure"
            [server.web]
            command = ["npm", "run", "dev"]
            cwd = "web"
            depends_on = "api"
        "#;
        let all = servers(text).unwrap();
        let api = find(&all, "api").unwrap();
        assert_eq!(api.command, ["sh", "-c", "uvicorn app:app --port {port}"]);
        assert_eq!((api.ports.as_slice(), api.ready.len()), (&["8003".to_owned()][..], 2));
        assert_eq!(api.env, [("A".into(), "b".into()), ("N".into(), "1".into())]);
        assert_eq!(api.layer["memory"].1, Origin::File("/p/agent-run.toml".into(), 8));
        let web = find(&all, "web").unwrap();
        assert_eq!((web.cwd.as_path(), web.command.len()), (Path::new("/p/web"), 3));
        let names: Vec<String> = in_order(&all, &["web"]).unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["api", "web"]);
        assert!(servers("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, expected) in [
            ("[server.a]\nport = 1", 1, "has no command"),
            ("[server.a]\ncommand = 1", 2, "write a text for sh"),
            ("[server.a]\ncommand = \"x\"\nrestrat = \"always\"", 3, "did you mean 'restart'?"),
            ("[server.a]\ncommand = \"x\"\nsweep_grace = \"1s\"", 3, "has no 'sweep_grace'"),
            ("[server.\"a b\"]\ncommand = \"x\"", 1, "cannot be a name"),
            ("[server]\na = 1", 2, "write a table"),
            ("[server.a]\ncommand = \"x\"\nenv = 1", 3, "write a table"),
            ("[server.a]\ncommand = [", 2, ""),
        ] {
            let error = servers(text).unwrap_err();
            assert!(error.contains(&format!("agent-run.toml:{line}")) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn circles_and_unknown_names_are_told() {
        let text = "[server.a]\ncommand = \"x\"\ndepends_on = \"b\"\n[server.b]\ncommand = \"x\"\n\
                    depends_on = [\"c\"]\n[server.c]\ncommand = \"x\"\ndepends_on = \"a\"\n\
                    [server.d]\ncommand = \"x\"\ndepends_on = \"aa\"";
        let all = servers(text).unwrap();
        let circle = in_order(&all, &["b"]).unwrap_err().to_string();
        assert!(circle.contains("b -> c -> a -> b"), "{circle}");
        let missing = in_order(&all, &["d"]).unwrap_err().to_string();
        assert!(missing.contains("no server 'aa'") && missing.contains("did you mean 'a'?"), "{missing}");
        let unknown = in_order(&all, &["bb"]).unwrap_err().to_string();
        assert!(unknown.contains("'bb'"), "{unknown}");
    }
}
