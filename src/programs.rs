//! Programs that are known by their names: what a name alone may decide, it decides here.

/// Programs that adopt orphans and start what others ask for: who is below them has nobody.
const REAPERS: [&str; 9] =
    ["systemd", "init", "launchd", "tini", "dumb-init", "docker-init", "catatonit", "s6-svscan", "runsvdir"];

/// The inits of containers, which start one thing and adopt the rest.
const CONTAINER_INITS: [&str; 5] = ["tini", "dumb-init", "docker-init", "catatonit", "init"];

const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "fish", "ksh"];

/// Programs that start one other and wait for it.
const STARTERS: [&str; 20] = [
    "npm", "npx", "pnpm", "yarn", "bun", "bunx", "uv", "uvx", "poetry", "pipenv", "make", "just", "env",
    "nohup", "timeout", "setsid", "stdbuf", "nice", "direnv", "mise",
];

const WATCHERS: [&str; 10] = [
    "nodemon",
    "watchexec",
    "cargo-watch",
    "entr",
    "reflex",
    "air",
    "tsx",
    "ts-node-dev",
    "forever",
    "watchmedo",
];

/// Returns whether a process of this name adopts orphans: a service manager, WSL's relay, a container's init.
pub fn is_reaper(name: &str) -> bool {
    REAPERS.contains(&name) || name.starts_with("Relay(") || name.starts_with("SessionLeader")
}

/// Returns whether a process of this name is the init of a container.
pub fn is_container_init(name: &str) -> bool {
    CONTAINER_INITS.contains(&name)
}

/// Returns whether a process of this name is one of ours that look after runs.
pub fn is_keeper(name: &str) -> bool {
    name.starts_with("arun-") || name == "agent-run"
}

/// Returns whether this is the command of a shell.
pub fn is_shell(command: &[String]) -> bool {
    command.first().is_some_and(|word| SHELLS.contains(&name_in(word).as_str()))
}

/// Returns whether this is the command of a shell that was given something to run: nobody types into it.
pub fn is_shell_with_script(command: &[String]) -> bool {
    let is_script = |word: &String| !word.starts_with('-') || word.ends_with('c');
    is_shell(command) && command.iter().skip(1).any(is_script)
}

/// Returns whether this is the command of a shell with a script, or of a program that only starts another one.
pub fn is_wrapper(command: &[String]) -> bool {
    let starts =
        |name: &str| STARTERS.iter().any(|known| name == *known || name == format!("{known}-cli.js"));
    let Some(program) = command.first().map(|word| name_in(word)) else { return false };
    let script = || command.get(1).map(|word| name_in(word)).unwrap_or_default();
    is_shell_with_script(command) || starts(&program) || program == "node" && starts(&script())
}

/// Returns whether this is the command of one that starts its program again whenever a file changes: nodemon,
/// `node --watch`, `cargo watch` and their like.
pub fn is_watcher(command: &[String]) -> bool {
    const NAMES_WITHIN: usize = 2;
    const FLAG_WITHIN: usize = 4;
    let is_known = |word: &String| WATCHERS.contains(&name_in(word).trim_end_matches(".js"));
    command.iter().take(FLAG_WITHIN).any(|word| word == "--watch")
        || command.iter().take(NAMES_WITHIN).any(is_known)
}

/// The program's name in a command's word: npm names itself "npm run dev", a login shell "-bash".
fn name_in(word: &str) -> String {
    let first = word.split(' ').next().unwrap_or(word);
    first.rsplit('/').next().unwrap_or(first).trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn wrappers_are_told_from_programs() {
        let table: [(&[&str], bool); 12] = [
            (&["sh", "-c", "vite; true"], true),
            (&["/bin/bash", "/srv/run.sh"], true),
            (&["bash", "-lc", "x"], true),
            (&["bash"], false),
            (&["-bash"], false),
            (&["bash", "-i"], false),
            (&["npm run dev"], true),
            (&["node", "/usr/bin/npx", "vite"], true),
            (&["node", "server.js"], false),
            (&["tmux", "new"], false),
            (&["python3", "-m", "http.server"], false),
            (&[], false),
        ];
        for (command, expected) in table {
            assert_eq!(is_wrapper(&words(command)), expected, "{command:?}");
        }
    }

    #[test]
    fn watchers_are_known() {
        let table: [(&[&str], bool); 7] = [
            (&["node", "/x/node_modules/.bin/nodemon", "server.js"], true),
            (&["node", "--watch", "server.js"], true),
            (&["watchexec", "-r", "npm", "start"], true),
            (&["node", "server.js"], false),
            (&["./deploy", "--to", "air"], false),
            (&["bash"], false),
            (&[], false),
        ];
        for (command, expected) in table {
            assert_eq!(is_watcher(&words(command)), expected, "{command:?}");
        }
    }
}
