//! Containers that publish a port, as Docker and Podman tell through their sockets (Docker Engine API,
//! `GET /containers/json`, which both speak).

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::diagnose::Finding;
use crate::env as vars;

/// An engine that does not answer must not keep us.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns the containers that publish `port`, and the engines that could not be asked.
pub(super) fn publishing(port: u16) -> Vec<Finding> {
    // One behind a directory that we may not enter is there for all we know.
    let is_there = |place: &PathBuf| match place.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    places().into_iter().filter(is_there).flat_map(|place| ask(&place, port)).collect()
}

fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = vec!["/var/run/docker.sock".into(), "/run/podman/podman.sock".into()];
    let named = env::var(vars::DOCKER_HOST).ok();
    places.extend(named.and_then(|host| host.strip_prefix("unix://").map(PathBuf::from)));
    if let Some(runtime) = env::var_os(vars::RUNTIME_DIR).map(PathBuf::from) {
        places.extend([runtime.join("docker.sock"), runtime.join("podman/podman.sock")]);
    }
    places.sort();
    places.dedup();
    places
}

fn ask(place: &PathBuf, port: u16) -> Vec<Finding> {
    let listed = fetch(place);
    let body = match listed {
        Ok(body) => body,
        Err(error) => {
            let finding = format!("the containers behind {} cannot be listed: {error}", place.display());
            let advice =
                Some(format!("as root, or in the engine's group: docker ps --filter publish={port}"));
            return vec![Finding { kind: "container", finding, advice }];
        }
    };
    containers(&body, port).into_iter().map(|name| told(&name, port)).collect()
}

fn told(name: &str, port: u16) -> Finding {
    let finding = format!("the container {} publishes port {port}", name.escape_debug());
    Finding {
        kind: "container",
        finding,
        advice: Some(format!("docker stop {} (or podman)", name.escape_debug())),
    }
}

/// HTTP/1.0, so that the answer ends with the connection.
fn fetch(place: &PathBuf) -> io::Result<String> {
    let mut stream = UnixStream::connect(place)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /containers/json HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = Vec::new();
    const LONGEST: u64 = 16 << 20;
    stream.take(LONGEST).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        other => Err(io::Error::other(format!("it answers {}", other.unwrap_or("nothing")))),
    }
}

/// Pure: the names of the containers in `body` that publish `port`.
fn containers(body: &str, port: u16) -> Vec<String> {
    let listed: Value = serde_json::from_str(body).unwrap_or_default();
    let publishes = |container: &&Value| {
        let ports = container["Ports"].as_array().into_iter().flatten();
        ports
            .into_iter()
            .any(|it| it["PublicPort"] == port && it["Type"].as_str().is_none_or(|kind| kind == "tcp"))
    };
    let name = |container: &Value| {
        let name = container["Names"][0].as_str().map(|name| name.trim_start_matches('/').to_owned());
        name.or_else(|| container["Id"].as_str().map(|id| id.chars().take(12).collect()))
    };
    listed.as_array().into_iter().flatten().filter(publishes).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_publish_the_port_are_named() {
        let body = r#"[
            {"Id":"0123456789abcdef","Names":["/web"],"Ports":[{"PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]},
            {"Id":"fedcba9876543210","Names":[],"Ports":[{"PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]},
            {"Id":"1","Names":["/dns"],"Ports":[{"PrivatePort":53,"PublicPort":8080,"Type":"udp"}]},
            {"Id":"2","Names":["/db"],"Ports":[{"PrivatePort":8080,"Type":"tcp"}]}]"#;
        assert_eq!(containers(body, 8080), ["web", "fedcba987654"]);
        assert!(containers("nonsense", 8080).is_empty());
    }
}
