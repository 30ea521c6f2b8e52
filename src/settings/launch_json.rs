//! `.claude/launch.json`, in which projects describe the servers that Claude previews: JSON, perhaps with comments.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::definition::Definition;
use super::{Layer, Origin, SettingError};
use crate::run::parse_name;

/// The file, below the project's directory.
const FILE: &str = ".claude/launch.json";

#[derive(Deserialize)]
struct Launch {
    #[serde(default)]
    configurations: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    name: String,
    runtime_executable: Option<String>,
    #[serde(default)]
    runtime_args: Vec<String>,
    /// A script for node.
    program: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    port: Option<u16>,
    cwd: Option<PathBuf>,
    #[serde(default)]
    env: BTreeMap<String, Value>,
    auto_port: Option<bool>,
}

/// Returns the servers of the file in the working directory, or in the nearest one above that has one.
pub(super) fn definitions() -> Result<Vec<Definition>, SettingError> {
    let here = env::current_dir().unwrap_or_default();
    let Some(base) = here.ancestors().find(|directory| directory.join(FILE).exists()) else {
        return Ok(Vec::new());
    };
    let path = base.join(FILE);
    let text =
        fs::read_to_string(&path).map_err(|source| SettingError::File { path: path.clone(), source })?;
    parse(base, &path, &text)
}

fn parse(base: &Path, path: &Path, text: &str) -> Result<Vec<Definition>, SettingError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let launch: Launch = jsonc_parser::parse_to_serde_value(text, &Default::default()).map_err(|error| {
        SettingError::Syntax {
            path: path.to_owned(),
            line: error.line_display(),
            why: error.kind().to_string(),
        }
    })?;
    // A configuration that is none of ours (one that attaches to something, or of another kind) must not hide the others.
    let known = launch.configurations.into_iter().filter_map(|it| serde_json::from_value(it).ok());
    Ok(known.filter_map(|it: Configuration| it.definition(base, path)).collect())
}

impl Configuration {
    fn definition(self, base: &Path, path: &Path) -> Option<Definition> {
        let place = path.display().to_string();
        let command = self.command()?;
        // People write "Next dev" and "web (prod)" here.
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name: String = self.name.chars().map(|c| if fits(c) { c } else { '-' }).collect();
        let name = parse_name(name.trim_matches('-')).ok()?;
        let mut layer = Layer::new();
        let ports = match (self.port, self.auto_port) {
            // Its own port if that is free, else another one.
            (Some(port), Some(true)) => {
                layer.insert("fallback", ("true".to_owned(), Origin::File(path.to_owned(), 1)));
                vec![port.to_string()]
            }
            (Some(port), _) => vec![port.to_string()],
            (None, Some(true)) => vec!["auto".to_owned()],
            (None, _) => Vec::new(),
        };
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some(Definition {
            name,
            place,
            command,
            ports,
            env: self.env.into_iter().map(|(name, value)| (name.into(), text(value).into())).collect(),
            cwd: self.cwd.map_or_else(|| base.to_owned(), |cwd| base.join(inside(&cwd))),
            layer,
            ..Definition::default()
        })
    }

    fn command(&self) -> Option<Vec<std::ffi::OsString>> {
        let script = self.program.as_deref().map(|program| inside(Path::new(program)).display().to_string());
        let first =
            self.runtime_executable.clone().or_else(|| script.is_some().then(|| "node".to_owned()))?;
        let words =
            [first].into_iter().chain(self.runtime_args.clone()).chain(script).chain(self.args.clone());
        Some(words.map(Into::into).collect())
    }
}

/// Takes a path out of the variable that editors put before it.
fn inside(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    let rest = text.strip_prefix("${workspaceFolder}").map(|rest| rest.trim_start_matches('/'));
    rest.map_or_else(|| path.to_owned(), |rest| if rest.is_empty() { ".".into() } else { rest.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Result<Vec<Definition>, String> {
        parse(Path::new("/p"), Path::new("/p/.claude/launch.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn configurations_become_servers() {
        let text = r#"{
            // Claude's own comment
            "version": "0.0.1",
            "configurations": [
                { "name": "web", "runtimeExecutable": "npm", "runtimeArgs": ["run", "dev"], "port": 3000, "autoPort": true },
                { "name": "the api", "program": "${workspaceFolder}/server.js", "args": ["-v"], "port": 4000,
                  "cwd": "api", "env": { "A": "b", "N": 1 }, "url": "http://localhost:4000", },
                { "name": "attach", "request": "attach" },
                { "name": "web (prod)", "runtimeExecutable": "npm" },
                { "name": "odd", "runtimeExecutable": "npm", "port": "3000" }
            ]
        }"#;
        let all = servers(text).unwrap();
        assert_eq!(
            all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
            ["web", "the-api", "web--prod"]
        );
        assert_eq!(all[0].command, ["npm", "run", "dev"]);
        assert_eq!((all[0].ports[0].as_str(), all[0].layer.contains_key("fallback")), ("3000", true));
        assert_eq!(all[1].command, ["node", "server.js", "-v"]);
        assert_eq!(all[1].cwd, Path::new("/p/api"));
        assert_eq!(all[1].env[1], ("N".into(), "1".into()));
        assert!(!all[1].layer.contains_key("fallback"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert!(servers(" \n").unwrap().is_empty());
        for (text, line) in [("{\n  \"configurations\": [\n    {]\n}", 3), ("{\n\"configurations\": 1 }", 2)]
        {
            let error = servers(text).unwrap_err();
            assert!(error.contains(&format!("launch.json:{line}")), "{error}");
        }
    }
}
