//! Providers: programs of sessions with their protocol, arguments and limits. Some are built in, `[provider.NAME]` in
//! a file adds to them.

use std::ffi::OsString;
use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

use super::definition::words;
use super::values::parse_memory;
use super::{KEYS, LISTS, Layer, Origin, SettingError, list, nearest, project_file, scalar, user_file};
use crate::protocol::{self, Approvals, ONESHOT, Protocol};

/// A program that can be talked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// The program.
    pub binary: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// The arguments if it is started anew for each message.
    oneshot_args: Option<Vec<String>>,
    /// What it is answered when it asks whether it may do something.
    pub approvals: Approvals,
    /// The memory that it will need, in bytes.
    pub needs: Option<u64>,
    /// What is said of settings.
    pub layer: Layer,
}

const CLAUDE: [&str; 6] =
    ["-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"];

/// The names of those that are built in.
pub const BUILT_IN: [&str; 6] = ["claude", "codex", "gemini", "bash", "python", "node"];

/// Returns the one that is built in under `name`.
fn built_in(name: &str) -> Option<Provider> {
    let host = || Protocol::Marker(ONESHOT.to_owned());
    let (binary, args, protocol, oneshot): (&str, &[&str], Protocol, Option<&[&str]>) = match name {
        "claude" => ("claude", &CLAUDE, Protocol::Claude, Some(&["-p"])),
        "codex" => ("codex", &["app-server"], Protocol::Codex, Some(&["exec", "-"])),
        "gemini" => ("gemini", &["--acp"], Protocol::Acp, Some(&["--prompt={prompt}"])),
        "bash" => ("bash", &["--norc", "--noprofile", "-c", include_str!("hosts/bash.sh")], host(), None),
        "python" => ("python3", &["-u", "-c", include_str!("hosts/python.py")], host(), None),
        "node" => ("node", &["-e", include_str!("hosts/node.js")], host(), None),
        _ => return None,
    };
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Some(Provider {
        name: name.to_owned(),
        binary: binary.to_owned(),
        args: owned(args),
        protocol,
        oneshot_args: oneshot.map(owned),
        approvals: Approvals::default(),
        needs: None,
        layer: Layer::new(),
    })
}

/// Returns the provider that a program's name means: `python3.12` is python.
pub fn named_like(program: &str, known: &[Provider]) -> Option<Provider> {
    let name = Path::new(program).file_name()?.to_str()?;
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let plain = if plain == "nodejs" { "node" } else { plain };
    known.iter().find(|it| it.binary == name || it.name == name || it.name == plain).cloned()
}

/// Returns the providers there are: those of the project's file go before those of the user's, and these before what is
/// built in.
pub fn providers() -> Result<Vec<Provider>, SettingError> {
    let mut found: Vec<Provider> = BUILT_IN.iter().filter_map(|name| built_in(name)).collect();
    for path in [user_file(), project_file()].into_iter().flatten() {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| SettingError::File { path: path.clone(), source })?;
        read(&path, &text, &mut found)?;
    }
    Ok(found)
}

/// Returns the one called `name`; the error names the nearest.
pub fn find(name: &str, known: &[Provider]) -> Result<Provider, SettingError> {
    known.iter().find(|it| it.name == name).cloned().ok_or_else(|| {
        let near = nearest(name, known.iter().map(|it| it.name.as_str()));
        let all = || known.iter().map(|it| it.name.clone()).collect::<Vec<_>>().join(", ");
        let hint =
            near.map_or_else(|| format!("known are {}", all()), |near| format!("did you mean '{near}'?"));
        let why = format!("there is no provider '{}'; {hint}", name.escape_debug());
        SettingError::Provider { place: "--provider".to_owned(), why }
    })
}

impl Provider {
    /// Returns the command line.
    pub fn command(&self) -> Vec<OsString> {
        [&self.binary].into_iter().chain(&self.args).map(OsString::from).collect()
    }

    /// Makes it one that is started anew for each message; errors if nobody knows how.
    pub fn into_oneshot(mut self) -> Result<Provider, SettingError> {
        let Some(args) = self.oneshot_args.clone() else {
            let why = format!("nobody knows how {} takes one message; give it a COMMAND", self.name);
            return Err(SettingError::Provider { place: "--protocol oneshot".to_owned(), why });
        };
        (self.args, self.protocol) = (args, Protocol::Oneshot);
        Ok(self)
    }
}

fn read(path: &Path, text: &str, found: &mut Vec<Provider>) -> Result<(), SettingError> {
    let table = super::parse_toml(path, text)?;
    let tables = table.get_ref().get("provider").and_then(|it| it.get_ref().as_table());
    for (name, value) in tables.into_iter().flatten() {
        let place = |at: usize| format!("{}:{}", path.display(), super::line_of(text, at));
        let wrong = |at: usize, why: String| SettingError::Provider { place: place(at), why };
        let at = name.span().start;
        let key = name.get_ref().as_ref();
        let table = value.get_ref().as_table();
        let table =
            table.ok_or_else(|| wrong(at, format!("provider.{}: write a table", key.escape_debug())))?;
        let known = found.iter().position(|it| it.name == key).map(|index| found.remove(index));
        let has_protocol = known.is_some();
        let mut provider = known.unwrap_or_else(|| Provider {
            name: key.to_owned(),
            binary: key.to_owned(),
            args: Vec::new(),
            protocol: Protocol::Oneshot,
            oneshot_args: None,
            approvals: Approvals::default(),
            needs: None,
            layer: Layer::new(),
        });
        if !has_protocol
            && !table.iter().any(|(key, _)| ["protocol", "mode"].contains(&key.get_ref().as_ref()))
        {
            let why =
                format!("provider.{}: it has no protocol; write {}", key.escape_debug(), protocol::FORMS);
            return Err(wrong(at, why));
        }
        for (key, value) in table {
            let at = key.span().start;
            let origin = Origin::File(path.to_owned(), super::line_of(text, at));
            take(&mut provider, key.get_ref().as_ref(), value, origin).map_err(|why| wrong(at, why))?;
        }
        found.push(provider);
    }
    Ok(())
}

fn take(
    provider: &mut Provider,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    origin: Origin,
) -> Result<(), String> {
    let value = value.get_ref();
    let text = || scalar(value).ok_or_else(|| format!("{key}: write one value"));
    match key {
        "binary" => provider.binary = text()?,
        "args" => provider.args = words(value).ok_or("args: write a list of texts")?,
        "protocol" => {
            provider.protocol = protocol::parse(&text()?).map_err(|error| format!("protocol: {error}"))?;
        }
        "mode" => match text()?.as_str() {
            "interactive" => {}
            "oneshot" => {
                provider.protocol = Protocol::Oneshot;
                if let Some(args) = provider.oneshot_args.clone() {
                    provider.args = args;
                }
            }
            other => {
                return Err(format!("mode: '{}' is neither interactive nor oneshot", other.escape_debug()));
            }
        },
        "approvals" => provider.approvals = parse_approvals(&text()?)?,
        "needs" => provider.needs = parse_memory(&text()?).map_err(|why| format!("needs: {why}"))?,
        _ => {
            let no_setting =
                |key: &str| key.starts_with("sweep_") || key.starts_with("max_") || key == "server_ttl";
            let known = KEYS.into_iter().find(|known| *known == key && !no_setting(known));
            let own = ["binary", "args", "protocol", "mode", "approvals", "needs"];
            let Some(known) = known else {
                let settings = KEYS.into_iter().filter(|key| !no_setting(key));
                let near = nearest(key, own.into_iter().chain(settings)).filter(|_| key != "command");
                let all = || format!("it has {} and the settings of a run", own.join(", "));
                let hint = near.map_or_else(all, |near| format!("did you mean '{near}'?"));
                return Err(format!("a provider has no '{}'; {hint}", key.escape_debug()));
            };
            let read = if LISTS.contains(&known) { list } else { scalar };
            let text = read(value).ok_or_else(|| format!("{key}: write one value"))?;
            provider.layer.insert(known, (text, origin));
        }
    }
    Ok(())
}

/// Reads `decline` or `accept`.
pub fn parse_approvals(text: &str) -> Result<Approvals, String> {
    match text {
        "decline" => Ok(Approvals::Decline),
        "accept" => Ok(Approvals::Accept),
        _ => Err(format!("approvals: '{}' is neither decline nor accept", text.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Vec<Provider>, String> {
        let mut found: Vec<Provider> = BUILT_IN.iter().filter_map(|name| built_in(name)).collect();
        read(Path::new("/p/agent-run.toml"), text, &mut found).map_err(|error| error.to_string())?;
        Ok(found)
    }

    #[test]
    fn files_add_providers_and_change_those_built_in() {
        let text = "[provider.claude]\nargs = [\"-p\", \"--model\", \"x\"]\nidle = \"1h\"\nneeds = \"500M\"\n\
                    [provider.lite]\nbinary = \"sqlite3\"\nprotocol = \"marker:.print {marker}\"\n\
                    [provider.ask]\nmode = \"oneshot\"\napprovals = \"accept\"\n\
                    [provider.codex]\nmode = \"oneshot\"";
        let all = with(text).unwrap();
        let claude = find("claude", &all).unwrap();
        assert_eq!(
            (claude.args.len(), &claude.protocol, claude.needs),
            (3, &Protocol::Claude, Some(500 << 20))
        );
        assert_eq!(claude.layer["idle"].1, Origin::File("/p/agent-run.toml".into(), 3));
        assert_eq!(find("lite", &all).unwrap().command(), ["sqlite3"]);
        assert_eq!(find("ask", &all).unwrap().approvals, Approvals::Accept);
        assert_eq!(find("codex", &all).unwrap().command(), ["codex", "exec", "-"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, expected) in [
            ("[provider]\nx = 1", 2, "write a table"),
            ("[provider.x]\nbinary = \"x\"", 1, "has no protocol"),
            ("[provider.x]\nprotocol = \"dance\"", 2, "is no protocol"),
            ("[provider.claude]\nidel = 1", 2, "did you mean 'idle'?"),
            ("[provider.claude]\nmode = \"x\"", 2, "neither interactive nor oneshot"),
            ("[provider.claude]\nneeds = \"1\"", 2, "too small"),
        ] {
            let error = with(text).unwrap_err();
            assert!(error.contains(&format!("agent-run.toml:{line}")) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn programs_are_known_by_their_names() {
        let all = with("").unwrap();
        for (program, expected) in [
            ("/usr/bin/python3.12", Some("python")),
            ("nodejs", Some("node")),
            ("/opt/claude", Some("claude")),
            ("bash", Some("bash")),
            ("cat", None),
        ] {
            assert_eq!(named_like(program, &all).map(|it| it.name).as_deref(), expected, "{program}");
        }
        assert!(find("claud", &all).unwrap_err().to_string().contains("did you mean 'claude'?"));
    }
}
