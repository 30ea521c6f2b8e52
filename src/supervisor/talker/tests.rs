//! The talker with a program that the test plays, and a clock that does not wait.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::{Asked, Client, Door, Job, Part, Pipes, Talker, Word};
use crate::control::frames::{FromSession, Refusal, RefusedFor};
use crate::protocol::{Approvals, Protocol};
use crate::run::Conversation;
use crate::supervisor::relay::CommandEnds;

/// A talker, and all that it is connected with.
struct Scene {
    door: Door,
    stdout: File,
    _stdin: File,
    _stderr: File,
    _told: mpsc::UnboundedReceiver<Word>,
    _end: watch::Sender<Option<String>>,
}

/// A program that says things for an hour, without a word in between that would be the end of a reply.
fn scene() -> Scene {
    let protocol = Protocol::Quiet(Duration::from_secs(3600));
    let conversation =
        Conversation { protocol, approvals: Approvals::Decline, terminal: false, provider: None };
    let (pipes, CommandEnds { stdin, stdout, stderr }) = Pipes::new().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let (end, ended) = watch::channel(None);
    let (talker, door) = Talker::new(&conversation, "/", pipes, None, tell, ended).unwrap();
    tokio::spawn(talker.run());
    let (_stdin, _stderr) = (File::from(stdin.unwrap()), File::from(stderr));
    Scene { door, stdout: stdout.into(), _stdin, _stderr, _told: told, _end: end }
}

impl Scene {
    async fn send(&self) -> (mpsc::Receiver<Part>, oneshot::Receiver<FromSession>) {
        let (client, parts, last) = Client::new();
        let job = Job { id: 0, text: "go on".into(), stream: true, wait: true, timeout: None, client };
        self.door.asked.send(Asked::Job(job)).await.unwrap();
        (parts, last)
    }

    /// Says `count` things, each of which comes by itself.
    async fn say(&mut self, count: usize) {
        for _ in 0..count {
            self.stdout.write_all(b"x").unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn refusal(word: FromSession) -> Refusal {
    let FromSession::Refused(refusal) = word else { panic!("{word:?}") };
    refusal
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_for_half_a_minute_is_given_up() {
    let mut scene = scene();
    let (_parts, last) = scene.send().await;
    sleep(Duration::from_millis(1)).await;
    scene.say(8).await;
    let begun = Instant::now();
    let refused = refusal(last.await.unwrap());
    assert!(refused.message.contains("for 30 s"), "{refused:?}");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(29) && took < Duration::from_secs(31), "{took:?}");
    // Nobody waits for the reply now, and it goes on.
    let (_parts, last) = scene.send().await;
    assert_eq!(refusal(last.await.unwrap()).kind, RefusedFor::Busy);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_little_is_waited_for() {
    let mut scene = scene();
    let (mut parts, mut last) = scene.send().await;
    sleep(Duration::from_millis(1)).await;
    scene.say(8).await;
    // What comes while it is behind is one part.
    for _ in 0..4 {
        sleep(Duration::from_secs(29)).await;
        assert!(parts.recv().await.is_some());
    }
    assert!(last.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn each_piece_of_a_large_part_that_is_taken_counts() {
    let (mut client, mut parts, _last) = Client::new();
    client.give(Part::Text(vec![b'x'; 6 << 20]));
    for _ in 0..3 {
        sleep(Duration::from_secs(29)).await;
        assert!(parts.recv().await.is_some());
        assert!(client.take().await);
        assert!(client.gives_up_at().unwrap() > Instant::now() + Duration::from_secs(29));
    }
}
