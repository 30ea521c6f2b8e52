use super::*;

const GRACE: Duration = Duration::from_millis(300);

const fn at(milliseconds: u64) -> BootTime {
    BootTime::from_boot(Duration::from_millis(milliseconds))
}

fn policy() -> Policy {
    Policy {
        signal: Signal::TERM,
        grace: GRACE,
        idle: None,
        preserve_status: false,
        cpu_time_limited: false,
        gets_ready: false,
        ready_timeout: None,
        restart: Restart::Never,
        max_restarts: None,
        is_session: false,
    }
}

fn machine() -> Machine {
    Machine::new(policy(), Some(Lease::grant(Duration::from_secs(10), at(0))), at(0))
}

const ENTER: Action = Action::EnterTeardown { grace: GRACE };
const ASK: Action = Action::Ask { group: Signal::TERM, rest: Signal::TERM };
const ASK_NEW: Action = Action::AskNew { rest: Signal::TERM };
const KILL: Action = Action::Kill { first: true };
const DEAD: Event = Event::LeaderEnded(Ended::Signaled(Signal::TERM));

/// Feeds events at their times, and returns all actions and the verdict.
fn play(machine: &mut Machine, script: &[(u64, Event)]) -> (Vec<Action>, Option<Verdict>) {
    let actions = script.iter().flat_map(|(time, event)| machine.step(*event, at(*time))).collect();
    (actions, machine.verdict())
}

type Script<'a> = &'a [(u64, Event)];

const fn exited(code: i32) -> Event {
    Event::LeaderEnded(Ended::Exited(code))
}

#[test]
fn each_reason_ends_the_run_with_its_code() {
    let table: [(Script, Reason, Ending); 9] = [
        (&[(1, exited(3)), (1, Event::TreeEmpty)], Reason::Exit, Ending::Code(3)),
        (&[(1, DEAD), (1, Event::TreeEmpty)], Reason::Signal, Ending::DieOf(Signal::TERM)),
        (
            &[(10_000, Event::Tick), (10_001, DEAD), (10_001, Event::TreeEmpty)],
            Reason::Ttl,
            Ending::Code(124),
        ),
        (
            &[(5, Event::Stop { grace: None, reason: Reason::Stop }), (6, exited(0)), (6, Event::TreeEmpty)],
            Reason::Stop,
            Ending::Code(0),
        ),
        (
            &[(5, Event::Stop { grace: None, reason: Reason::Stop }), (6, DEAD), (6, Event::TreeEmpty)],
            Reason::Stop,
            Ending::DieOf(Signal::TERM),
        ),
        (
            &[(5, Event::Signalled(Signal::TERM)), (6, exited(9)), (6, Event::TreeEmpty)],
            Reason::Signal,
            Ending::Code(9),
        ),
        (
            &[(5, Event::GuardLost), (6, DEAD), (6, Event::TreeEmpty)],
            Reason::SupervisorLost,
            Ending::Code(125),
        ),
        // The lease ends while the leader's exit is on its way: the run was over by itself.
        (
            &[(9_999, exited(0)), (10_000, Event::Tick), (10_000, Event::TreeEmpty)],
            Reason::Exit,
            Ending::Code(0),
        ),
        // Two reasons: the first one counts.
        (
            &[
                (10_000, Event::Tick),
                (10_001, Event::Stop { grace: None, reason: Reason::Stop }),
                (10_002, DEAD),
                (10_002, Event::TreeEmpty),
            ],
            Reason::Ttl,
            Ending::Code(124),
        ),
    ];
    for (script, reason, ending) in table {
        let (_, verdict) = play(&mut machine(), script);
        let verdict = verdict.unwrap_or_else(|| panic!("no verdict for {script:?}"));
        assert_eq!((verdict.reason, verdict.ending, verdict.verified), (reason, ending, true), "{script:?}");
    }
}

#[test]
fn the_tree_gets_its_grace_and_then_sigkill() {
    let mut machine = machine();
    let (actions, _) = play(&mut machine, &[(5, Event::Stop { grace: None, reason: Reason::Stop })]);
    assert_eq!(actions, [ENTER, ASK]);
    assert_eq!(machine.step(Event::Tick, at(25)), [ASK_NEW]);
    assert_eq!(machine.wake_at(), Some(at(305)));
    assert_eq!(machine.step(Event::Tick, at(304)), []);
    assert_eq!(machine.step(Event::Tick, at(305)), [KILL]);
    let (_, verdict) = play(
        &mut machine,
        &[(306, Event::LeaderEnded(Ended::Signaled(Signal::KILL))), (306, Event::TreeEmpty)],
    );
    assert_eq!(verdict.map(|v| v.ending), Some(Ending::Code(137)));
}

#[test]
fn what_outlives_the_leader_is_asked_and_killed_too() {
    let mut machine = machine();
    assert_eq!(machine.step(Event::LeaderEnded(Ended::Exited(0)), at(5)), [ENTER, ASK]);
    assert_eq!(machine.step(Event::Tick, at(305)), [KILL]);
    let (_, verdict) = play(&mut machine, &[(306, Event::TreeEmpty)]);
    // Exit code and reason are the leader's own, whatever had to be done to others.
    assert_eq!(verdict.map(|v| (v.reason, v.ending)), Some((Reason::Exit, Ending::Code(0))));
}

#[test]
fn a_second_press_kills_and_a_second_term_does_not() {
    for (again, expected) in [(Signal::INT, vec![KILL]), (Signal::TERM, vec![]), (Signal::HUP, vec![])] {
        let mut machine = machine();
        let first = machine.step(Event::Signalled(Signal::INT), at(5));
        assert_eq!(first, [ENTER, Action::Ask { group: Signal::INT, rest: Signal::TERM }]);
        // The same press, told twice.
        assert_eq!(machine.step(Event::Signalled(again), at(204)), []);
        assert_eq!(machine.step(Event::Signalled(again), at(205)), expected, "{again}");
    }
}

#[test]
fn who_is_deaf_to_int_is_asked_by_term_when_the_leader_has_gone() {
    let mut machine = machine();
    machine.step(Event::Signalled(Signal::INT), at(5));
    let actions = machine.step(Event::LeaderEnded(Ended::Signaled(Signal::INT)), at(6));
    assert_eq!(actions, [Action::AskAgain(Signal::TERM)]);
}

#[test]
fn newcomers_are_asked_during_the_grace_and_killed_after_it() {
    let mut machine = machine();
    machine.step(Event::Stop { grace: None, reason: Reason::Stop }, at(5));
    assert_eq!(machine.step(Event::Tick, at(25)), [ASK_NEW]);
    // Deaths close to each other are one reason to look, not many.
    for time in 100..110 {
        assert_eq!(machine.step(Event::SomethingEnded, at(time)), []);
    }
    assert_eq!(machine.wake_at(), Some(at(120)));
    assert_eq!(machine.step(Event::Tick, at(120)), [ASK_NEW]);
    assert_eq!(machine.wake_at(), Some(at(305)));
    machine.step(Event::Tick, at(305));
    assert_eq!(machine.step(Event::SomethingEnded, at(305)), [Action::Kill { first: false }]);
}

#[test]
fn no_grace_means_sigkill_at_once() {
    let mut machine = Machine::new(Policy { grace: Duration::ZERO, ..policy() }, None, at(0));
    let actions = machine.step(Event::Stop { grace: None, reason: Reason::Stop }, at(5));
    assert_eq!(actions, [Action::EnterTeardown { grace: Duration::ZERO }, KILL]);
}

#[test]
fn what_cannot_be_killed_is_said() {
    let mut machine = machine();
    machine.step(Event::Stop { grace: None, reason: Reason::Stop }, at(0));
    for time in (300..=10_400).step_by(10) {
        machine.step(Event::Tick, at(time));
    }
    let verdict = machine.verdict();
    assert_eq!(verdict.map(|v| (v.verified, v.ending)), Some((false, Ending::Code(125))));
}

#[test]
fn a_renewed_lease_ends_later_and_one_taken_away_never() {
    let mut machine = machine();
    let hour = Duration::from_secs(3600);
    assert_eq!(machine.step(Event::Renew(Some(hour)), at(9_000)), [Action::EnterDeadline]);
    assert_eq!(machine.step(Event::Tick, at(10_000)), []);
    assert_eq!(machine.wake_at(), Some(at(9_000) + hour));
    machine.step(Event::Renew(None), at(9_500));
    assert_eq!(machine.wake_at(), None);
    // Too late: the run is ending.
    machine.step(Event::Stop { grace: None, reason: Reason::Stop }, at(9_600));
    assert_eq!(machine.step(Event::Renew(Some(hour)), at(9_700)), []);
}

#[test]
fn idleness_is_judged_by_samples() {
    let idle = Duration::from_secs(8);
    let mut machine = Machine::new(Policy { idle: Some(idle), ..policy() }, None, at(0));
    assert_eq!(machine.wake_at(), Some(at(1_000)));
    assert_eq!(machine.step(Event::Tick, at(1_000)), [Action::Sample]);
    assert_eq!(machine.judge_idleness(at(1_000)), []);
    machine.step(Event::Activity, at(7_000));
    assert_eq!(machine.judge_idleness(at(14_999)), []);
    assert_eq!(machine.idle_for(at(14_999)), Some(Duration::from_millis(7_999)));
    assert_eq!(machine.judge_idleness(at(15_000)), [ENTER, ASK]);
    let (_, verdict) = play(&mut machine, &[(15_001, DEAD), (15_001, Event::TreeEmpty)]);
    assert_eq!(verdict.map(|v| (v.reason, v.ending)), Some((Reason::Idle, Ending::Code(124))));
}

#[test]
fn the_cpu_limit_has_its_own_reason() {
    for (limited, reason) in [(true, Reason::CpuTime), (false, Reason::Signal)] {
        let mut machine = Machine::new(Policy { cpu_time_limited: limited, ..policy() }, None, at(0));
        let script = [(5, Event::LeaderEnded(Ended::Signaled(Signal::XCPU))), (5, Event::TreeEmpty)];
        let (_, verdict) = play(&mut machine, &script);
        assert_eq!(verdict.map(|v| v.reason), Some(reason));
    }
}

#[test]
fn who_died_by_itself_is_told_from_who_was_asked() {
    let int = Event::LeaderEnded(Ended::Signaled(Signal::INT));
    let mut alone = machine();
    alone.step(int, at(5));
    assert_eq!(alone.died_by_itself_of(), Some(Signal::INT));
    let mut asked = machine();
    play(&mut asked, &[(5, Event::Signalled(Signal::INT)), (6, int)]);
    assert_eq!(asked.died_by_itself_of(), None);
    let mut exited_first = machine();
    exited_first.step(exited(130), at(5));
    assert_eq!(exited_first.died_by_itself_of(), None);
}

fn server(restart: Restart, max_restarts: Option<u32>) -> Machine {
    let policy = Policy {
        gets_ready: true,
        ready_timeout: Some(Duration::from_secs(5)),
        restart,
        max_restarts,
        ..policy()
    };
    Machine::new(policy, Some(Lease::grant(Duration::from_secs(3600), at(0))), at(0))
}

const STOP: Event = Event::Stop { grace: None, reason: Reason::Stop };

/// Lets the command end with `code` and be started again; returns how long the pause was, in milliseconds.
fn fails_and_returns(machine: &mut Machine, now: u64, code: i32) -> u64 {
    machine.step(exited(code), at(now));
    assert_eq!(machine.step(Event::TreeEmpty, at(now)), [Action::EnterPause]);
    assert_eq!(machine.state(), State::Restarting);
    let until = machine.wake_at().unwrap().saturating_since(at(now)).as_millis() as u64;
    assert_eq!(machine.step(Event::Tick, at(now + until)), [Action::Start]);
    assert_eq!(machine.step(Event::Started, at(now + until)), [Action::EnterState]);
    machine.step(Event::Ready, at(now + until));
    until
}

#[test]
fn pauses_double_and_begin_anew_after_health() {
    let mut machine = server(Restart::OnFailure, None);
    machine.step(Event::Ready, at(1));
    let mut now = 2;
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(fails_and_returns(&mut machine, now, 1), pause);
        now += pause + 1;
    }
    assert_eq!(fails_and_returns(&mut machine, now + 60_000, 1), 500);
}

#[test]
fn what_is_started_again_and_what_is_not() {
    let again = |restart, most, ready: bool, script: Script| {
        let mut machine = server(restart, most);
        if ready {
            machine.step(Event::Ready, at(1));
        }
        play(&mut machine, script);
        machine.step(Event::TreeEmpty, at(9));
        machine.state() == State::Restarting
    };
    use Restart::{Always, Never, OnFailure};
    let table: [(Restart, Option<u32>, bool, Script, bool); 14] = [
        (Never, None, true, &[(5, exited(1))], false),
        (OnFailure, None, true, &[(5, exited(1))], true),
        (OnFailure, None, true, &[(5, exited(0))], false),
        (Always, None, true, &[(5, exited(0))], true),
        (OnFailure, None, true, &[(5, DEAD)], true),
        // It never served.
        (Always, None, false, &[(5, exited(1))], false),
        (OnFailure, Some(0), true, &[(5, exited(1))], false),
        (Always, None, true, &[(5, STOP), (6, DEAD)], false),
        (Always, None, true, &[(5, Event::Signalled(Signal::TERM)), (6, DEAD)], false),
        (Always, None, true, &[(5, Event::OwnerGone), (6, DEAD)], false),
        (OnFailure, None, true, &[(5, Event::Exceeded(Reason::Memory)), (6, DEAD)], true),
        (OnFailure, None, true, &[(5, Event::Health(false)), (6, DEAD)], true),
        // Asked for while what has failed is being ended.
        (Always, None, true, &[(5, exited(1)), (6, STOP)], false),
        (Never, None, true, &[(5, Event::Restart { grace: None }), (6, DEAD)], true),
    ];
    for (index, (restart, most, ready, script, expected)) in table.into_iter().enumerate() {
        assert_eq!(again(restart, most, ready, script), expected, "row {index}");
    }
}

#[test]
fn a_pause_ends_with_the_run() {
    for (event, reason) in [
        (STOP, Reason::Stop),
        (Event::Signalled(Signal::TERM), Reason::Signal),
        (Event::OwnerGone, Reason::OwnerGone),
        (Event::GuardLost, Reason::SupervisorLost),
    ] {
        let mut machine = server(Restart::Always, None);
        let script =
            [(1, Event::Ready), (2, exited(1)), (2, Event::TreeEmpty), (3, event), (3, Event::TreeEmpty)];
        play(&mut machine, &script);
        assert_eq!(machine.verdict().map(|verdict| verdict.reason), Some(reason));
    }
    let mut machine = server(Restart::Always, None);
    play(
        &mut machine,
        &[
            (1, Event::Ready),
            (2, exited(1)),
            (2, Event::TreeEmpty),
            (3, Event::Renew(Some(Duration::from_millis(5)))),
        ],
    );
    assert_eq!(machine.wake_at(), Some(at(8)));
    machine.step(Event::Tick, at(8));
    // Nothing should live, and that is seen to before it is over.
    assert_eq!(machine.state(), State::Stopping);
    machine.step(Event::TreeEmpty, at(8));
    assert_eq!(machine.verdict().map(|verdict| verdict.reason), Some(Reason::Ttl));
}

#[test]
fn failures_of_long_ago_do_not_count_for_health_either() {
    let mut machine = server(Restart::OnFailure, Some(1));
    machine.step(Event::Ready, at(1));
    fails_and_returns(&mut machine, 2, 1);
    machine.step(Event::Health(false), at(70_000));
    assert_eq!(machine.state(), State::Restarting);
}

#[test]
fn a_stop_is_told_as_such_while_something_is_to_be_started_again() {
    let mut machine = server(Restart::Never, None);
    play(&mut machine, &[(1, Event::Ready), (2, Event::Restart { grace: None })]);
    assert_eq!(machine.state(), State::Restarting);
    assert_eq!(machine.step(STOP, at(3)), [Action::EnterState]);
    assert_eq!(machine.state(), State::Stopping);
}

#[test]
fn what_does_not_get_ready_is_ended() {
    let mut machine = server(Restart::Always, None);
    assert_eq!(machine.wake_at(), Some(at(5_000)));
    assert_eq!(machine.state(), State::Starting);
    let (_, verdict) = play(&mut machine, &[(5_000, Event::Tick), (5_001, DEAD), (5_001, Event::TreeEmpty)]);
    assert_eq!(verdict.map(|it| (it.reason, it.ending)), Some((Reason::ReadyTimeout, Ending::Code(124))));
}

#[test]
fn health_comes_and_goes() {
    let mut machine = server(Restart::Never, None);
    assert_eq!(machine.step(Event::Health(false), at(1)), []);
    assert_eq!(machine.step(Event::Ready, at(2)), [Action::EnterState]);
    assert_eq!(machine.step(Event::Health(true), at(3)), []);
    assert_eq!(machine.step(Event::Health(false), at(4)), [Action::EnterState]);
    assert_eq!(machine.state(), State::Unhealthy);
    assert_eq!(machine.step(Event::Health(true), at(5)), [Action::EnterState]);
    assert_eq!(machine.state(), State::Ready);
}

#[test]
fn a_restart_keeps_the_lease_and_waits_for_nothing() {
    let mut machine = server(Restart::Never, None);
    let lease = machine.lease();
    play(
        &mut machine,
        &[(1, Event::Ready), (2, Event::Restart { grace: None }), (3, DEAD), (3, Event::TreeEmpty)],
    );
    assert_eq!(machine.wake_at(), Some(at(3)));
    assert_eq!(machine.step(Event::Tick, at(3)), [Action::Start]);
    machine.step(Event::Started, at(3));
    assert_eq!((machine.lease(), machine.state()), (lease, State::Restarting));
    // One that cannot be started is over, unless it is to be tried again.
    play(
        &mut machine,
        &[
            (4, Event::Restart { grace: None }),
            (5, DEAD),
            (5, Event::TreeEmpty),
            (5, Event::StartFailed(127)),
        ],
    );
    assert_eq!(machine.verdict().map(|verdict| verdict.reason), Some(Reason::LaunchFailed));
    assert_eq!(machine.verdict().map(|verdict| verdict.ending), Some(Ending::Code(127)));
}
