//! Asking a server if it answers: by HTTP, or by a websocket's handshake.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One answer may take this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A longer head of an answer is none, in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
const MOST_HEADERS: usize = 64;

/// The key of RFC 6455, section 1.3, and what a server must make of it. It needs not be random here: nothing is
/// between us and the server.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A masked frame that closes the connection, code 1000 (RFC 6455, section 5.5.1).
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// Asks for `path` at the first of `places` that takes a connection; the status must be `wanted`, or 200 to 399.
pub(super) async fn http(places: &[SocketAddr], path: &str, wanted: Option<u16>) -> Result<(), String> {
    let (mut stream, place) = connect(places).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: agent-run\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        place.port()
    );
    let head = Head::ask(&mut stream, &request).await?;
    let fits = wanted.map_or((200..400).contains(&head.status), |wanted| head.status == wanted);
    if fits { Ok(()) } else { Err(format!("{path} answers {}", head.status)) }
}

/// Shakes hands for a websocket at `path`, and closes it again.
pub(super) async fn websocket(places: &[SocketAddr], path: &str) -> Result<(), String> {
    let (mut stream, place) = connect(places).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{0}\r\nOrigin: http://localhost:{0}\r\nUser-Agent: agent-run\r\n\
         Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n",
        place.port()
    );
    let head = Head::ask(&mut stream, &request).await?;
    if head.status != 101 {
        return Err(format!("{path} answers {} to a websocket's handshake", head.status));
    }
    if head.accept.as_deref() != Some(ACCEPT) {
        return Err(format!("{path} answers 101 without the right Sec-WebSocket-Accept"));
    }
    // Whoever has shaken hands is ready, whatever becomes of the farewell.
    let _ = stream.write_all(&CLOSE).await;
    Ok(())
}

async fn connect(places: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
    let mut refused = "nothing listens".to_owned();
    for place in places {
        match TcpStream::connect(place).await {
            Ok(stream) => return Ok((stream, *place)),
            Err(error) => refused = format!("cannot connect to {place}: {error}"),
        }
    }
    Err(refused)
}

/// The head of an answer, as far as it matters.
struct Head {
    status: u16,
    accept: Option<String>,
}

impl Head {
    async fn ask(stream: &mut TcpStream, request: &str) -> Result<Head, String> {
        let lost = |error: io::Error| format!("the connection broke: {error}");
        stream.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut answer = Vec::new();
        loop {
            if stream.read_buf(&mut answer).await.map_err(lost)? == 0 {
                return Err("the connection was closed without an answer".to_owned());
            }
            if let Some(head) = Head::parse(&answer)? {
                return Ok(head);
            }
            if answer.len() > LONGEST_HEAD {
                return Err("the answer has no end of its head".to_owned());
            }
        }
    }

    fn parse(answer: &[u8]) -> Result<Option<Head>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let whole = parsed.parse(answer).map_err(|error| format!("the answer is no HTTP: {error}"))?;
        if whole.is_partial() {
            return Ok(None);
        }
        let accept = parsed.headers.iter().find(|it| it.name.eq_ignore_ascii_case("sec-websocket-accept"));
        let accept = accept.map(|it| String::from_utf8_lossy(it.value).trim().to_owned());
        Ok(parsed.code.map(|status| Head { status, accept }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = |text: &str| Head::parse(text.as_bytes());
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().status, 204);
        assert!(head("HTTP/1.1 200 OK\r\nA: b\r\n").unwrap().is_none());
        assert!(head("HT").unwrap().is_none());
        assert!(head("+PONG\r\n").is_err());
        let upgraded = head("HTTP/1.1 101 S\r\nsec-websocket-ACCEPT:  abc= \r\n\r\n").unwrap().unwrap();
        assert_eq!((upgraded.status, upgraded.accept.as_deref()), (101, Some("abc=")));
    }
}
