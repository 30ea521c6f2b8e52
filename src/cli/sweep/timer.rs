//! `sweep --install-timer`: a systemd user timer where there is one (`systemd.timer(5)`), else a line for crontab.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::printer::Printer;
use crate::env as vars;
use crate::exit;
use crate::failure::Failure;
use crate::lease::format_duration;

const SERVICE: &str = "agent-run-sweep.service";
const TIMER: &str = "agent-run-sweep.timer";

pub(super) fn install(interval: Duration, older_than: Duration, printer: &Printer) -> Result<u8, Failure> {
    let program = env::current_exe().map_err(|error| failed("find this program", &error))?;
    let age = format_duration(older_than);
    if !systemctl(&["show-environment"]) {
        let line = crontab_line(&cron(interval)?, &program, &age);
        printer.note("there is no systemd for this user; put this line into crontab -e:");
        printer.answer(&line);
        return Ok(0);
    }
    let place = units()?;
    let write = || -> io::Result<()> {
        fs::create_dir_all(&place)?;
        fs::write(place.join(SERVICE), service(&program, &age))?;
        fs::write(place.join(TIMER), timer(interval))
    };
    write().map_err(|error| failed("write the units", &error))?;
    if !systemctl(&["daemon-reload"]) || !systemctl(&["enable", "--now", TIMER]) {
        let error = io::Error::other("systemctl --user enable --now failed");
        return Err(failed("start the timer", &error));
    }
    printer.answer(&format!("{TIMER} sweeps every {} what is older than {age}", format_duration(interval)));
    Ok(0)
}

pub(super) fn uninstall(printer: &Printer) -> Result<u8, Failure> {
    let place = units()?;
    if !place.join(TIMER).exists() && !place.join(SERVICE).exists() {
        printer.answer("there is no timer; a line in crontab -e is yours to remove");
        return Ok(0);
    }
    // A timer that systemd does not know any more is removed all the same.
    systemctl(&["disable", "--now", TIMER]);
    for name in [TIMER, SERVICE] {
        match fs::remove_file(place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the units", &error));
            }
            _ => {}
        }
    }
    systemctl(&["daemon-reload"]);
    printer.answer(&format!("removed {TIMER}"));
    Ok(0)
}

/// The state directory, if it is not the usual one.
fn state() -> Option<PathBuf> {
    env::var_os(vars::STATE_DIR).filter(|place| !place.is_empty()).map(PathBuf::from)
}

/// Returns when, as crontab(5) can say it: so many minutes of each hour, or hours of each day.
fn cron(interval: Duration) -> Result<String, Failure> {
    let minutes = interval.as_secs() / 60;
    match minutes {
        1..60 if 60 % minutes == 0 => Ok(format!("*/{minutes} * * * *")),
        60.. if minutes.is_multiple_of(60) && minutes / 60 <= 24 && 24 % (minutes / 60) == 0 => {
            Ok(format!("0 */{} * * *", minutes / 60))
        }
        _ => Err(Failure::usage(
            "--interval: crontab cannot say that",
            "take a part of an hour or of a day, like 30m or 6h",
        )),
    }
}

/// A shell reads the command, and before it crontab(5) makes a new line of each `%`.
fn crontab_line(when: &str, program: &Path, age: &str) -> String {
    let word = |path: &Path| match is_plain(path) {
        true => path.display().to_string(),
        false => format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "\\%")),
    };
    let state = state().map_or(String::new(), |place| format!("{}={} ", vars::STATE_DIR, word(&place)));
    format!("{when} {state}{} sweep --yes --quiet --older-than {age}", word(program))
}

fn systemctl(words: &[&str]) -> bool {
    let mut command = Command::new("systemctl");
    command.arg("--user").args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Where a user's own units are (`systemd.unit(5)`).
fn units() -> Result<PathBuf, Failure> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set(vars::CONFIG_HOME).or_else(|| Some(set(vars::HOME)?.join(".config")));
    let base = base.ok_or_else(|| failed("find ~/.config", &io::Error::other("HOME is not set")))?;
    Ok(base.join("systemd/user"))
}

fn service(program: &Path, age: &str) -> String {
    format!(
        "[Unit]\nDescription=Remove what coding agents have left over\n\n\
         [Service]\nType=oneshot\n{}ExecStart=:{} sweep --yes --quiet --older-than {age}\n",
        state().map_or(String::new(), |place| {
            format!("Environment={}\n", quoted(&format!("{}={}", vars::STATE_DIR, place.display())))
        }),
        quoted(&program.display().to_string())
    )
}

fn timer(interval: Duration) -> String {
    format!(
        "[Unit]\nDescription=Sweep now and then\n\n\
         [Timer]\nOnStartupSec={0}s\nOnUnitActiveSec={0}s\n\n[Install]\nWantedBy=timers.target\n",
        interval.as_secs().max(1)
    )
}

fn is_plain(path: &Path) -> bool {
    path.display().to_string().chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c))
}

/// Quotes a word of a unit file (`systemd.syntax(7)`), where `%` begins a specifier and `$` a variable.
fn quoted(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{word}\"")
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure {
        kind: "timer",
        message: format!("cannot {what}: {error}"),
        hint: Some("agent-run sweep --monitor does the same in a process of its own".to_owned()),
        code: exit::SOMETHING_REMAINS,
        log: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted_for_who_reads_them() {
        let odd = Path::new("/opt/a b/50%/it's");
        assert_eq!(
            crontab_line("* * * * *", odd, "1h"),
            r"* * * * * '/opt/a b/50\%/it'\''s' sweep --yes --quiet --older-than 1h"
        );
        assert!(service(odd, "1h").contains("ExecStart=:\"/opt/a b/50%%/it's\" sweep"));
    }
}
