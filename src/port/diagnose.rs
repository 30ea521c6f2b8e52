//! All that can be known of one port, each finding with what to do. What needs rights that we do not have is
//! said, not skipped.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::claim::ClaimError;
use super::containers;
use super::displace::{Means, Registry};
use super::holders::{self, Search};
use super::verdict::{Verdict, judge};
use super::words;
use crate::env as vars;
use crate::sys::process::{self, Pid, Stat};
use crate::sys::sockets::{self, Socket, State};
use crate::sys::tcp::{self, Reservation};
use crate::sys::tree;

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One word for programs.
    pub kind: &'static str,
    /// What was found.
    pub finding: String,
    /// What to do about it.
    pub advice: Option<String>,
}

fn found(kind: &'static str, finding: impl Into<String>, advice: Option<&str>) -> Finding {
    Finding { kind, finding: finding.into(), advice: advice.map(str::to_owned) }
}

/// Looks at `port` from every side.
pub fn diagnose(port: u16, means: &Means, registry: &Registry) -> Vec<Finding> {
    let mut findings = vec![bind_test(port)];
    findings.extend(of_holders(port, means, registry));
    findings.extend(of_connections(port));
    findings.extend(containers::publishing(port));
    findings.extend(socket_units(port));
    findings.extend(redirects(port));
    findings.extend(other_namespaces(port));
    findings.extend(of_ranges(port));
    findings
}

/// Tries what a server would.
fn bind_test(port: u16) -> Finding {
    let error = match Reservation::take(port) {
        Ok(_) => return found("bind", format!("port {port} can be bound now"), None),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) if is_only_closing(port) => {
            let what = format!(
                "port {port} has connections that are ending; a server that sets SO_REUSEADDR can bind it"
            );
            found("bind", what, None)
        }
        Some(libc::EADDRINUSE) => found("bind", format!("port {port} is in use"), None),
        Some(libc::EACCES) if port < tcp::first_unprivileged() => found(
            "privileged",
            ClaimError::Privileged(port).to_string(),
            Some("take a higher port, or run as root"),
        ),
        Some(libc::EPERM | libc::EACCES) => found(
            "sandbox",
            format!("port {port} may not be bound by this process ({error}): this is not \"in use\""),
            Some("allow network access in the sandbox, or run outside of it"),
        ),
        _ => found("bind", format!("port {port} cannot be bound: {error}"), None),
    }
}

/// Returns whether nobody has a socket on the port that would keep a usual server out.
fn is_only_closing(port: u16) -> bool {
    let nobody = sockets::list(&holders::HOLDING, Some(port)).is_ok_and(|holders| holders.is_empty());
    nobody && Reservation::take_over_closed(port).is_ok()
}

fn of_holders(port: u16, means: &Means, registry: &Registry) -> Vec<Finding> {
    let runs = registry.runs();
    let holders = match holders::find(Some(&BTreeSet::from([port])), &runs, Search::Everywhere) {
        Ok(holders) => holders,
        Err(error) => {
            let what = format!("the kernel does not say who has sockets ({error})");
            return vec![found("sandbox", what, Some("run outside of the sandbox"))];
        }
    };
    let context = means.context(&holders, &runs);
    let tell = |holder: &holders::Holder| {
        let Socket { local, state, inode, v6only, .. } = &holder.socket;
        let only = if *v6only { ", IPv6 only" } else { "" };
        let others = match holder.processes.len() {
            0 | 1 => String::new(),
            many => format!(" and {} more processes", many - 1),
        };
        let who = words::who(holder, &runs);
        let finding = format!("{local} {}{only}, socket {inode}: {who}{others}", state.word());
        let advice = match judge(holder, &context).into_iter().next() {
            Some(Verdict::Spare(_, why)) => format!("left alone: {why}"),
            Some(Verdict::EndRun(run)) => format!("agent-run stop {run}"),
            _ => format!("agent-run port free {port}"),
        };
        let kind = if holder.is_ghost() { "ghost" } else { "holder" };
        Finding { kind, finding, advice: Some(advice) }
    };
    holders.iter().map(tell).collect()
}

/// Sockets that neither listen nor only wait: they keep a server out if it (or they) set no SO_REUSEADDR.
fn of_connections(port: u16) -> Vec<Finding> {
    let Ok(connections) = sockets::list(&State::of_connections(), Some(port)) else { return Vec::new() };
    let owners = holders::who_has(&connections);
    let mut by_state: BTreeMap<State, Vec<&Socket>> = BTreeMap::new();
    for socket in &connections {
        by_state.entry(socket.state).or_default().push(socket);
    }
    by_state.into_iter().map(|(state, sockets)| of_state(state, &sockets, &owners)).collect()
}

fn of_state(state: State, sockets: &[&Socket], owners: &HashMap<u32, Vec<Pid>>) -> Finding {
    const SHOWN: usize = 50;
    let line = |socket: &&Socket| {
        let left = match state {
            State::TimeWait => format!(", {} s left", socket.expires.as_secs()),
            _ => String::new(),
        };
        let pid = owners.get(&socket.inode).and_then(|pids| pids.first());
        let name = pid
            .and_then(|pid| Stat::read(*pid))
            .map_or(String::new(), |stat| format!(", {} (pid {})", stat.comm.escape_debug(), stat.pid));
        format!("{} - {}{name}{left}", socket.local, socket.remote)
    };
    let shown: Vec<String> = sockets.iter().take(SHOWN).map(line).collect();
    let more = match sockets.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let advice = match state {
        State::TimeWait => {
            let left = sockets.iter().map(|socket| socket.expires.as_secs()).max().unwrap_or_default();
            format!("a server that sets SO_REUSEADDR can bind over it; without, wait {left} s")
        }
        _ => "a connection, not a listener: it is never ended for a port".to_owned(),
    };
    let finding = format!("{} {}: {}{more}", sockets.len(), state.word(), shown.join("; "));
    Finding { kind: state.word(), finding, advice: Some(advice) }
}

/// Units by which systemd itself listens, started or not.
fn socket_units(port: u16) -> Vec<Finding> {
    const SYSTEM: [&str; 3] = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"];
    const USER: [&str; 2] = ["/etc/systemd/user", "/usr/lib/systemd/user"];
    let home = std::env::var_os(vars::HOME).map(|home| PathBuf::from(home).join(".config/systemd/user"));
    let system = units_in(SYSTEM.map(PathBuf::from).into_iter(), port).into_iter();
    let user = units_in(USER.map(PathBuf::from).into_iter().chain(home), port).into_iter();
    let tell = |name: String, how: &str| {
        let advice = format!("if it is active: {how} stop {name}");
        found("systemd", format!("the socket unit {name} is for port {port}"), Some(&advice))
    };
    let system = system.map(|name| tell(name, "systemctl"));
    system.chain(user.map(|name| tell(name, "systemctl --user"))).collect()
}

fn units_in(places: impl Iterator<Item = PathBuf>, port: u16) -> BTreeSet<String> {
    let entries = places.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let units = entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".socket"));
    let fitting = units.filter(|unit| listens_on(&fs::read_to_string(unit.path()).unwrap_or_default(), port));
    fitting.map(|unit| unit.file_name().to_string_lossy().into_owned()).collect()
}

/// Reads `ListenStream=8080`, `=0.0.0.0:8080`, `=[::]:8080` (systemd.socket(5)).
fn listens_on(unit: &str, port: u16) -> bool {
    let values = unit.lines().filter_map(|line| line.trim().strip_prefix("ListenStream="));
    let number = |value: &str| value.trim().rsplit(':').next().and_then(|text| text.parse::<u16>().ok());
    values.filter(|value| !value.trim().starts_with(['/', '@'])).any(|value| number(value) == Some(port))
}

/// Rules that send the port's packets elsewhere: no bind test sees them.
fn redirects(port: u16) -> Vec<Finding> {
    const TOOLS: [&[&str]; 2] = [&["nft", "list", "ruleset"], &["iptables-save", "-t", "nat"]];
    let mut findings = Vec::new();
    let mut asked = false;
    for words in TOOLS {
        let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        let Ok(output) = output.ok().filter(|output| output.status.success()).ok_or(()) else { continue };
        asked = true;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for rule in text.lines().filter(|line| redirects_port(line, port)) {
            let advice = "packets to this port go elsewhere, whoever listens here; see who made the rule";
            findings.push(found("nat", format!("{} rule: {}", words[0], rule.trim()), Some(advice)));
        }
    }
    if !asked {
        let (why, advice) = match process::own_uid() {
            0 => ("neither nft nor iptables-save can be run", "install nftables".to_owned()),
            _ => ("that needs root", format!("sudo nft list ruleset | grep {port}")),
        };
        findings.push(found("nat", format!("redirects (NAT) cannot be looked at: {why}"), Some(&advice)));
    }
    findings
}

fn redirects_port(rule: &str, port: u16) -> bool {
    let acts = ["dnat", "DNAT", "redirect", "REDIRECT"].iter().any(|word| rule.contains(word));
    let words: Vec<&str> = rule.split(|c: char| c.is_whitespace() || "{},".contains(c)).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let is_it = |word: &str| {
        let (low, high) = word.split_once(['-', ':']).unwrap_or((word, word));
        let ends: Option<(u16, u16)> = low.parse().ok().zip(high.parse().ok());
        ends.map(|(low, high)| (low..=high).contains(&port))
    };
    // The numbers that follow, as `8080`, `{ 80, 8080 }`, `80,8080`, `8000-8100` or `8000:8100`.
    let keys = words.iter().enumerate().filter(|(_, word)| ["dport", "--dport", "--dports"].contains(*word));
    let mut numbers = keys.flat_map(|(at, _)| words[at + 1..].iter().map_while(|word| is_it(word)));
    acts && numbers.any(|fits| fits)
}

/// Listeners on the same number in other network namespaces: the port is free for us all the same.
fn other_namespaces(port: u16) -> Vec<Finding> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let mut namespaces: BTreeMap<PathBuf, Pid> = BTreeMap::new();
    let mut hidden = 0;
    for pid in tree::all_processes() {
        match fs::read_link(format!("/proc/{pid}/ns/net")) {
            Ok(namespace) if Some(&namespace) != own.as_ref() => {
                namespaces.entry(namespace).or_insert(pid);
            }
            Ok(_) => {}
            // A process that has ended has none, and needs no rights.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
            Err(_) => {}
        }
    }
    let listens =
        |pid: Pid| ["tcp", "tcp6"].iter().any(|file| is_listed(&format!("/proc/{pid}/net/{file}"), port));
    let mut findings: Vec<Finding> = namespaces
        .into_iter()
        .filter(|(_, pid)| listens(*pid))
        .map(|(namespace, pid)| {
            let name = Stat::read(pid).map_or(String::new(), |stat| stat.comm.escape_debug().to_string());
            let what = format!(
                "somebody listens on port {port} in another network namespace ({}, that of {name}, pid {pid})",
                namespace.display()
            );
            found("namespace", what, Some("it does not keep this one from being bound here"))
        })
        .collect();
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names: Vec<String> = named.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if !names.is_empty() {
        let what =
            format!("there are named network namespaces, perhaps without a process: {}", names.join(", "));
        let advice = format!("ip netns exec NAME ss -ltn sport = :{port}");
        findings.push(found("namespace", what, Some(&advice)));
    }
    if hidden > 0 && process::own_uid() != 0 {
        let what = format!("the network namespaces of {hidden} processes of other users cannot be seen");
        findings.push(found("namespace", what, Some("root can see them")));
    }
    findings
}

/// Reads a table like /proc/net/tcp (`proc_net_tcp(5)`): local address, and 0A for LISTEN.
fn is_listed(path: &str, port: u16) -> bool {
    let text = fs::read_to_string(Path::new(path)).unwrap_or_default();
    let wanted = format!(":{port:04X}");
    text.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&wanted)) && fields.get(3) == Some(&"0A")
    })
}

fn of_ranges(port: u16) -> Vec<Finding> {
    let mut findings = Vec::new();
    if tcp::reserved().iter().any(|(low, high)| (*low..=*high).contains(&port)) {
        let what = format!("port {port} is in ip_local_reserved_ports: no automatic choice takes it");
        findings.push(found("reserved", what, None));
    }
    if let Some((low, high)) = tcp::ephemeral().filter(|(low, high)| (*low..=*high).contains(&port)) {
        let what = format!(
            "port {port} is among those for outgoing connections ({low}-{high}): any program may get it"
        );
        findings.push(found("ephemeral", what, Some("take one below, as 8080-9500, for a server")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_units_are_read() {
        let table = [
            ("[Socket]\nListenStream=8080\n", true),
            ("ListenStream=0.0.0.0:8080", true),
            ("ListenStream=[::1]:8080", true),
            ("ListenStream=80\nListenStream= 127.0.0.1:8080 ", true),
            ("ListenStream=18080", false),
            ("ListenStream=/run/8080", false),
            ("ListenDatagram=8080", false),
        ];
        for (unit, expected) in table {
            assert_eq!(listens_on(unit, 8080), expected, "{unit}");
        }
    }

    #[test]
    fn redirecting_rules_are_told_from_others() {
        let table = [
            ("tcp dport 8080 dnat to 172.17.0.2:80", true),
            (
                "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
                true,
            ),
            ("-A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080", false),
            ("tcp dport { 80, 8080 } dnat to 10.0.0.1", true),
            ("tcp dport 8000-8100 redirect to :80", true),
            ("-A X -p tcp -m multiport --dports 80,8080 -j REDIRECT --to-ports 1", true),
            ("-A X -p tcp -m tcp --dport 8000:8090 -j DNAT --to-destination 1.2.3.4", true),
            ("tcp dport { 80, 81 } dnat to 10.0.0.1:8080", false),
            ("tcp dport 8080 accept", false),
            ("tcp dport 18080 redirect to :8080", false),
        ];
        for (rule, expected) in table {
            assert_eq!(redirects_port(rule, 8080), expected, "{rule}");
        }
    }
}
