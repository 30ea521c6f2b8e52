//! Process numbers that come round again: in a pid namespace with a hundred of them, where they do so all the
//! time, nobody but the run's own is ever hit.

use std::process::Command;

use crate::harness::{Place, Running, agent_run, misbehave, skipped};

/// Three bystanders live through runs that use up many times all numbers, each of them killing a tree.
const SCRIPT: &str = r#"
mount -t proc proc /proc || exit 99
echo 420 > /proc/sys/kernel/pid_max || exit 99
sleep 1000 & one=$!; sleep 1000 & two=$!; setsid sleep 1000 & three=$!
runs=0
while [ $runs -lt 30 ]; do
  "$RUN" -q -k 20ms -- "$HELPER" daemon ignore TERM pause end wide 20 pause end deep 5 ignore TERM pause end exit 5
  [ $? = 5 ] || exit 1
  runs=$((runs + 1))
done
kill -0 $one && kill -0 $two && kill -0 $three || exit 2
left=$(ls /proc | grep -c '^[0-9]')
# This shell, three bystanders, ls and grep, and the shell of the substitution.
[ "$left" -le 7 ] || exit 3
"#;

#[test]
fn reused_numbers_hit_nobody() {
    for cgroup in ["true", "false"] {
        let place = Place::new();
        let mut command = Command::new("unshare");
        place.furnish(&mut command);
        command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]);
        command.args(["sh", "-c", SCRIPT]);
        command.env("RUN", agent_run()).env("HELPER", misbehave()).env("AGENT_RUN_CGROUP", cgroup);
        let done = Running::spawn(command).wait();
        if done.code == Some(99) || done.stderr.contains("unshare:") {
            return skipped(&format!("no small pid namespace can be made here: {}", done.stderr));
        }
        done.expect_code(0);
    }
}
