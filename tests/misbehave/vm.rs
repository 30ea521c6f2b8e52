//! The first process of a virtual machine: makes a plain Linux with a unified cgroup hierarchy, and runs the
//! tests that need one, as root and as another user in a subtree that is delegated to it.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};

const USER: u32 = 1000;
/// What is tested inside. The programs that other tests start are not there.
const TESTS: [&str; 4] = ["matrix", "recovery::", "limits::", "may_die_at_every_step"];

/// Does all of it, says how it went and switches the machine off.
pub(super) fn init() -> ! {
    let status = match boot().and_then(|()| run_tests()) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            super::print(&format!("init: {error}\n"));
            2
        }
    };
    super::print(&format!("VM-EXIT-STATUS {status}\n"));
    unsafe {
        libc::tcdrain(1);
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        super::pause();
    }
}

fn attach(kind: &str, place: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(place)?;
    Ok(mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options))?)
}

fn boot() -> io::Result<()> {
    // The initramfs itself cannot be left by pivot_root(2); a bind mount of it can.
    fs::create_dir_all("/newroot")?;
    mount(Some("/"), "/newroot", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    std::env::set_current_dir("/newroot")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    attach("proc", "/proc", "")?;
    attach("sysfs", "/sys", "")?;
    attach("devtmpfs", "/dev", "mode=755")?;
    for place in ["/tmp", "/var/tmp"] {
        attach("tmpfs", place, "mode=1777")?;
    }
    attach("cgroup2", "/sys/fs/cgroup", "")?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids +cpu")
}

/// Makes a cgroup that `USER` may do with as it likes, and one in it to be in.
fn delegate() -> io::Result<()> {
    let own = |path: &str| std::os::unix::fs::chown(path, Some(USER), Some(USER));
    for place in ["/sys/fs/cgroup/user", "/sys/fs/cgroup/user/shell"] {
        fs::create_dir(place)?;
        own(place)?;
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            own(&format!("{place}/{file}"))?;
        }
    }
    fs::write("/sys/fs/cgroup/user/cgroup.subtree_control", "+memory +pids +cpu")
}

fn run_tests() -> io::Result<bool> {
    fs::create_dir("/sys/fs/cgroup/test")?;
    fs::write("/sys/fs/cgroup/test/cgroup.procs", "0")?;
    let as_root = run("as root", Command::new("/t/it").args(TESTS))?;
    // Alone, since the clock is everybody's.
    let mut clock = Command::new("/t/it");
    clock.args(["clock::", "--test-threads", "1"]).env("AGENT_RUN_TEST_CLOCK", "1");
    let with_jumps = run("with another clock", &mut clock)?;
    delegate()?;
    fs::write("/sys/fs/cgroup/user/shell/cgroup.procs", "0")?;
    let as_user = run("as another user", Command::new("/t/it").args(TESTS).uid(USER).gid(USER))?;
    Ok(as_root && with_jumps && as_user)
}

fn run(who: &str, command: &mut Command) -> io::Result<bool> {
    super::print(&format!("{who}:\n"));
    command.env("AGENT_RUN_TEST_BINARIES", "/t").env("AGENT_RUN_TEST_SLOW", "1");
    command.env("PATH", "/t").env("TMPDIR", "/tmp").current_dir("/tmp");
    let child = command.spawn()?.id() as i32;
    loop {
        let mut status = 0;
        // As pid 1 we reap what others leave.
        if unsafe { libc::waitpid(-1, &mut status, 0) } == child {
            return Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        }
    }
}
